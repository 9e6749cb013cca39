//! `tonnage fit`: of a serving engine here, of training in `fit_training`.

use super::serving::{LlamaRun, VllmRun, core, failed, refuse, said};
use crate::Status;
use crate::args::{FitArgs, TableFormat};
use crate::headers;
use crate::output::Output;
use tonnage_catalog::Gpus;
use tonnage_core::Diagnostic;
use tonnage_core::fit::serving::{self as fits, Candidate, Fits};
use tonnage_core::serve::command::{self, Command};
use tonnage_report::{json, serving};

/// Neither a job file nor a name of anything.
fn unknown(name: &str) -> bool {
    let file = std::path::Path::new(name);
    let known = |e: &std::ffi::OsStr| {
        ["toml", "json", "yaml", "yml"]
            .iter()
            .any(|k| e.eq_ignore_ascii_case(k))
    };
    name != "-" && !file.extension().is_some_and(known) && !file.is_file()
}

pub fn run(a: &FitArgs, out: &Output) -> Status {
    if a.command.is_empty() && !a.job.as_deref().is_some_and(unknown) {
        return super::fit_training::run(a, out);
    }
    match found(a, &out.catalogs.gpus) {
        Ok(f) => {
            out.print(&match a.format {
                TableFormat::Json => json::pretty(&f),
                _ => serving::fits(&f, &out.style),
            });
            if f.any() {
                Status::Ok
            } else {
                Status::DoesNotFit
            }
        }
        Err(f) => refuse(out, f),
    }
}

fn found(a: &FitArgs, gpus: &Gpus) -> Result<Fits, (Diagnostic, Status)> {
    let usage = |m: &str, help: &str| failed(Diagnostic::error("bad-command", m).help(help));
    if a.command.is_empty() {
        return Err(match &a.job {
            Some(m) => {
                let near = tonnage_units::nearest(m, headers::names());
                let help = near.map_or_else(
                    || "a .gguf file, a recorded name such as qwen3-8b.Q4_K_M, or -- vllm serve MODEL".into(),
                    |n| format!("did you mean {n}?"),
                );
                usage(
                    &format!("{m} is neither a model file nor a recorded model"),
                    &help,
                )
            }
            None => usage(
                "no model",
                "tonnage fit qwen3-8b.Q4_K_M --gpu rtx-3060-12gb",
            ),
        });
    }
    let gpu = match a.gpu.as_deref() {
        None => crate::here::default_name(gpus),
        g => g,
    };
    let Some(gpu) = gpu else {
        return Err(usage("--gpu ID is needed", "tonnage gpus lists them"));
    };
    match command::parse(&a.command).map_err(failed)? {
        Command::Llama(l) => {
            let run = LlamaRun::new(*l, Some(gpu), a.gpu_count, gpus)?;
            if run.cards.is_empty() {
                return Err(usage(
                    "no card is asked about",
                    "--gpu ID without --device none",
                ));
            }
            let others = others(&run.name);
            fits::llamacpp(&run.model, &run.command, &run.cards, &run.name, &others)
                .map_err(|e| said(&run.name, e))
        }
        Command::Sglang(_) => Err(usage(
            "fit solves for vllm serve and llama-server",
            "`tonnage estimate --gpu ID -- sglang serve ...` prints SGLang's pool",
        )),
        Command::Vllm(v) => {
            let run = VllmRun::new(*v, Some(gpu), gpus)?;
            fits::vllm(&run.start, &run.command, &run.card).map_err(|e| core(&run.command.model, e))
        }
    }
}

/// The same model in all quantisations that the program carries.
fn others(name: &str) -> Vec<Candidate> {
    let Some((model, _)) = name.rsplit_once('.').filter(|_| headers::known(name)) else {
        return vec![];
    };
    headers::names()
        .filter(|n| n.rsplit_once('.').is_some_and(|(m, _)| m == model))
        .filter_map(|n| {
            Some(Candidate {
                name: n.into(),
                model: headers::read(n)?,
            })
        })
        .collect()
}
