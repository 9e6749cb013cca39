//! `tonnage dry-run -- vllm serve ...`: the engine's own figures, beside what `estimate` says of the same command.

use super::dry_run::DryRunArgs;
use super::serving::{VllmRun, core};
use crate::Status;
use crate::args::Format;
use crate::dry::run::{self, Plan};
use crate::dry::vllm::{self, Done};
use crate::output::Output;
use serde_json::{Value, json};
use tonnage_catalog::Gpus;
use tonnage_core::Diagnostic;
use tonnage_core::serve::command::{self, Command};
use tonnage_core::serve::vllm::Pool;
use tonnage_core::serve::vllm_answer::Outcomes;
use tonnage_core::verdict::Device;
use tonnage_units::Bytes;

/// Is it an engine's command? The servers of vLLM and llama.cpp run; the rest is refused with what to use.
pub enum Engine {
    No,
    Vllm,
    Llama,
    Refused(Diagnostic),
}

/// Which engine a command starts.
pub fn engine(words: &[String]) -> Engine {
    let name = |w: &String| w.rsplit('/').next().unwrap_or(w).to_string();
    let first = words.first().map(name).unwrap_or_default();
    let module = words
        .iter()
        .position(|a| a == "-m")
        .and_then(|i| words.get(i + 1))
        .map_or("", String::as_str);
    let refuse = |m: &str, help: &str| {
        Engine::Refused(Diagnostic::error("unavailable", m.to_string()).help(help))
    };
    if first == "vllm" || module.starts_with("vllm.entrypoints") {
        if module.is_empty() && words.get(1).is_some_and(|w| w != "serve") {
            return refuse(
                "of vLLM's commands only `vllm serve` has a start-up that sizes a cache",
                "dry-run a script of your own that makes vllm.LLM(...) as `-- python script.py`",
            );
        }
        return Engine::Vllm;
    }
    if first == "llama-server" {
        return Engine::Llama;
    }
    if first.starts_with("llama-") {
        return refuse(
            "of llama.cpp's programs only `llama-server` is run here: it waits once it has loaded its model, the others go on to compute, on zeros",
            "give llama-server the same -m, -c, -ngl, -b, -ub, -fa and cache flags; `tonnage estimate --gpu ID -- llama-cli ...` knows the others' defaults",
        );
    }
    if first == "ollama" || module.starts_with("llama_cpp") {
        return refuse(
            "Ollama and llama-cpp-python start llama.cpp inside themselves, with a build of their own; a dry run needs llama-server itself",
            "`tonnage dry-run --gpu ID -- llama-server -m FILE ...`, or `tonnage estimate --gpu ID -- ollama run MODEL`",
        );
    }
    Engine::No
}

/// The prediction for the same flags.
fn predicted(
    words: &[String],
    gpu: &str,
    gpus: &Gpus,
) -> Result<(VllmRun, Result<Outcomes, Diagnostic>), Diagnostic> {
    let Command::Vllm(v) = command::parse(words)? else {
        return Err(Diagnostic::error("bad-command", "not vLLM's server"));
    };
    let run = VllmRun::new(*v, Some(gpu), gpus).map_err(|f| f.0)?;
    let outcomes = run.start.run().map_err(|e| core(&run.command.model, e).0);
    Ok((run, outcomes))
}

/// Flags that an engine's run has no use for.
///
/// # Errors
/// Which.
pub fn check(a: &DryRunArgs) -> Result<(), Diagnostic> {
    if !matches!(a.format, Format::Text | Format::Json) {
        return Err(Diagnostic::error(
            "bad-format",
            "an engine's dry run has the formats text and json",
        ));
    }
    if a.world.is_some() || !a.set.is_empty() || a.save.is_some() {
        return Err(Diagnostic::error(
            "bad-command",
            "--world, --set and --save are for scripts; an engine starts its own ranks, and what it logs is the answer",
        ));
    }
    Ok(())
}

/// Says why an engine is not started.
pub(super) fn refused(d: Diagnostic, out: &Output) -> Status {
    let status = match d.code {
        "unavailable" | "unsupported" => Status::Unavailable,
        _ => Status::Usage,
    };
    out.complain(&[d]);
    status
}

/// The texts of a list.
pub(super) fn list(v: &Value) -> Vec<String> {
    let all = v.as_array().into_iter().flatten();
    all.filter_map(|x| x.as_str().map(Into::into)).collect()
}

