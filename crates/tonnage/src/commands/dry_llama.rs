//! `tonnage dry-run -- llama-server ...`: every buffer of the real CUDA backend, beside what `estimate` says of the same command.

use super::dry_engine::{self, digits};
use super::dry_run::DryRunArgs;
use super::serving::LlamaRun;
use crate::Status;
use crate::args::Format;
use crate::dry::llama::{self, Done, Said, mib};
use crate::dry::run::{self, Plan};
use crate::output::Output;
use serde_json::{Value, json};
use tonnage_core::Diagnostic;
use tonnage_core::serve::answer::{Component, Serving};
use tonnage_core::serve::command::llamacpp::Llama;
use tonnage_core::serve::command::{self, Command};
use tonnage_core::verdict::{Device, Outcome};
use tonnage_units::Bytes;

/// A buffer of both sides.
struct Row {
    buffer: String,
    component: String,
    /// Exact, where the null device gave the memory.
    engine_bytes: Option<u64>,
    /// As logged, summed over the log's lines.
    engine_mib: Option<f64>,
    estimate_bytes: Option<u64>,
    /// How many of the log's lines.
    lines: u32,
}

impl Row {
    fn equal(&self) -> bool {
        match (self.engine_bytes, self.engine_mib, self.estimate_bytes) {
            (Some(e), _, Some(p)) => e == p,
            // two digits in each line
            (None, Some(e), Some(p)) if self.lines == 1 => mib(p) == format!("{e:.2}"),
            (None, Some(e), Some(p)) => {
                (p as f64 / 1024.0 / 1024.0 - e).abs() <= 0.005 * f64::from(self.lines) + 1e-6
            }
            _ => false,
        }
    }
}

/// The log's words for buffers, as the estimate calls them.
const KINDS: [(&str, Component); 5] = [
    ("model", Component::Weights),
    ("KV", Component::KvCache),
    ("RS", Component::RecurrentState),
    ("compute", Component::Compute),
    ("output", Component::Output),
];

fn name(c: Component) -> String {
    serde_json::to_value(c)
        .ok()
        .and_then(|v| v.as_str().map(Into::into))
        .unwrap_or_default()
}

/// The log's buffers and the estimate's, by place and purpose.
fn rows(said: &Said, estimate: Option<&Serving>) -> Vec<Row> {
    let mut out: Vec<Row> = Vec::new();
    let mut row = |buffer: &str, component: &str, change: &dyn Fn(&mut Row)| {
        let same = |r: &&mut Row| (r.buffer.as_str(), r.component.as_str()) == (buffer, component);
        if let Some(r) = out.iter_mut().find(same) {
            return change(r);
        }
        let mut r = Row {
            buffer: buffer.into(),
            component: component.into(),
            engine_bytes: None,
            engine_mib: None,
            estimate_bytes: None,
            lines: 0,
        };
        change(&mut r);
        out.push(r);
    };
    for b in &said.buffers {
        let known = KINDS.iter().find(|k| k.0 == b.kind);
        let what = known.map_or_else(|| b.kind.clone(), |k| name(k.1));
        let printed: f64 = b.mib.parse().unwrap_or(0.0);
        if printed == 0.0 {
            continue;
        }
        row(&b.name, &what, &|r| {
            r.engine_bytes = match (r.lines, r.engine_bytes, b.bytes) {
                (0, _, b) => b,
                (_, Some(a), Some(b)) => Some(a + b),
                _ => None,
            };
            r.engine_mib = Some(r.engine_mib.unwrap_or(0.0) + printed);
            r.lines += 1;
        });
    }
    for l in estimate.map_or(&[][..], |e| &e.lines) {
        if KINDS.iter().any(|k| k.1 == l.component) {
            row(&l.buffer, &name(l.component), &|r| {
                r.estimate_bytes = Some(r.estimate_bytes.unwrap_or(0) + l.bytes);
            });
        }
    }
    // what is too small to be printed
    out.retain(|r| r.engine_mib.is_some() || r.estimate_bytes.is_none_or(|b| mib(b) != "0.00"));
    out
}

/// The prediction.
struct Predicted {
    /// For the flags as they are.
    asked: Result<Serving, Diagnostic>,
    /// For the context and layers that the engine's own fit chose, where these are others.
    chosen: Option<Result<Serving, Diagnostic>>,
    /// The engine's fit is one that is not predicted.
    unknown: bool,
}

