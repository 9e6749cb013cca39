//! What to change, each edit simulated.

use super::Advice;
use super::build::run;
use crate::doc::Value;
use crate::job::{Job, Origin};
use crate::verdict::{Device, verdict};
use crate::workers::Crew;

struct Edit {
    what: String,
    set: Vec<(&'static str, Value)>,
    cost: &'static str,
}

fn text(t: &str) -> Value {
    Value::Text(t.into())
}

/// The edits worth trying for a job.
fn edits(job: &Job) -> Vec<Edit> {
    let mut out = Vec::new();
    let mut edit =
        |what: String, set: Vec<(&'static str, Value)>, cost| out.push(Edit { what, set, cost });
    let int = |n: u64| Value::Int(n.into());
    let b = job.count("train.micro_batch_size").unwrap_or(1);
    let acc = job.count("train.gradient_accumulation_steps").unwrap_or(1);
    if job.word("train.loss") == "library" {
        edit(
            "a fused linear cross entropy".into(),
            vec![("train.loss", text("fused"))],
            "another package (liger-kernel); same result",
        );
    }
    if job.word("train.activation_checkpointing") == "none" {
        edit(
            "recompute activations".into(),
            vec![("train.activation_checkpointing", text("full"))],
            "about a third more computation",
        );
    }
    if b > 1 {
        edit(
            format!("micro-batch {} x {} instead of {b} x {acc}", b / 2, acc * 2),
            vec![
                ("train.micro_batch_size", int(b / 2)),
                ("train.gradient_accumulation_steps", int(acc * 2)),
            ],
            "more, smaller kernels",
        );
    }
    if let Some(s) = job.count("train.seq_len").filter(|s| *s >= 128) {
        edit(
            format!("sequences of {} instead of {s} tokens", s / 2),
            vec![("train.seq_len", int(s / 2))],
            "shorter samples",
        );
    }
    if job.word("train.attention") == "eager" {
        edit(
            "fused attention".into(),
            vec![("train.attention", text("sdpa"))],
            "none",
        );
    }
    let optimizer = job.word("train.optimizer");
    if job.given("lora.r").is_none() && optimizer.starts_with("adamw_") {
        edit(
            "an 8-bit optimizer".into(),
            vec![("train.optimizer", text("adamw8bit"))],
            "another package (bitsandbytes); quantised moments",
        );
    }
    if job.word("train.precision") == "fp32" {
        edit(
            "bf16 autocast".into(),
            vec![("train.precision", text("bf16-mixed"))],
            "bf16 products; weights, gradients and optimizer states stay as they are",
        );
    }
    if job.word("train.hold") == "outputs" {
        edit(
            "do not keep the model's outputs in a variable".into(),
            vec![("train.hold", text("loss"))],
            "none",
        );
    }
    if let Some(r) = job.count("lora.r").filter(|r| *r >= 16) {
        edit(
            format!("rank {} instead of {r}", r / 2),
            vec![("lora.r", int(r / 2))],
            "smaller adapters",
        );
    }
    if job.given("allocator.conf").is_none() {
        edit(
            "expandable segments".into(),
            vec![("allocator.conf", text("expandable_segments:True"))],
            "none; less fragmentation",
        );
    }
    out
}

/// Simulates the edits; the largest saving first. Edits that cannot be simulated are left out.
pub fn advise(job: &Job, here: &Device, verdicts: bool, now: u64, workers: Crew) -> Vec<Advice> {
    let mut base = job.clone();
    base.uncertain.clear();
    let tried = workers.each_of(&edits(&base), |e| {
        let mut j = base.clone();
        for (k, v) in &e.set {
            j.set(k, v.clone(), Origin::Flag).ok()?;
        }
        let (sim, a) = run(&j, here).ok()?;
        let outcome = verdicts
            .then(|| {
                j.allocator()
                    .ok()
                    .map(|c| verdict(&sim, &c, here, a.peak.reserved).outcome.name())
            })
            .flatten();
        Some(Advice {
            edit: e.what.clone(),
            flags: e
                .set
                .iter()
                .map(|(k, v)| flag(k, v))
                .collect::<Vec<_>>()
                .join(" "),
            saves_bytes: i64::try_from(i128::from(now) - i128::from(a.peak.reserved)).unwrap_or(0),
            keeps_effective_batch: j.effective_batch() == job.effective_batch(),
            cost: e.cost.into(),
            outcome,
        })
    });
    let mut out: Vec<Advice> = tried.into_iter().flatten().collect();
    out.sort_by_key(|a| std::cmp::Reverse(a.saves_bytes));
    out
}

fn flag(key: &str, v: &Value) -> String {
    let value = match v {
        Value::Text(t) => t.clone(),
        v => v.shown(),
    };
    match crate::job::setting(key) {
        Some(s) if !s.flag.is_empty() => format!("--{} {value}", s.flag),
        _ => format!("{key} = {value}"),
    }
}
