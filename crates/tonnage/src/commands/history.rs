//! `tonnage history`

use super::watch::field;
use crate::Status;
use crate::observed::{self, Summary};
use crate::output::Output;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tonnage_core::Diagnostic;
use tonnage_host::record::{self, RecordError, Recording, RunHead, Store};
use tonnage_units::Bytes;

/// `history`
#[derive(Args, Debug)]
pub struct HistoryArgs {
    #[command(subcommand)]
    pub what: Option<What>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Text, global = true)]
    pub format: Format,
    /// At most so many, the latest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub most: usize,
}

/// What of it.
#[derive(Subcommand, Debug)]
pub enum What {
    /// What one run took, against its prediction
    Show { run: i64 },
    /// Runs side by side
    Compare {
        #[arg(required = true, num_args = 2..)]
        runs: Vec<i64>,
    },
    /// Every sample of a run (--format csv or json)
    Export { run: i64 },
    /// A run as a record of `tonnage validate`
    Record { run: i64 },
}

/// `--format` of history
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Csv,
}

pub fn run(a: &HistoryArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok(t) => {
            out.print(&t);
            Status::Ok
        }
        Err((d, s)) => {
            out.complain(&[d]);
            s
        }
    }
}

type Failed = (Diagnostic, Status);

fn said(e: &RecordError) -> Failed {
    let (code, status) = match e {
        RecordError::NoRun(_) => ("unknown-run", Status::BadInput),
        RecordError::NoFolder | RecordError::Later { .. } => ("unavailable", Status::Unavailable),
        RecordError::Database { .. } => ("unreadable", Status::BadInput),
    };
    (Diagnostic::error(code, e.to_string()), status)
}

fn usage(what: &str) -> Failed {
    (Diagnostic::error("bad-flag", what), Status::Usage)
}

fn answer(a: &HistoryArgs, out: &Output) -> Result<String, Failed> {
    let folder = record::folder().ok_or_else(|| said(&RecordError::NoFolder))?;
    let s = Store::open(&folder).map_err(|e| said(&e))?;
    let load = |run: i64| s.load(run).map_err(|e| said(&e));
    Ok(match &a.what {
        None => {
            let all = s.list(a.most).map_err(|e| said(&e))?;
            match a.format {
                Format::Text => listed(&all, out),
                Format::Json => pretty(&json!({"schema": "tonnage.history/1", "runs": all})),
                Format::Csv => return Err(usage("the list is text or json; export writes csv")),
            }
        }
        Some(What::Show { run }) => {
            let sum = observed::summary(&load(*run)?);
            match a.format {
                Format::Text => observed::text(&sum, &out.style),
                Format::Json => pretty(&sum),
                Format::Csv => return Err(usage("show is text or json; export writes csv")),
            }
        }
        Some(What::Compare { runs }) => {
            let all = runs
                .iter()
                .map(|r| load(*r).map(|r| observed::summary(&r)))
                .collect::<Result<Vec<_>, _>>()?;
            match a.format {
                Format::Text => compared(&all, out),
                Format::Json => pretty(&json!({"schema": "tonnage.history/1", "compared": all})),
                Format::Csv => return Err(usage("compare is text or json")),
            }
        }
        Some(What::Export { run }) => {
            let r = load(*run)?;
            match a.format {
                Format::Csv => csv(&r),
                Format::Json | Format::Text => pretty(
                    &json!({"schema": "tonnage.recording/1", "run": r.run, "devices": r.devices, "samples": r.points}),
                ),
            }
        }
        Some(What::Record { run }) => {
            let r = load(*run)?;
            format!("{}\n", torch_run(&r).map_err(|e| usage(&e))?)
        }
    })
}

fn pretty<T: serde::Serialize>(v: &T) -> String {
    tonnage_report::json::pretty(v)
}

fn shown(ms: u64) -> String {
    // seconds since 1970 as a date, by the civil calendar (days from 0000-03-01)
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000 / 1000);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, (mp + 2) % 12 + 1);
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

fn end(code: Option<i32>, signal: Option<i32>, ended: bool) -> String {
    match (code, signal) {
        (Some(c), _) => format!("status {c}"),
        (_, Some(s)) => format!("signal {s}"),
        _ if ended => "ended".into(),
        _ => "no end".into(),
    }
}

fn listed(all: &[RunHead], out: &Output) -> String {
    if all.is_empty() {
        return "no recordings yet: tonnage run -- COMMAND makes one\n".into();
    }
    let mut t = format!(
        "{:>5}  {:20}  {:10}  {:>8}  {:>12}  command\n",
        "run", "begun", "end", "samples", "peak"
    );
    for r in all {
        let peak = r.peak_own_bytes.filter(|b| *b > 0).map_or_else(
            || "-".into(),
            |b| Bytes(b).display(out.style.units).to_string(),
        );
        let mut command = r.command.join(" ");
        let room = out.style.width.saturating_sub(65).max(20);
        if command.chars().count() > room {
            command = command.chars().take(room - 3).collect::<String>() + "...";
        }
        let _ = writeln!(
            t,
            "{:>5}  {:20}  {:10}  {:>8}  {peak:>12}  {command}",
            r.id,
            shown(r.begun_unix_ms),
            end(r.exit_code, r.signal, r.ended_unix_ms.is_some()),
            r.samples
        );
    }
    t
}

