//! `tonnage estimate`

use crate::Status;
use crate::args::{EstimateArgs, Format, LevelsProfile, Method};
use crate::jobs;
use crate::output::Output;
use crate::workers::Threads;
use tonnage_core::agi2_compat;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::job::to_toml;
use tonnage_core::verdict::Outcome;
use tonnage_core::workers::Crew;
use tonnage_report::{csv, explain, json, markdown, svg, text};

pub fn run(a: &EstimateArgs, out: &Output) -> Status {
    if !a.command.is_empty() {
        return super::serving::estimate(a, out);
    }
    if a.job.is_none() && a.settings.given.is_empty() {
        out.complain(&[tonnage_core::Diagnostic::error(
            "missing",
            "no job: give a file, or flags such as --model gpt2 --seq-len 1024",
        )]);
        return Status::Usage;
    }
    if a.method == Method::Agi2 {
        return agi2(a, out);
    }
    let job = match jobs::load(a.job.as_deref(), &a.settings) {
        Ok(j) => j,
        Err((bad, status)) => {
            out.complain(&bad);
            return status;
        }
    };
    if a.write_job {
        out.print(&to_toml(&job));
        return Status::Ok;
    }
    let (gpu, present) = match crate::here::asked(a.gpu.as_deref(), &out.catalogs.gpus) {
        Ok(g) => g,
        Err(d) => {
            out.complain(&[d]);
            return Status::Unavailable;
        }
    };
    let options = Options {
        workers: Crew(&Threads),
        gpu,
        present,
        advice: a.advice,
        expected_only: a.expected_only || a.explain.is_some(),
        gpus: out.catalogs.gpus.clone(),
    };
    let e = match estimate(&job, &options) {
        Ok(e) => e,
        Err(bad) => {
            out.complain(&job.notes);
            out.complain(&bad);
            return jobs::status_of(&bad);
        }
    };
    let f = &e.footprint;
    if let Some(line) = &a.explain {
        return match explain::explain(f, line, &out.style) {
            Ok(t) => {
                out.print(&t);
                Status::Ok
            }
            Err(e) => {
                out.complain(&[tonnage_core::Diagnostic::error("unknown-line", e)]);
                Status::Usage
            }
        };
    }
    let mut t = match a.format {
        Format::Text => text::footprint(f, &out.style),
        Format::Json => json::footprint(f),
        Format::Md => markdown::footprint(f, &out.style),
        Format::Csv => csv::footprint(f),
        Format::Svg => svg::timeline(f, &out.style),
    };
    if a.format == Format::Text {
        t.push_str(&super::calibrate::note(&job, f, out));
    }
    if a.levels == Some(LevelsProfile::Agi2) && a.format == Format::Text {
        let gib = f.peak.device.expected as f64 / f64::from(1u32 << 30);
        let l = agi2_compat::level(gib);
        t.push_str(&format!(
            "\nAdvice by AGI2's levels (4, 8, 12 GB) for {gib:.2}: {}\n",
            l.text
        ));
    }
    out.print(&t);
    match f.decisive() {
        Some(v) if v.outcome == Outcome::No => Status::DoesNotFit,
        _ => Status::Ok,
    }
}

/// AGI2's own formula, labelled as such.
fn agi2(a: &EstimateArgs, out: &Output) -> Status {
    let file = match a.job.as_deref().map(jobs::read_text).transpose() {
        Ok(t) => t,
        Err(bad) => {
            out.complain(&bad);
            return Status::BadInput;
        }
    };
    let name = a
        .job
        .as_ref()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    let input = match agi2_compat::Input::read(
        file.as_deref().map(|t| (name.as_str(), t)),
        &a.settings.given,
    ) {
        Ok(i) => i,
        Err(bad) => {
            out.complain(&bad);
            return Status::BadInput;
        }
    };
    let result = agi2_compat::estimate(&input);
    out.print(&match a.format {
        Format::Json => json::pretty(&serde_json::json!({"schema": "tonnage.agi2/1", "method": agi2_compat::LABEL, "input": input, "output": result})),
        _ => agi2_compat::text(&input, &result),
    });
    Status::Ok
}
