//! `tonnage diff`: where a prediction and a recorded trace part.

use crate::Status;
use crate::args::{ListFormat, SettingFlags};
use crate::commands::dry_run::device;
use crate::dry::recording;
use crate::jobs;
use crate::output::Output;
use clap::Args;
use std::path::PathBuf;
use tonnage_core::Diagnostic;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::job::DEFAULT_GPU;
use tonnage_report::json as as_json;
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_trace::again;
use tonnage_trace::diff::{Diff, Row, Side, diff, title};
use tonnage_trace::footprint::footprint;
use tonnage_units::{ByteDelta, Bytes};

/// `diff`
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// A job, or the JSON that estimate gave
    pub prediction: PathBuf,
    /// A trace of dry-run or measure
    pub trace: PathBuf,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The card (default: the trace's)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// Lines of each table
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rows: usize,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

/// Runs it.
pub fn run(a: &DiffArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok(d) => {
            let same = d.levels.iter().all(|r| r.difference == 0);
            out.print(&match a.format {
                ListFormat::Json => as_json::pretty(&d),
                ListFormat::Text => text(&d, a.rows, out),
            });
            if same { Status::Ok } else { Status::DoesNotFit }
        }
        Err((bad, s)) => {
            out.complain(&bad);
            s
        }
    }
}

fn answer(a: &DiffArgs, out: &Output) -> Result<Diff, (Vec<Diagnostic>, Status)> {
    let one = |d| (vec![d], Status::BadInput);
    let trace = recording::load(&a.trace).map_err(one)?;
    let recorded_on = if trace.header.gpu.is_empty() {
        DEFAULT_GPU
    } else {
        &trace.header.gpu
    };
    let gpu = a.gpu.as_deref().unwrap_or(recorded_on);
    let card = device(gpu, &out.catalogs.gpus).map_err(one)?;
    let mut recorded = Side::of(&footprint(&trace, &card));
    if !trace.has_segments() {
        // blocks only: what they make the allocator hold
        let config = AllocatorConfig::parse(&trace.header.settings).unwrap_or_default();
        let held = again::replay(&trace, &config, None).peak.reserved;
        recorded.levels.insert("reserved".into(), held);
    }
    let text = jobs::read_text(&a.prediction).map_err(|d| (d, Status::BadInput))?;
    let footprint_json =
        text.trim_start().starts_with('{') && text.contains("\"tonnage.footprint/");
    let predicted = if footprint_json {
        Side::read(&text).map_err(|e| {
            one(Diagnostic::error(
                "bad-footprint",
                format!("{}: {e}", a.prediction.display()),
            ))
        })?
    } else {
        let job = jobs::load(Some(&a.prediction), &a.settings)?;
        let options = Options {
            gpu: Some(gpu.into()),
            expected_only: true,
            ..Options::default()
        };
        let e = estimate(&job, &options).map_err(|d| {
            let s = jobs::status_of(&d);
            (d, s)
        })?;
        Side::of(&e.footprint)
    };
    Ok(diff(&predicted, &recorded))
}

fn text(d: &Diff, rows: usize, out: &Output) -> String {
    let b = |n: u64| Bytes(n).display(out.style.units).to_string();
    let delta = |n: i64| {
        ByteDelta(i128::from(n))
            .display(out.style.units)
            .to_string()
    };
    let same = d.levels.iter().all(|r| r.difference == 0);
    let mut t = if same {
        format!("{} and {} agree to the byte.\n", d.predicted, d.recorded)
    } else {
        format!("{} against {}:\n", d.predicted, d.recorded)
    };
    let line = |name: &str, r: &Row| {
        format!(
            "{name:<46}{:>13}{:>13}{:>15}\n",
            b(r.predicted),
            b(r.recorded),
            delta(r.difference)
        )
    };
    t.push_str(&format!(
        "\n{:<46}{:>13}{:>13}{:>15}\n",
        "peak", "predicted", "recorded", "difference"
    ));
    for r in &d.levels {
        t.push_str(&line(&r.what, r));
    }
    if d.predicted_peak_phase != d.recorded_peak_phase {
        t.push_str(&format!(
            "The peaks are at different times: predicted in {}, recorded in {}.\n",
            d.predicted_peak_phase, d.recorded_peak_phase
        ));
    }
    if !d.components.is_empty() {
        t.push_str("\nBy component, at the peak of allocated\n");
        for r in d.components.iter().take(rows) {
            t.push_str(&line(title(&r.what), r));
        }
    }
    if !d.modules.is_empty() {
        t.push_str("\nBy module\n");
        for r in d.modules.iter().take(rows) {
            t.push_str(&line(&format!("{}, {}", r.what, title(&r.component)), r));
        }
        if d.modules.len() > rows {
            t.push_str(&format!("({} more; --rows N)\n", d.modules.len() - rows));
        }
    }
    t
}