fn predicted(
    l: Llama,
    said: &Said,
    device: &Device,
    count: usize,
    out: &Output,
) -> Result<Predicted, Diagnostic> {
    let gpus = &out.catalogs.gpus;
    let mut run = LlamaRun::new(l, Some(&device.gpu.id), Some(count), gpus).map_err(|f| f.0)?;
    let asked = run.answer().map_err(|f| f.0);
    let context = match &asked {
        Ok(e) if e.refused.is_some() => None,
        Ok(e) => Some(e.cache.tokens),
        Err(_) => None,
    };
    let layers = run.command.settings.gpu_layers;
    let chosen = match (context, said.n_ctx, said.layers) {
        (Some(c), Some(n), Some((on, all))) if c != n || layers.min(all) != on => {
            run.command.settings.context_len = n;
            run.command.settings.gpu_layers = on;
            Some(run.answer_as_set().map_err(|f| f.0))
        }
        _ => None,
    };
    Ok(Predicted {
        asked,
        chosen,
        unknown: run.fit_unknown,
    })
}

/// Runs it.
pub fn run(a: &DryRunArgs, device: &Device, out: &Output) -> Status {
    let fail = |d| dry_engine::refused(d, out);
    let ready = dry_engine::check(a)
        .and_then(|()| run::platform())
        .and_then(|()| crate::dry::null::library().map(|_| ()))
        .and_then(|()| command::parse(&a.command));
    let command = match ready {
        Ok(Command::Llama(l)) => *l,
        Ok(_) => return fail(Diagnostic::error("bad-command", "not llama.cpp's server")),
        Err(d) => return fail(d),
    };
    let Some(model) = command.file.clone() else {
        return fail(
            Diagnostic::error(
                "unavailable",
                "a dry run of -hf, -mu or the like would download the whole model",
            )
            .help("-m FILE.gguf: its header is enough, the data may be missing"),
        );
    };
    let count = a.gpu_count.or(command.devices).unwrap_or(1).clamp(1, 16);
    let plan = Plan {
        command: &a.command,
        device,
        count,
        lone: None,
        unlimited: a.unlimited,
        quiet: a.no_mark,
        aside: true,
        env: &[],
    };
    let done = match llama::run(&plan, &model) {
        Ok(d) => d,
        Err(d) => return fail(d),
    };
    for m in &done.report.messages {
        out.complain(&[Diagnostic::error("null-device", m.clone())]);
    }
    let predicted = match predicted(command, &done.said, device, count, out) {
        Ok(p) => p,
        Err(d) => Predicted {
            asked: Err(d),
            chosen: None,
            unknown: false,
        },
    };
    let answer = answer(&done, device, &model, &predicted);
    match a.format {
        Format::Json => out.print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&answer).unwrap_or_default()
        )),
        _ => out.print(&text(&answer)),
    }
    let s = &done.said;
    if !s.complete && s.refusal.is_none() {
        out.complain(&[Diagnostic::error(
            "no-figures",
            "llama-server ended before it had loaded its model; its own log is above",
        )]);
    }
    if a.verdict_exit {
        return if s.complete {
            Status::Ok
        } else if s.refusal.is_some() {
            Status::DoesNotFit
        } else {
            Status::BadInput
        };
    }
    std::process::exit(done.code)
}

/// Everything, as JSON (`tonnage.dry-run-engine/1`).
fn answer(done: &Done, device: &Device, model: &str, p: &Predicted) -> Value {
    let s = &done.said;
    let compared = p.chosen.as_ref().unwrap_or(&p.asked);
    let rows = rows(s, compared.as_ref().ok().filter(|e| e.refused.is_none()));
    let no = |e: &Serving| e.refused.is_some() || e.outcome() == Some(Outcome::No);
    let estimate = match compared {
        Ok(e) => json!({
            "context_len": e.cache.tokens,
            "of_the_engines_fit": p.chosen.is_some(),
            "refused": no(e),
            "refusal": e.refused.as_ref().map(|r| r.message.clone())
                .or_else(|| e.fits.first().filter(|f| f.outcome == Outcome::No).map(|f| f.why.clone())),
            "unsupported": null,
        }),
        Err(d) => json!({"unsupported": d.message}),
    };
    let equal = match compared {
        Err(_) => Value::Null,
        // what the build lacks is not the estimate's question
        Ok(_) if done.report.no_kernels => Value::Null,
        Ok(e) if s.refusal.is_some() => json!(no(e)),
        Ok(_) if !s.complete => Value::Null,
        Ok(_) => match rows.iter().all(Row::equal) {
            false if p.unknown || s.parts_moved => Value::Null,
            all => json!(all),
        },
    };
    let rows: Vec<Value> = rows
        .iter()
        .map(|r| {
            json!({
                "buffer": r.buffer,
                "component": r.component,
                "engine_bytes": r.engine_bytes,
                "engine_mib": r.engine_mib.map(|m| (m * 100.0).round() / 100.0),
                "estimate_bytes": r.estimate_bytes,
                "equal": r.equal(),
            })
        })
        .collect();
    json!({
        "schema": "tonnage.dry-run-engine/1",
        "engine": "llama.cpp",
        "engine_version": done.version,
        "model": model,
        "gpu": device.gpu.id,
        "started": s.complete,
        "code": done.code,
        "seconds": (done.seconds * 10.0).round() / 10.0,
        "engine_says": {
            "context_len": s.n_ctx,
            "sequence_context_len": s.n_ctx_seq,
            "sequences": s.n_seq_max,
            "layers_on_devices": s.layers.map(|l| l.0),
            "layers": s.layers.map(|l| l.1),
            "flash_attention": s.flash_attention,
            "fit": s.fit,
            "refusal": s.refusal,
        },
        "device_peak_allocated_bytes": done.report.used.iter().map(|u| u.peak_allocated).max(),
        "buffers": rows,
        "estimate": estimate,
        "equal": equal,
        "flags_added": done.added,
        "replaced": done.made,
    })
}

