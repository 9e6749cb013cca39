//! `tonnage gpus`

use crate::Status;
use crate::args::TableFormat;
use crate::output::Output;
use clap::Args;
use serde_json::{Value, json};
use tonnage_catalog::device::{Stack, device_overhead, usable};
use tonnage_catalog::gpu::Vendor;
use tonnage_catalog::{Gpu, LookupError};
use tonnage_core::Diagnostic;
use tonnage_units::Bytes;

/// `gpus`
#[derive(Args, Debug)]
pub struct GpusArgs {
    /// A card: its id, the driver's name for it, or an alias
    pub name: Option<String>,
    #[command(flatten)]
    pub filter: GpuFilter,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = TableFormat::Text)]
    pub format: TableFormat,
}

/// Which cards.
#[derive(Args, Debug, Default, Clone)]
pub struct GpuFilter {
    /// nvidia, amd, intel, apple
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        ignore_case = true,
        help_heading = "Which cards"
    )]
    pub vendor: Vec<String>,
    /// At least this much usable memory (24GiB); where a driver's figure is unknown, of the marketed
    #[arg(long, value_name = "SIZE", help_heading = "Which cards")]
    pub min_memory: Option<Bytes>,
    /// At most this much
    #[arg(long, value_name = "SIZE", help_heading = "Which cards")]
    pub max_memory: Option<Bytes>,
    /// At least this compute capability (8.0)
    #[arg(long, value_name = "X.Y", help_heading = "Which cards")]
    pub capability: Option<String>,
    /// This architecture (Hopper)
    #[arg(long, value_name = "NAME", help_heading = "Which cards")]
    pub architecture: Option<String>,
    /// With bf16 arithmetic
    #[arg(long, help_heading = "Which cards")]
    pub bf16: bool,
    /// With FP8 arithmetic
    #[arg(long, help_heading = "Which cards")]
    pub fp8: bool,
}

pub fn vendor(v: Vendor) -> &'static str {
    match v {
        Vendor::Nvidia => "nvidia",
        Vendor::Amd => "amd",
        Vendor::Intel => "intel",
        Vendor::Apple => "apple",
    }
}

/// Usable bytes, expected; where they are unknown, the marketed figure (in GiB for vendors' GB).
fn memory(g: &Gpu) -> u64 {
    usable(g, &Stack::default()).map_or_else(
        |_| u64::from(g.memory_gb_marketed.get()) << 30,
        |u| u.expected,
    )
}

impl GpuFilter {
    /// Whether a card passes.
    ///
    /// # Errors
    /// A filter that nothing can pass because it is not one.
    pub fn test(&self) -> Result<impl Fn(&Gpu) -> bool + '_, Diagnostic> {
        let bad = |m: String, h: &str| Diagnostic::error("bad-filter", m).help(h);
        for v in &self.vendor {
            if !["nvidia", "amd", "intel", "apple"].contains(&v.to_lowercase().as_str()) {
                return Err(bad(
                    format!("no vendor is named `{v}`"),
                    "nvidia, amd, intel, apple",
                ));
            }
        }
        let capability = match &self.capability {
            None => None,
            Some(t) => {
                let parts = t
                    .split_once('.')
                    .and_then(|(a, b)| Some((a.parse::<u8>().ok()?, b.parse::<u8>().ok()?)));
                Some(parts.ok_or_else(|| {
                    bad(format!("`{t}` is not a compute capability"), "such as 8.0")
                })?)
            }
        };
        Ok(move |g: &Gpu| {
            (self.vendor.is_empty()
                || self
                    .vendor
                    .iter()
                    .any(|v| v.eq_ignore_ascii_case(vendor(g.vendor))))
                && self.min_memory.is_none_or(|m| memory(g) >= m.0)
                && self.max_memory.is_none_or(|m| memory(g) <= m.0)
                && capability.is_none_or(|c| {
                    g.compute_capability
                        .is_some_and(|k| (k.major, k.minor) >= c)
                })
                && self
                    .architecture
                    .as_ref()
                    .is_none_or(|a| g.architecture.eq_ignore_ascii_case(a))
                && (!self.bf16 || g.bf16)
                && (!self.fp8 || g.fp8)
        })
    }
}

