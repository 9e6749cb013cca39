//! `tonnage compare`

use crate::Status;
use crate::args::{CompareArgs, Format};
use crate::jobs;
use crate::output::Output;
use crate::workers::Threads;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::workers::Crew;
use tonnage_core::{Diagnostic, Job};
use tonnage_report::table::{self, Comparison, Entry};

/// More jobs than this are a mistake.
const MOST: usize = 1000;

pub fn run(a: &CompareArgs, out: &Output) -> Status {
    if a.jobs.is_empty() && a.settings.given.is_empty() {
        out.complain(&[Diagnostic::error(
            "missing",
            "no job: give files, or flags such as --model gpt2 --sweep seq-len=512,1024",
        )]);
        return Status::Usage;
    }
    let mut jobs: Vec<(String, Job)> = Vec::new();
    let paths: Vec<Option<&std::path::Path>> = if a.jobs.is_empty() {
        vec![None]
    } else {
        a.jobs.iter().map(|p| Some(p.as_path())).collect()
    };
    let several = paths.len() > 1;
    for p in paths {
        match jobs::load(p, &a.settings) {
            Ok(j) => {
                let label = p
                    .and_then(|p| p.file_stem())
                    .map_or_else(|| j.title(), |s| s.to_string_lossy().into_owned());
                jobs.push((label, j));
            }
            Err((bad, status)) => {
                out.complain(&bad);
                return status;
            }
        }
    }
    for s in &a.sweep {
        jobs = match sweep(&jobs, s, several) {
            Ok(j) => j,
            Err(e) => {
                out.complain(&[Diagnostic::error("bad-sweep", e)]);
                return Status::Usage;
            }
        };
    }
    let cards = a.gpu.len();
    if cards > 1 && cards != jobs.len() {
        out.complain(&[Diagnostic::error(
            "bad-flag",
            format!(
                "--gpu is given {cards} times for {} jobs: once for all, or once for each",
                jobs.len()
            ),
        )]);
        return Status::Usage;
    }
    // the card, and what of it is free, for each `--gpu` (none: nobody asked)
    let mut asked = Vec::new();
    for i in 0..cards.max(1) {
        match crate::here::asked(a.gpu.get(i).map(String::as_str), &out.catalogs.gpus) {
            Ok(g) => asked.push(g),
            Err(d) => {
                out.complain(&[d]);
                return Status::Unavailable;
            }
        }
    }
    let mut status = Status::Ok;
    let entries: Vec<Entry> = jobs
        .into_iter()
        .enumerate()
        .map(|(i, (label, job))| {
            let (gpu, present) = asked[i % asked.len()].clone();
            let options = Options {
                gpu,
                present,
                advice: false,
                expected_only: true,
                gpus: out.catalogs.gpus.clone(),
                workers: Crew(&Threads),
            };
            let footprint = estimate(&job, &options)
                .map(|e| e.footprint)
                .map_err(|bad| {
                    status = jobs::status_of(&bad);
                    bad.first().map_or_else(String::new, |d| d.message.clone())
                });
            Entry { label, footprint }
        })
        .collect();
    let answered = entries.iter().any(|e| e.footprint.is_ok());
    let c = Comparison {
        entries,
        claims: a.claims.clone(),
    };
    out.print(&match a.format {
        Format::Text => table::text(&c, &out.style),
        Format::Json => table::json(&c),
        Format::Md => table::markdown(&c, &out.style),
        Format::Csv => tonnage_report::csv::comparison(&c),
        Format::Svg => tonnage_report::chart::comparison(&c, &out.style),
    });
    // a row without an answer says so itself; only a table without any answer is a failure
    if answered { Status::Ok } else { status }
}

/// Every job with every value of `setting=a,b,c`; `one+two=a,b` gives both settings each value.
fn sweep(jobs: &[(String, Job)], spec: &str, several: bool) -> Result<Vec<(String, Job)>, String> {
    let (name, values) = spec
        .split_once('=')
        .ok_or_else(|| format!("--sweep {spec}: SETTING=A,B,... is expected"))?;
    let mut out = Vec::new();
    for (label, job) in jobs {
        for v in values.split(',').map(str::trim).filter(|v| !v.is_empty()) {
            let mut j = job.clone();
            for one in name.split('+') {
                j.set_text(one.trim(), v)?;
            }
            let model = |n: &str| {
                matches!(
                    n.trim(),
                    "model" | "model.id" | "revision" | "model.revision"
                )
            };
            if name.split('+').any(model) {
                // another model may be one that is not built in
                crate::models::resolve(&mut j, None)
                    .map_err(|bad| bad.first().map_or_else(String::new, |d| d.message.clone()))?;
            }
            // the swept setting is no longer uncertain
            j.uncertain
                .retain(|u| !name.split('+').any(|n| u.key.ends_with(n.trim())));
            let first = name.split('+').next().unwrap_or(name);
            let short = first.rsplit('.').next().unwrap_or(first);
            let swept_before = label.contains('=');
            out.push((
                if several || swept_before {
                    format!("{label} {short}={v}")
                } else {
                    format!("{short}={v}")
                },
                j,
            ));
            if out.len() > MOST {
                return Err(format!("more than {MOST} combinations"));
            }
        }
    }
    if out.is_empty() {
        Err(format!("--sweep {spec}: no values"))
    } else {
        Ok(out)
    }
}