fn compared(all: &[Summary], out: &Output) -> String {
    let amount = |b: Option<u64>| {
        b.map_or_else(
            || "-".into(),
            |b| Bytes(b).display(out.style.units).to_string(),
        )
    };
    let mut t = format!("{:18}", "run");
    for s in all {
        let _ = write!(t, "{:>16}", s.id);
    }
    t.push('\n');
    type Get = fn(&Summary) -> Option<u64>;
    let rows: [(&str, Get); 8] = [
        ("allocated", |s| s.devices.first()?.allocated.measured_bytes),
        ("  predicted", |s| {
            s.devices.first()?.allocated.predicted_bytes
        }),
        ("reserved", |s| s.devices.first()?.reserved.measured_bytes),
        ("  predicted", |s| {
            s.devices.first()?.reserved.predicted_bytes
        }),
        ("device", |s| s.devices.first()?.device.measured_bytes),
        ("  predicted", |s| s.devices.first()?.device.predicted_bytes),
        ("least free", |s| s.devices.first()?.least_free_bytes),
        ("host resident", |s| s.peak_host_resident_bytes),
    ];
    for (name, get) in rows {
        let _ = write!(t, "{name:18}");
        for s in all {
            let _ = write!(t, "{:>16}", amount(get(s)));
        }
        t.push('\n');
    }
    let _ = write!(t, "{:18}", "end");
    for s in all {
        let _ = write!(t, "{:>16}", end(s.exit_code, s.signal, s.ended));
    }
    t.push('\n');
    for s in all {
        let _ = writeln!(t, "{}: {}", s.id, s.command.join(" "));
    }
    t
}

fn csv(r: &Recording) -> String {
    let mut t = String::from(
        "at_unix_ms,device,name,used_bytes,free_bytes,own_bytes,allocated_bytes,reserved_bytes,peak_allocated_bytes,peak_reserved_bytes,requested_bytes,inactive_split_bytes,alloc_retries,ooms,step,host_resident_bytes,host_available_bytes\n",
    );
    for p in &r.points {
        let name = usize::try_from(p.device)
            .ok()
            .and_then(|i| r.devices.get(i))
            .map_or(String::new(), |d| field(&d.name));
        let _ = write!(t, "{},{},{name}", p.at_unix_ms, p.device);
        for v in [
            p.used_bytes,
            p.free_bytes,
            p.own_bytes,
            p.allocated_bytes,
            p.reserved_bytes,
            p.peak_allocated_bytes,
            p.peak_reserved_bytes,
            p.requested_bytes,
            p.inactive_split_bytes,
            p.alloc_retries,
            p.ooms,
            p.step,
            p.host_resident_bytes,
            p.host_available_bytes,
        ] {
            let _ = write!(t, ",{}", v.map_or(String::new(), |v| v.to_string()));
        }
        t.push('\n');
    }
    t
}

/// The recording as a record that `validate` reads: the job as it was given, and the allocator's own peaks.
fn torch_run(r: &Recording) -> Result<Value, String> {
    let sum = observed::summary(r);
    let id = r.run.id;
    let Some(job) = &r.run.job else {
        return Err(format!(
            "run {id} has no job: tonnage run --job FILE records one"
        ));
    };
    let Some(d) = sum.devices.first() else {
        return Err(format!("run {id} used no device"));
    };
    let (Some(allocated), Some(reserved)) = (d.allocated.measured_bytes, d.reserved.measured_bytes)
    else {
        return Err(format!(
            "run {id}: the process did not publish its allocator's figures (docs/observe.md), and the driver's are not the allocator's"
        ));
    };
    let gpu = tonnage_catalog::gpu(&d.name).map_or_else(|_| d.name.clone(), |g| g.id);
    let mut versions = json!({});
    if let Some((name, version)) = sum.framework.as_deref().and_then(|f| f.split_once(' ')) {
        versions[name] = version.into();
    }
    let requested = r
        .of(i64::try_from(d.number).unwrap_or(0))
        .filter_map(|p| p.requested_bytes)
        .max();
    let mut v = json!({
        "schema": "torch-run",
        "id": format!("run-{id}-{}", r.run.begun_unix_ms),
        "config": {"kind": "train", "gpu": gpu, "job": job},
        "versions": versions,
        "peak_allocated_bytes": allocated,
        "peak_reserved_bytes": reserved,
        "device_peak_bytes": d.device.measured_bytes,
        "command": r.run.command,
    });
    if let Some(b) = requested {
        v["sampled_requested_bytes"] = b.into();
    }
    Ok(v)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::shown(0), "1970-01-01 00:00:00Z");
        assert_eq!(super::shown(951_827_696_000), "2000-02-29 12:34:56Z");
        assert_eq!(super::shown(1_795_219_199_000), "2026-11-20 23:59:59Z");
    }
}
