//! `tonnage estimate` of a serving engine's command line, or of its model file.

use crate::Status;
use crate::args::{EstimateArgs, Format};
use crate::headers;
use crate::jobs;
use crate::models;
use crate::output::Output;
use std::path::Path;
use tonnage_catalog::Gpus;
use tonnage_core::serve::Serving;
use tonnage_core::serve::command::llamacpp::{Llama, Tool};
use tonnage_core::serve::command::vllm::Vllm;
use tonnage_core::serve::command::{self, Command};
use tonnage_core::serve::llamacpp::fit::fit;
use tonnage_core::serve::llamacpp::{self, Error};
use tonnage_core::serve::llamacpp_answer::{Question, answer};
use tonnage_core::serve::sglang;
use tonnage_core::serve::vllm_answer;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_core::{CoreError, Diagnostic};
use tonnage_model::readers::gguf::Gguf;
use tonnage_report::serving;

/// A complaint with its exit status.
type Failed = (Diagnostic, Status);

pub fn estimate(a: &EstimateArgs, out: &Output) -> Status {
    if let Some(job) = &a.job {
        let message = format!(
            "{} and a command line: one of them is the job",
            job.display()
        );
        return refuse(out, (Diagnostic::error("two-jobs", message), Status::Usage));
    }
    let done = command::parse(&a.command)
        .map_err(failed)
        .and_then(|c| answered(c, a.gpu.as_deref(), a.gpu_count, &out.catalogs.gpus));
    let done = match done {
        Ok(x) => x,
        Err(f) => return refuse(out, f),
    };
    match a.format {
        Format::Text => out.print(&serving::text(&done, &out.style)),
        Format::Json => out.print(&serving::json(&done)),
        _ => {
            let message = "a serving engine's answer has the formats text and json";
            return refuse(
                out,
                (Diagnostic::error("bad-format", message), Status::Usage),
            );
        }
    }
    match done.outcome() {
        Some(Outcome::No) => Status::DoesNotFit,
        _ => Status::Ok,
    }
}

fn answered(
    c: Command,
    gpu: Option<&str>,
    count: Option<usize>,
    gpus: &Gpus,
) -> Result<Serving, Failed> {
    match c {
        Command::Llama(l) => {
            // the card that is here, as it is now, as for every verdict
            let here = || crate::here::default_name(gpus).filter(|_| !l.cpu_only);
            let gpu = gpu.or_else(here);
            let mut run = LlamaRun::new(*l, gpu, count, gpus)?;
            run.answer()
        }
        Command::Vllm(v) => {
            let run = VllmRun::new(*v, gpu, gpus)?;
            vllm_answer::answer(&run.start, &run.command, &run.card)
                .map_err(|e| core(&run.command.model, e))
        }
        Command::Sglang(s) => {
            let card = card(sized_by("SGLang", gpu, gpus)?, gpus)?;
            let config = config(&s.model, s.revision.as_deref())?;
            sglang::answer(&config, &s, &card).map_err(|e| core(&s.model, e))
        }
    }
}

/// The card that was named, or the one that is here.
fn sized_by<'a>(engine: &str, gpu: Option<&'a str>, gpus: &'a Gpus) -> Result<&'a str, Failed> {
    gpu.or_else(|| crate::here::default_name(gpus))
        .ok_or_else(|| {
            failed(
                Diagnostic::error(
                    "bad-command",
                    format!("{engine} sizes its cache by the card: --gpu ID is needed before `--`"),
                )
                .help("tonnage gpus lists them; for example --gpu rtx-4090"),
            )
        })
}

/// The exit status of a complaint about a command line.
pub fn failed(d: Diagnostic) -> Failed {
    let status = match d.code {
        "unsupported" | "unavailable" => Status::Unavailable,
        "bad-command" | "unknown-flag" | "unknown-engine" => Status::Usage,
        _ => Status::BadInput,
    };
    (d, status)
}

pub fn refuse(out: &Output, (d, status): Failed) -> Status {
    out.complain(&[d]);
    status
}