/// Runs it.
pub fn run(a: &DryRunArgs, device: &Device, out: &Output) -> Status {
    let fail = |d| refused(d, out);
    let ready = check(a)
        .and_then(|()| run::platform())
        .and_then(|()| crate::dry::null::library().map(|_| ()))
        .and_then(|()| run::check(&a.command, device).map(|_| ()));
    if let Err(d) = ready {
        return fail(d);
    }
    let (prediction, outcomes) = match predicted(&a.command, &device.gpu.id, &out.catalogs.gpus) {
        Ok(p) => p,
        Err(d) => return fail(d),
    };
    let settings = &prediction.start.settings;
    let ranks = settings.tensor_parallel_size.max(1) as usize;
    let plan = Plan {
        command: &a.command,
        device,
        count: a.gpu_count.unwrap_or(ranks).clamp(1, 64),
        lone: None,
        unlimited: a.unlimited,
        quiet: a.no_mark,
        aside: true,
        env: &[],
    };
    let done = match vllm::run(&plan, &prediction.command.model) {
        Ok(d) => d,
        Err(d) => return fail(d),
    };
    for m in &done.report.messages {
        out.complain(&[Diagnostic::error("null-device", m.clone())]);
    }
    let answer = answer(&done, device, &prediction.command.model, &outcomes);
    match a.format {
        Format::Json => out.print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&answer).unwrap_or_default()
        )),
        _ => out.print(&text(&answer)),
    }
    let started = done.said.kv_tokens.is_some();
    if !started && done.said.refusal.is_none() {
        out.complain(&[Diagnostic::error(
            "no-figures",
            "vLLM ended before it had sized its cache; its own log is above",
        )]);
    }
    if a.verdict_exit {
        return if started {
            Status::Ok
        } else if done.said.refusal.is_some() {
            Status::DoesNotFit
        } else {
            Status::BadInput
        };
    }
    std::process::exit(done.code)
}

/// Everything, as JSON (`tonnage.dry-run-engine/1`).
fn answer(
    done: &Done,
    device: &Device,
    model: &str,
    outcomes: &Result<Outcomes, Diagnostic>,
) -> Value {
    let s = &done.said;
    let pool: Option<&Pool> = outcomes.as_ref().ok().and_then(|o| o.pool.as_ref().ok());
    let estimate = match outcomes {
        Ok(o) => json!({
            "kv_tokens": pool.map(|p| p.kv_tokens),
            "max_concurrency": pool.map(|p| p.max_concurrency),
            "available_kv_bytes": o.startup.available_kv_bytes,
            "weights_bytes": o.startup.weights_bytes,
            "refused": o.pool.is_err(),
            "unsupported": null,
        }),
        Err(d) => json!({"unsupported": d.message}),
    };
    let equal = match (s.kv_tokens, pool) {
        (Some(a), Some(b)) => json!(a == b.kv_tokens),
        (None, None) if s.refusal.is_some() && outcomes.is_ok() => json!(true),
        _ if outcomes.is_err() => Value::Null,
        _ => json!(false),
    };
    json!({
        "schema": "tonnage.dry-run-engine/1",
        "engine": "vLLM",
        "engine_version": s.version,
        "model": model,
        "gpu": device.gpu.id,
        "started": s.complete,
        "code": done.code,
        "seconds": (done.seconds * 10.0).round() / 10.0,
        "engine_says": {
            "kv_tokens": s.kv_tokens,
            "max_model_len": s.max_model_len,
            "max_concurrency": s.max_concurrency,
            "available_kv_gib": s.available_kv_gib,
            "model_loading_gib": s.model_loading_gib,
            "graphs_gib": s.graphs_gib,
            "refusal": s.refusal,
        },
        "device_peak_allocated_bytes": done.report.used.iter().map(|u| u.peak_allocated).max(),
        "estimate": estimate,
        "equal": equal,
        "flags_added": done.added,
        "replaced": s.replaced,
    })
}

fn gib(v: &Value) -> String {
    v.as_f64()
        .map_or_else(|| "-".into(), |x| format!("{x:.2} GiB"))
}

fn bytes(v: &Value) -> String {
    v.as_u64()
        .map_or_else(|| "-".into(), |x| Bytes(x).to_string())
}

