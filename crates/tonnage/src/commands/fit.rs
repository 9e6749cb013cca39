//! `tonnage fit` of a serving engine.

use super::serving::{LlamaRun, VllmRun, core, failed, refuse, said};
use crate::Status;
use crate::args::{FitArgs, ListFormat};
use crate::headers;
use crate::output::Output;
use tonnage_core::Diagnostic;
use tonnage_core::fit::serving::{self as fits, Candidate, Fits};
use tonnage_core::serve::command::{self, Command};
use tonnage_report::{json, serving};

pub fn run(a: &FitArgs, out: &Output) -> Status {
    match found(a) {
        Ok(f) => {
            out.print(&match a.format {
                ListFormat::Text => serving::fits(&f, &out.style),
                ListFormat::Json => json::pretty(&f),
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

fn found(a: &FitArgs) -> Result<Fits, (Diagnostic, Status)> {
    let usage = |m: &str, help: &str| failed(Diagnostic::error("bad-command", m).help(help));
    if a.command.is_empty() {
        return Err(match &a.model {
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
    let Some(gpu) = a.gpu.as_deref() else {
        return Err(usage("--gpu ID is needed", "tonnage gpus lists them"));
    };
    match command::parse(&a.command).map_err(failed)? {
        Command::Llama(l) => {
            let run = LlamaRun::new(*l, Some(gpu), a.gpu_count)?;
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
        Command::Vllm(v) => {
            let run = VllmRun::new(*v, Some(gpu))?;
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
