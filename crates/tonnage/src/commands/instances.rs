//! `tonnage instances`

use crate::Status;
use crate::args::TableFormat;
use crate::output::Output;
use clap::Args;
use serde_json::{Value, json};
use tonnage_catalog::device::{Stack, usable};
use tonnage_catalog::{Gpu, Instance, LookupError};
use tonnage_core::Diagnostic;
use tonnage_units::Bytes;

/// `instances`
#[derive(Args, Debug)]
pub struct InstancesArgs {
    /// An instance: provider/name, or its name alone where one provider has it
    pub name: Option<String>,
    /// aws, gcp, azure, lambda, ...
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub provider: Vec<String>,
    /// With this card (id, driver's name or alias)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// With this many
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// At least this much usable memory on each card
    #[arg(long, value_name = "SIZE")]
    pub min_memory: Option<Bytes>,
    /// At most this price an hour, in US dollars; what has no dated price does not pass
    #[arg(long, value_name = "USD")]
    pub max_price: Option<f64>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = TableFormat::Text)]
    pub format: TableFormat,
}

/// An instance with its card.
struct Row {
    i: Instance,
    gpu: Option<Gpu>,
}

impl Row {
    fn usable(&self) -> Option<u64> {
        usable(self.gpu.as_ref()?, &Stack::default())
            .ok()
            .map(|u| u.expected)
    }
    fn count(&self) -> String {
        match self.i.gpus.whole() {
            Some(n) => n.to_string(),
            None => format!("{}", f64::from(self.i.gpus.0) / 10_000.0),
        }
    }
    fn dollars(&self) -> Option<f64> {
        self.i.price.as_ref().map(|p| p.on_demand as f64 / 1e6)
    }
}

pub fn run(a: &InstancesArgs, out: &Output) -> Status {
    match found(a, out) {
        Ok((rows, notes)) => {
            out.print(&match a.format {
                TableFormat::Text => text(&rows, &notes, out),
                TableFormat::Md => markdown(&rows),
                TableFormat::Csv => csv(&rows),
                TableFormat::Json => tonnage_report::json::pretty(&json!({
                    "schema": "tonnage.instances/1", "instances": rows.iter().map(object).collect::<Vec<_>>(), "notes": notes,
                })),
            });
            Status::Ok
        }
        Err((d, s)) => {
            out.complain(&[d]);
            s
        }
    }
}

fn found(a: &InstancesArgs, out: &Output) -> Result<(Vec<Row>, Vec<String>), (Diagnostic, Status)> {
    let bad = |d: Diagnostic| (d, Status::BadInput);
    let (all, notes) = out.catalogs.instances();
    let mut list: Vec<Instance> = match &a.name {
        None => all.iter().collect(),
        Some(n) => match all.find(n) {
            Ok(i) => vec![i],
            Err(LookupError::Ambiguous { candidates, .. }) => {
                candidates.iter().filter_map(|c| all.find(c).ok()).collect()
            }
            Err(e) => {
                return Err(bad(Diagnostic::error("unknown-instance", e.to_string())
                    .help("`tonnage instances` lists them all")));
            }
        },
    };
    let providers: Vec<String> = list.iter().map(|i| i.provider.clone()).collect();
    for p in &a.provider {
        if !providers.iter().any(|q| q.eq_ignore_ascii_case(p)) {
            let near = tonnage_units::nearest(p, providers.iter().map(String::as_str));
            let d = Diagnostic::error("unknown-provider", format!("no provider is named `{p}`"));
            return Err(bad(match near {
                Some(n) => d.help(format!("did you mean {n}?")),
                None => d,
            }));
        }
    }
    // an ambiguous card is any of its candidates: each is shown
    let gpus: Option<Vec<String>> = match &a.gpu {
        None => None,
        Some(g) => match out.catalogs.gpus.find(g) {
            Ok(g) => Some(vec![g.id]),
            Err(LookupError::Ambiguous { candidates, .. }) => Some(candidates),
            Err(e) => {
                return Err(bad(Diagnostic::error("unknown-gpu", e.to_string())
                    .help("`tonnage gpus` lists them")));
            }
        },
    };
    list.retain(|i| {
        (a.provider.is_empty()
            || a.provider
                .iter()
                .any(|p| p.eq_ignore_ascii_case(&i.provider)))
            && gpus.as_ref().is_none_or(|g| g.contains(&i.gpu_id))
            && a.count.is_none_or(|n| i.gpus.whole() == Some(n))
    });
    let mut rows: Vec<Row> = list
        .into_iter()
        .map(|i| Row {
            gpu: out.catalogs.gpus.find(&i.gpu_id).ok(),
            i,
        })
        .collect();
    rows.retain(|r| {
        a.min_memory
            .is_none_or(|m| r.usable().is_some_and(|u| u >= m.0))
            && a.max_price
                .is_none_or(|m| r.dollars().is_some_and(|d| d <= m))
    });
    if rows.is_empty() {
        return Err((
            Diagnostic::error("no-instance", "no instance passes these filters"),
            Status::DoesNotFit,
        ));
    }
    Ok((rows, notes))
}