/// The card of that name, the user's own among them.
pub fn card(name: &str, gpus: &Gpus) -> Result<Device, Failed> {
    let bad = |code: &'static str, e: String| (Diagnostic::error(code, e), Status::BadInput);
    if name == crate::here::AUTO {
        let (_, now) =
            crate::here::asked(Some(name), gpus).map_err(|d| (d, Status::Unavailable))?;
        let now = now.ok_or_else(|| bad("unavailable", "no card is here".into()))?;
        return Ok(card(&now.gpu, gpus)?.as_it_is(&now));
    }
    let gpu = gpus
        .find(name)
        .map_err(|e| bad("unknown-gpu", e.to_string()))?;
    Device::of(gpu).map_err(|e| {
        (
            Diagnostic::error("unavailable", e.to_string()),
            Status::Unavailable,
        )
    })
}

/// A model file with a command line and the cards.
pub struct LlamaRun {
    pub command: Llama,
    pub model: Gguf,
    /// As the user named it.
    pub name: String,
    pub cards: Vec<Device>,
    pub notes: Vec<String>,
    /// The engine's own fit will do what is not predicted.
    pub fit_unknown: bool,
}

impl LlamaRun {
    pub fn new(
        mut l: Llama,
        gpu: Option<&str>,
        count: Option<usize>,
        gpus: &Gpus,
    ) -> Result<LlamaRun, Failed> {
        let (model, name, notes) = read(&mut l)?;
        let cpu = l.cpu_only || gpu == Some("none");
        let devices = if cpu {
            0
        } else {
            count.or(l.devices).unwrap_or(1)
        };
        if devices > 16 {
            let d = Diagnostic::error("bad-command", format!("{devices} devices; at most 16"));
            return Err(failed(d));
        }
        let cards = match gpu {
            Some(g) if !cpu => vec![card(g, gpus)?; devices],
            _ => vec![],
        };
        l.settings.devices = (0..devices)
            .map(|i| cards.get(i).map_or_else(llamacpp::Device::default, device))
            .collect();
        let vram = cards.iter().map(|c| c.usable.expected).sum();
        let trained = model.get("context_length").and_then(|v| v.as_u64());
        l.resolve(vram, trained.unwrap_or(0));
        Ok(LlamaRun {
            command: l,
            model,
            name,
            cards,
            notes,
            fit_unknown: false,
        })
    }

    /// What the engine's own fit makes of what was not given, with these cards.
    fn fit(&mut self) {
        let Some(r) = self.command.fit_request() else {
            return;
        };
        if self.cards.is_empty() {
            return;
        }
        match fit(&self.model, &self.command.settings, &r) {
            Ok(Some(f)) => self.command.fitted(&f),
            Ok(None) => {
                self.fit_unknown = true;
                self.notes.push("the engine's own fit (--fit on) would move experts to the host, which is not predicted: `tonnage dry-run -- llama-server ...` shows it".into());
            }
            // the answer says what is refused
            Err(_) => {}
        }
    }

    /// The answer for the settings as the engine's fit makes them.
    pub fn answer(&mut self) -> Result<Serving, Failed> {
        self.fit();
        self.answer_as_set()
    }

    /// The answer for the settings as they are.
    pub fn answer_as_set(&self) -> Result<Serving, Failed> {
        let l = &self.command;
        let q = Question {
            model: self.name.clone(),
            cards: self.cards.clone(),
            settings: l.chosen.clone(),
            not_memory: l.not_memory.clone(),
            launch: l.launch(&self.name),
            notes: self.notes.iter().chain(&l.notes).cloned().collect(),
        };
        answer(&self.model, &l.settings, q).map_err(|e| said(&self.name, e))
    }
}

/// A vLLM command line with model and card.
pub struct VllmRun {
    pub command: Vllm,
    pub start: vllm_answer::Start,
    pub card: Device,
}

impl VllmRun {
    pub fn new(v: Vllm, gpu: Option<&str>, gpus: &Gpus) -> Result<VllmRun, Failed> {
        let gpu = sized_by("vLLM", gpu, gpus)?;
        let card = card(gpu, gpus)?;
        let config = config(&v.model, v.revision.as_deref())?;
        let start = vllm_answer::resolve(&config, &v, &card).map_err(|e| core(&v.model, e))?;
        Ok(VllmRun {
            command: v,
            start,
            card,
        })
    }
}