fn text(a: &Value) -> String {
    let e = &a["engine_says"];
    let word = |v: &Value| v.as_str().unwrap_or("").to_string();
    let count = |v: &Value| v.as_u64().map_or_else(|| "-".into(), digits);
    let mut out = match (a["started"].as_bool(), e["refusal"].as_str()) {
        (Some(true), _) => format!(
            "{} on llama.cpp {}, {}: starts, {} tokens of context for {} sequences, {} of {} layers on devices\n",
            word(&a["model"]),
            word(&a["engine_version"]),
            word(&a["gpu"]),
            count(&e["context_len"]),
            count(&e["sequences"]),
            count(&e["layers_on_devices"]),
            count(&e["layers"]),
        ),
        (_, Some(r)) => format!("llama-server does not start: {r}\n"),
        _ => "llama-server said nothing of its buffers\n".into(),
    };
    let fit = dry_engine::list(&e["fit"]);
    if !fit.is_empty() {
        out.push_str("\nIts own fit\n");
        for f in fit {
            out.push_str(&format!("  {f}\n"));
        }
    }
    out.push_str(&format!(
        "\n{:<12}{:<18}{:>20}{:>20}\n",
        "", "bytes", "llama.cpp itself", "estimate"
    ));
    for r in a["buffers"].as_array().into_iter().flatten() {
        let engine = match (r["engine_bytes"].as_u64(), r["engine_mib"].as_f64()) {
            (Some(b), _) => digits(b),
            (None, Some(m)) => format!("{m:.2} MiB"),
            _ => "-".into(),
        };
        out.push_str(&format!(
            "{:<12}{:<18}{engine:>20}{:>20}{}\n",
            word(&r["buffer"]),
            word(&r["component"]),
            count(&r["estimate_bytes"]),
            if r["equal"] == true { "" } else { "  differs" },
        ));
    }
    if let Some(b) = a["device_peak_allocated_bytes"].as_u64() {
        out.push_str(&format!(
            "{:<30}{:>20}{:>20}\n",
            "device, peak",
            Bytes(b).to_string(),
            "-"
        ));
    }
    let p = &a["estimate"];
    let verdict = match (&a["equal"], p["unsupported"].as_str()) {
        (_, Some(why)) => format!("no estimate to compare with: {why}"),
        (Value::Bool(true), _) if !e["refusal"].is_null() => {
            format!("both refuse; the estimate: {}", word(&p["refusal"]))
        }
        (Value::Bool(true), _) => "equal: every buffer".into(),
        (Value::Null, _) if a["started"] == true => {
            "not comparable: what its fit does with experts, the estimate has no rule for".into()
        }
        (Value::Null, _) => "nothing to compare".into(),
        _ if !e["refusal"].is_null() => "they disagree: the estimate says that it fits".into(),
        _ => "they disagree".into(),
    };
    out.push_str(&format!("\n{verdict}\n"));
    if p["of_the_engines_fit"] == true {
        out.push_str("the estimate is for the context and layers that the engine's fit chose\n");
    }
    out.push_str("\nFor this run\n");
    let added = dry_engine::list(&a["flags_added"]);
    if !added.is_empty() {
        out.push_str(&format!("  flags added: {}\n", added.join(" ")));
    }
    for r in dry_engine::list(&a["replaced"]) {
        out.push_str(&format!("  {r}\n"));
    }
    out.push_str(
        "  buffers of the host that CUDA does not give are as logged, in MiB; kernels' scratch grows with the first prompts and is in `estimate` alone\n",
    );
    out.push_str(&format!("  took {} s\n", a["seconds"]));
    out
}