fn plain(v: &Value) -> String {
    match v {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        Value::Number(n) => match n.as_u64() {
            Some(n) => digits(n),
            None => format!("{:.2}", n.as_f64().unwrap_or(0.0)),
        },
        v => v.to_string(),
    }
}

/// Digits in threes, as the other answers have them.
pub fn digits(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('_');
        }
        out.push(c);
    }
    out
}

fn text(a: &Value) -> String {
    let e = &a["engine_says"];
    let p = &a["estimate"];
    let mut out = match (e["kv_tokens"].as_u64(), e["refusal"].as_str()) {
        (Some(t), _) => format!(
            "{} on vLLM {}, {}: {} tokens of KV cache, {} requests of {} tokens\n",
            a["model"].as_str().unwrap_or(""),
            a["engine_version"].as_str().unwrap_or(""),
            a["gpu"].as_str().unwrap_or(""),
            digits(t),
            plain(&e["max_concurrency"]),
            plain(&e["max_model_len"]),
        ),
        (None, Some(r)) => format!("vLLM does not start: {r}\n"),
        _ => "vLLM said nothing of its cache\n".into(),
    };
    out.push_str(&format!(
        "\n{:<22}{:>16}{:>16}\n",
        "", "vLLM itself", "estimate"
    ));
    let mut row = |name: &str, x: String, y: String| {
        if (x.as_str(), y.as_str()) != ("-", "-") {
            out.push_str(&format!("{name:<22}{x:>16}{y:>16}\n"));
        }
    };
    row("KV tokens", plain(&e["kv_tokens"]), plain(&p["kv_tokens"]));
    row(
        "concurrency",
        plain(&e["max_concurrency"]),
        plain(&p["max_concurrency"]),
    );
    row(
        "KV budget",
        gib(&e["available_kv_gib"]),
        bytes(&p["available_kv_bytes"]),
    );
    row(
        "model loading",
        gib(&e["model_loading_gib"]),
        bytes(&p["weights_bytes"]),
    );
    row("CUDA graphs", gib(&e["graphs_gib"]), "-".into());
    row(
        "device, peak",
        bytes(&a["device_peak_allocated_bytes"]),
        "-".into(),
    );
    let verdict = match (&a["equal"], p["unsupported"].as_str()) {
        (_, Some(why)) => format!("no estimate to compare with: {why}"),
        (Value::Bool(true), _) if e["kv_tokens"].is_null() => "both refuse".into(),
        (Value::Bool(true), _) => "equal".into(),
        _ => match (e["kv_tokens"].as_f64(), p["kv_tokens"].as_f64()) {
            (Some(x), Some(y)) => format!("the estimate is {:+.3} % off", (y / x - 1.0) * 100.0),
            _ => "they disagree".into(),
        },
    };
    out.push_str(&format!("\n{verdict}\n"));
    let added = list(&a["flags_added"]);
    let replaced = list(&a["replaced"]);
    out.push_str("\nFor this run\n");
    if !added.is_empty() {
        out.push_str(&format!("  flags added: {}\n", added.join(" ")));
    }
    for r in replaced {
        out.push_str(&format!("  {r}\n"));
    }
    out.push_str(
        "  memory that the driver and loaded kernels take (0.05 to 0.3 GiB in public logs) is 0 here and lowers the budget on a real card\n",
    );
    out.push_str(&format!("  took {} s\n", a["seconds"]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<String> {
        s.split(' ').map(Into::into).collect()
    }

    #[test]
    fn engines_are_told_apart() {
        for c in [
            "vllm serve m",
            "/v/bin/vllm serve m",
            "python -m vllm.entrypoints.openai.api_server --model m",
        ] {
            assert!(matches!(engine(&words(c)), Engine::Vllm), "{c}");
        }
        for c in ["llama-server -m x.gguf", "/opt/llama.cpp/llama-server -m x"] {
            assert!(matches!(engine(&words(c)), Engine::Llama), "{c}");
        }
        for c in [
            "python train.py",
            "python -m vllm_mine.train",
            "torchrun x.py",
        ] {
            assert!(matches!(engine(&words(c)), Engine::No), "{c}");
        }
        for c in [
            "vllm bench m",
            "llama-bench -m x.gguf",
            "ollama run x",
            "python -m llama_cpp.server",
        ] {
            let Engine::Refused(d) = engine(&words(c)) else {
                panic!("{c}")
            };
            assert_eq!(d.code, "unavailable");
        }
    }
}