/// The model's configuration: a folder, built in, the cache, or a hub.
fn config(model: &str, revision: Option<&str>) -> Result<serde_json::Value, Failed> {
    let bad = |code: &'static str, m: String| (Diagnostic::error(code, m), Status::BadInput);
    let path = Path::new(model);
    let files = if tonnage_host::is_model_folder(path) {
        Some(tonnage_host::folder(path).map_err(|e| failed(models::said(&e)))?)
    } else {
        models::find(model, revision).map_err(failed)?
    };
    match files {
        Some(f) => f
            .config
            .ok_or_else(|| bad("bad-model", format!("{model}: an adapter, not a model"))),
        None => {
            let m =
                tonnage_catalog::model(model).map_err(|e| bad("unknown-model", e.to_string()))?;
            serde_json::from_str(m.config()).map_err(|e| bad("bad-model", e.to_string()))
        }
    }
}

/// The library's error about a command line.
pub fn core(model: &str, e: CoreError) -> Failed {
    let (code, status) = match &e {
        CoreError::Unsupported(_) => ("unsupported", Status::Unavailable),
        CoreError::Invalid { field, .. } if field.starts_with("--") => {
            ("bad-command", Status::Usage)
        }
        _ => ("bad-model", Status::BadInput),
    };
    (Diagnostic::error(code, format!("{model}: {e}")), status)
}

/// The engine's view of a card.
fn device(card: &Device) -> llamacpp::Device {
    let c = card.gpu.compute_capability;
    llamacpp::Device {
        api: llamacpp::Api::Cuda {
            compute_capability: c
                .map_or(890, |c| u32::from(c.major) * 100 + u32::from(c.minor) * 10),
            multiprocessors: card.gpu.sm_count,
        },
        free_bytes: card.left().saturating_sub(card.overhead.context.expected),
    }
}

/// The library's error about a model.
pub fn said(name: &str, e: Error) -> Failed {
    match &e {
        Error::Unsupported(_) => (
            Diagnostic::error("unsupported", format!("{name}: {e}")),
            Status::Unavailable,
        ),
        Error::Setting { .. } => (
            Diagnostic::error("bad-command", e.to_string()),
            Status::Usage,
        ),
        _ => (
            Diagnostic::error("bad-model", format!("{name}: {e}")),
            Status::BadInput,
        ),
    }
}

fn read(l: &mut Llama) -> Result<(Gguf, String, Vec<String>), Failed> {
    let status = |e: &tonnage_host::HostError| {
        let d = models::said(e);
        let s = jobs::status_of(std::slice::from_ref(&d));
        (d, s)
    };
    let Some(file) = &l.file.clone() else {
        let name = l.named.clone().unwrap_or_default();
        if l.tool == Tool::Ollama {
            let stores = tonnage_host::ollama_stores(|k| std::env::var_os(k));
            let m = tonnage_host::ollama(&stores, &name).map_err(|e| status(&e))?;
            let found = tonnage_host::gguf(&m.file).map_err(|e| status(&e))?;
            let mut notes = vec![];
            if m.projector {
                notes.push(
                    "the model's projector, which Ollama loads beside it, is not counted".into(),
                );
            }
            if let Some(n) = m.num_ctx {
                l.settings.context_len = n;
                l.context_given = true;
            }
            notes.extend(found.truncated);
            return Ok((found.model, name, notes));
        }
        if name.contains("://") {
            let d = Diagnostic::error("unavailable", format!("{name}: addresses are not fetched"))
                .help("-hf REPO:QUANTISATION, or the model file: llama-server -m FILE.gguf");
            return Err(failed(d));
        }
        let env = tonnage_host::Env::of_process();
        let r =
            tonnage_host::remote_gguf(&env, &name, l.hf_file.as_deref()).map_err(|e| status(&e))?;
        let note = format!(
            "{} of {}: {} bytes of headers were read",
            r.files.join(", "),
            env.endpoint,
            r.fetched
        );
        return Ok((r.model, name, vec![note]));
    };
    if !Path::new(file).exists()
        && let Some(g) = headers::read(file)
    {
        let note = format!(
            "{file} is the inventory of tensors that tonnage carries (published shape, the engine's own quantiser)"
        );
        return Ok((g, file.clone(), vec![note]));
    }
    let found = tonnage_host::gguf(Path::new(file))
        .map_err(|e| (models::said(&e), jobs::status_of(&[models::said(&e)])))?;
    let notes = found
        .truncated
        .map(|t| format!("the file is not complete, the engine will not load it: {t}"));
    Ok((found.model, file.clone(), notes.into_iter().collect()))
}