pub fn run(a: &GpusArgs, out: &Output) -> Status {
    let keep = match a.filter.test() {
        Ok(k) => k,
        Err(d) => {
            out.complain(&[d]);
            return Status::Usage;
        }
    };
    let gpus = &out.catalogs.gpus;
    let (mut list, head): (Vec<Gpu>, Option<String>) = match &a.name {
        None => (gpus.iter().collect(), None),
        Some(name) => match gpus.find(name) {
            Ok(g) => (vec![g], None),
            Err(LookupError::Ambiguous { candidates, .. }) => {
                let head = format!("{name} stands for {} cards:\n", candidates.len());
                (
                    candidates
                        .iter()
                        .filter_map(|c| gpus.find(c).ok())
                        .collect(),
                    Some(head),
                )
            }
            Err(e) => {
                out.complain(&[Diagnostic::error("unknown-gpu", e.to_string())
                    .help("`tonnage gpus` lists them all; a part of a name is not a name")]);
                return Status::BadInput;
            }
        },
    };
    list.retain(keep);
    if list.is_empty() {
        out.complain(&[Diagnostic::error("no-gpu", "no card passes these filters")]);
        return Status::DoesNotFit;
    }
    let one = a.name.is_some() && head.is_none();
    out.print(&match a.format {
        TableFormat::Json => tonnage_report::json::pretty(
            &json!({"schema": "tonnage.gpus/1", "gpus": list.iter().map(row).collect::<Vec<_>>()}),
        ),
        TableFormat::Csv => csv(&list),
        TableFormat::Md => markdown(&list, out),
        TableFormat::Text if one => list.first().map_or_else(String::new, |g| card(g, out)),
        TableFormat::Text => head.unwrap_or_default() + &table(&list, out),
    });
    Status::Ok
}

/// A card as JSON: every figure with its source.
fn row(g: &Gpu) -> Value {
    let stack = Stack::default();
    let u = usable(g, &stack).ok();
    let o = device_overhead(g, &stack).ok();
    let r = &g.rates;
    json!({
        "id": g.id, "name": g.name, "vendor": vendor(g.vendor), "architecture": g.architecture,
        "compute_capability": g.compute_capability.map(|c| format!("{}.{}", c.major, c.minor)), "gfx": g.gfx,
        "marketed_gb": g.memory_gb_marketed.get(), "driver_total_mib": g.memory_mib_reported, "memory_type": g.memory_type,
        "usable_bytes": u.as_ref().map(|u| u.expected), "usable_low_bytes": u.as_ref().map(|u| u.low), "usable_high_bytes": u.as_ref().map(|u| u.high),
        "usable_source": u.map(|u| u.source),
        "context_bytes": o.as_ref().map(|o| o.context.expected), "libraries_bytes": o.map(|o| o.libraries.expected),
        "bandwidth_gb_s": g.bandwidth_gb_s,
        "dense_tflops": {"fp32": r.fp32, "tf32": r.tf32, "fp16": r.fp16, "bf16": r.bf16, "fp8": r.fp8, "int8": r.int8, "fp4": r.fp4},
        "bf16": g.bf16, "fp8": g.fp8, "flash_attention_2": g.flash_attention2,
        "interconnect": g.interconnect, "tdp_w": g.tdp_w, "multiprocessors": g.sm_count, "release_year": g.release_year,
        "aliases": g.aliases, "source": g.source, "confidence": g.confidence, "recorded": g.recorded, "notes": g.notes,
    })
}

fn show(n: Option<u64>, out: &Output) -> String {
    n.map_or_else(
        || "-".into(),
        |n| Bytes(n).display(out.style.units).to_string(),
    )
}

/// A card's lines of a table: id, marketed, usable, context with libraries, name.
fn cells(g: &Gpu, out: &Output) -> [String; 5] {
    let stack = Stack::default();
    let context = device_overhead(g, &stack)
        .ok()
        .map(|o| o.context.expected + o.libraries.expected);
    [
        g.id.clone(),
        format!("{} GB", g.memory_gb_marketed),
        show(usable(g, &stack).ok().map(|u| u.expected), out),
        show(context, out),
        g.name.clone(),
    ]
}

fn table(list: &[Gpu], out: &Output) -> String {
    let width = list.iter().map(|g| g.id.len()).max().unwrap_or(0).max(2);
    let mut t = format!(
        "{:<width$}  {:>8}{:>13}{:>13}  {}\n",
        "id", "marketed", "usable", "context", "name"
    );
    for g in list {
        let [id, marketed, usable, context, name] = cells(g, out);
        t.push_str(&format!(
            "{id:<width$}  {marketed:>8}{usable:>13}{context:>13}  {name}\n"
        ));
    }
    t.push_str(
        "usable: what CUDA calls total, expected\ncontext: with the libraries of a training step\n",
    );
    t
}

fn markdown(list: &[Gpu], out: &Output) -> String {
    let mut t = String::from(
        "| id | marketed | usable | context and libraries | name |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    for g in list {
        t.push_str(&format!("| {} |\n", cells(g, out).join(" | ")));
    }
    t
}