fn object(r: &Row) -> Value {
    json!({
        "id": r.i.id(), "provider": r.i.provider, "name": r.i.name, "gpu": r.i.gpu_id,
        "gpu_count": f64::from(r.i.gpus.0) / 10_000.0, "usable_bytes_each": r.usable(),
        "marketed_gb_each": r.gpu.as_ref().map(|g| g.memory_gb_marketed.get()),
        "vcpus": r.i.vcpus, "ram_gb": r.i.ram_milli_gb.map(|m| m as f64 / 1000.0), "interconnect": r.i.interconnect,
        "price": r.i.price.as_ref().map(|p| json!({
            "usd_per_hour": p.on_demand as f64 / 1e6, "spot_usd_per_hour": p.spot.map(|s| s as f64 / 1e6),
            "region": p.region, "date": p.date, "source": p.source,
        })),
        "source": r.i.source, "notes": r.i.notes,
    })
}

fn text(rows: &[Row], notes: &[String], out: &Output) -> String {
    let width = rows
        .iter()
        .map(|r| r.i.id().len())
        .max()
        .unwrap_or(0)
        .max(8);
    let card = rows
        .iter()
        .map(|r| r.i.gpu_id.len())
        .max()
        .unwrap_or(0)
        .max(3);
    let mut t = format!(
        "{:<width$}  {:>5}  {:<card$}{:>12}{:>11}  {}\n",
        "instance", "cards", "gpu", "usable each", "USD/h", "of"
    );
    let mut sources: Vec<String> = vec![];
    for r in rows {
        let usable = r.usable().map_or("-".into(), |u| {
            Bytes(u).display(out.style.units).to_string()
        });
        let (price, of) = match &r.i.price {
            None => ("-".into(), String::new()),
            Some(p) => {
                let source = p.source.clone();
                let n = sources
                    .iter()
                    .position(|s| *s == source)
                    .unwrap_or_else(|| {
                        sources.push(source);
                        sources.len() - 1
                    });
                (
                    format!("{:.3}", p.on_demand as f64 / 1e6),
                    format!("{} {} [{}]", p.date, p.region, n + 1),
                )
            }
        };
        t.push_str(
            format!(
                "{:<width$}  {:>5}  {:<card$}{usable:>12}{price:>11}  {of}",
                r.i.id(),
                r.count(),
                r.i.gpu_id
            )
            .trim_end(),
        );
        t.push('\n');
    }
    for (n, s) in sources.iter().enumerate() {
        t.push_str(&format!("[{}] {s}\n", n + 1));
    }
    if rows.iter().any(|r| r.i.price.is_none()) {
        t.push_str("- : no price with a date and a source is known, so none is shown\n");
    }
    for n in notes {
        t.push_str(&format!("note: {n}\n"));
    }
    t
}

fn markdown(rows: &[Row]) -> String {
    let mut t = String::from(
        "| instance | cards | gpu | USD/h | date | region | source |\n| --- | ---: | --- | ---: | --- | --- | --- |\n",
    );
    for r in rows {
        let p = r.i.price.as_ref();
        let price = p.map_or("-".into(), |p| format!("{:.3}", p.on_demand as f64 / 1e6));
        let (date, region, source) = p.map_or(("", "", ""), |p| (&p.date, &p.region, &p.source));
        t.push_str(&format!(
            "| {} | {} | {} | {price} | {date} | {region} | {} |\n",
            r.i.id(),
            r.count(),
            r.i.gpu_id,
            source.replace('|', "\\|")
        ));
    }
    t
}

fn csv(rows: &[Row]) -> String {
    let mut t = String::from(
        "provider,instance,gpu,gpu_count,usable_bytes_each,vcpus,ram_gb,usd_per_hour,spot_usd_per_hour,region,price_date,price_source\n",
    );
    for r in rows {
        let field = tonnage_report::csv::field;
        let n = |n: Option<f64>| n.map_or(String::new(), |n| n.to_string());
        let p = r.i.price.as_ref();
        let f = [
            field(&r.i.provider),
            field(&r.i.name),
            r.i.gpu_id.clone(),
            r.count(),
            r.usable().map_or(String::new(), |u| u.to_string()),
            r.i.vcpus.map_or(String::new(), |v| v.to_string()),
            n(r.i.ram_milli_gb.map(|m| m as f64 / 1000.0)),
            n(r.dollars()),
            n(p.and_then(|p| p.spot).map(|s| s as f64 / 1e6)),
            p.map_or(String::new(), |p| field(&p.region)),
            p.map_or(String::new(), |p| field(&p.date)),
            p.map_or(String::new(), |p| field(&p.source)),
        ];
        t.push_str(&f.join(","));
        t.push('\n');
    }
    t
}