fn csv(list: &[Gpu]) -> String {
    let mut t = String::from(
        "id,name,vendor,marketed_gb,usable_bytes,context_bytes,libraries_bytes,bandwidth_gb_s,bf16_dense_tflops,compute_capability,source,recorded\n",
    );
    for g in list {
        let v = row(g);
        let f: Vec<String> = [
            "id",
            "name",
            "vendor",
            "marketed_gb",
            "usable_bytes",
            "context_bytes",
            "libraries_bytes",
            "bandwidth_gb_s",
        ]
        .iter()
        .map(|k| &v[*k])
        .chain([
            &v["dense_tflops"]["bf16"],
            &v["compute_capability"],
            &v["source"],
            &v["recorded"],
        ])
        .map(|x| match x {
            Value::Null => String::new(),
            Value::String(s) => tonnage_report::csv::field(s),
            x => x.to_string(),
        })
        .collect();
        t.push_str(&f.join(","));
        t.push('\n');
    }
    t
}

/// Everything about one card.
fn card(g: &Gpu, out: &Output) -> String {
    let stack = Stack::default();
    let width = out.style.width;
    let mut t = format!("{} ({})\n", g.name, g.id);
    let mut line = |name: &str, value: String| {
        if value.is_empty() {
            return;
        }
        // long values continue under themselves
        let (mut lines, mut now) = (vec![], String::new());
        for word in value.split_whitespace() {
            if !now.is_empty() && now.len() + word.len() + 22 > width {
                lines.push(std::mem::take(&mut now));
            }
            if !now.is_empty() {
                now.push(' ');
            }
            now.push_str(word);
        }
        lines.push(now);
        for (i, l) in lines.iter().enumerate() {
            t.push_str(&format!("  {:<18}{l}\n", if i == 0 { name } else { "" }));
        }
    };
    line(
        "marketed",
        format!("{} GB {}", g.memory_gb_marketed, g.memory_type),
    );
    if let Some(m) = g.memory_mib_reported {
        let seen = if g.reported_seen {
            "seen in a public listing"
        } else {
            "by a sibling's pattern"
        };
        line("driver's total", format!("{m} MiB ({seen})"));
    }
    match usable(g, &stack) {
        Ok(u) => line(
            "usable",
            format!(
                "{}; {} to {}: {}",
                show(Some(u.expected), out),
                show(Some(u.low), out),
                show(Some(u.high), out),
                u.source
            ),
        ),
        Err(e) => line("usable", format!("not known: {e}")),
    }
    if let Ok(o) = device_overhead(g, &stack) {
        line(
            "context",
            format!(
                "{}, libraries {}",
                show(Some(o.context.expected), out),
                show(Some(o.libraries.expected), out)
            ),
        );
    }
    let c = g.compute_capability.map_or_else(
        || g.gfx.clone().unwrap_or_default(),
        |c| format!("compute capability {}.{}", c.major, c.minor),
    );
    line("architecture", format!("{} {c}", g.architecture));
    let r = &g.rates;
    let rates = [
        ("fp32", r.fp32),
        ("tf32", r.tf32),
        ("fp16", r.fp16),
        ("bf16", r.bf16),
        ("fp8", r.fp8),
        ("int8", r.int8),
        ("fp4", r.fp4),
    ];
    let rates: Vec<String> = rates
        .iter()
        .filter_map(|(n, v)| v.map(|v| format!("{n} {v}")))
        .collect();
    line("dense TFLOP/s", rates.join(", "));
    line(
        "bandwidth",
        g.bandwidth_gb_s
            .map_or(String::new(), |b| format!("{b} GB/s")),
    );
    line("links", g.interconnect.clone());
    line("power", g.tdp_w.map_or(String::new(), |w| format!("{w} W")));
    line("also named", g.aliases.join(", "));
    let (instances, _) = out.catalogs.instances();
    let mut rent: Vec<String> = instances
        .iter()
        .filter(|i| i.gpu_id == g.id)
        .map(|i| i.id())
        .collect();
    let more = rent.len().saturating_sub(8);
    rent.truncate(8);
    line(
        "rented as",
        rent.join(", ")
            + &if more > 0 {
                format!(" and {more} more (tonnage instances --gpu {})", g.id)
            } else {
                String::new()
            },
    );
    line("notes", g.notes.clone());
    line(
        "source",
        format!(
            "{}{}",
            g.source,
            if g.recorded.is_empty() {
                String::new()
            } else {
                format!(", recorded {}", g.recorded)
            }
        ),
    );
    t
}
