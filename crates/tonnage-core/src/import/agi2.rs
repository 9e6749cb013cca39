//! AGI2's training files (seed 3). Its estimator and its trainer have different defaults for a missing field; the trainer's are
//! what runs, so those are used and the difference is said.

use super::Import;
use crate::doc::{Diagnostic, Doc, Value};
use crate::job::{Job, Origin};

/// The architecture's name in `tonnage-model`: tied head, fixed sinusoidal positions, explicit attention with dropout.
const MODEL_TYPE: &str = "agi2";

/// Distinct characters of an English text plus four special tokens: what its character tokenizer finds, roughly.
const CHARACTERS: u64 = 70;
const TIKTOKEN: u64 = 50257;

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut i = Import::new(doc, "AGI2 configuration");
    i.ignore(&[
        "sources",
        "epochs",
        "learning_rate",
        "device",
        "resume",
        "max_length",
        "temperature",
        "beam_size",
        "max_context_length",
        "use_compile",
    ]);
    i.copy("model_name", "name");
    let trainer = "what AGI2's trainer does";
    i.say("model.type", MODEL_TYPE, trainer);
    let width = field(&mut i, "model_embd", 768, 384);
    let layers = field(&mut i, "model_layer", 12, 6);
    let heads = field(&mut i, "model_head", 12, 6);
    i.check_heads(width, heads, "model_head");
    let positions = i.count("model_positions");
    let batch = field(&mut i, "batch_size", 4, 4);
    let seq = length(&mut i, positions, batch);
    for (name, n) in [
        ("n_embd", width),
        ("n_layer", layers),
        ("n_head", heads),
        ("n_positions", positions.unwrap_or(seq).max(seq)),
    ] {
        i.config_count(name, n);
    }
    i.config_copy("model_dropout", "dropout");
    i.config_copy("model_activation", "activation");
    vocabulary(&mut i);
    match i.node("use_amp").map(|n| n.value.clone()) {
        Some(Value::Bool(false)) => i.say("train.precision", "fp32", "use_amp = false"),
        Some(Value::Bool(true)) => i.say("train.precision", "fp16-mixed", "use_amp = true"),
        _ => i.say(
            "train.precision",
            "fp16-mixed",
            "the trainer's autocast is always on; its file has no switch for it",
        ),
    }
    i.say("train.optimizer", "adamw_foreach", trainer);
    i.say(
        "train.attention",
        "eager",
        "explicit scores, softmax and dropout when the guide was written",
    );
    i.set(
        "train.clip_grad_norm",
        Value::Float(1.0),
        Origin::Inferred(trainer.into()),
    );
    i.say(
        "train.hold",
        "outputs",
        "the trainer's `logits` variable lives until the next call returns",
    );
    i.finish()
}

/// A field with two defaults: the trainer's holds, and a difference to the estimator's is said.
fn field(i: &mut Import, key: &str, trainer: u64, estimator: u64) -> u64 {
    if i.doc.root.get(key).is_some() {
        return i.count(key).unwrap_or(trainer);
    }
    i.ignore(&[key]);
    if trainer == estimator {
        i.note(
            format!("`{key}` is missing: {trainer}, the default of AGI2's trainer and estimator"),
            None,
        );
    } else {
        let d = Diagnostic::warning(
            "default-mismatch",
            format!(
                "`{key}` is missing: AGI2's trainer takes {trainer}, its estimator {estimator}"
            ),
        );
        i.job.notes.push(d.effect(format!(
            "{trainer} is used, as the trainer would; --method agi2 uses {estimator}"
        )));
    }
    trainer
}

/// `seq_len`, or the ramp of later files with its batch rule.
fn length(i: &mut Import, positions: Option<u64>, batch: u64) -> u64 {
    let (start, end) = (i.count("seq_len_start"), i.count("seq_len_end"));
    let why = "input length is seq_len - 1: the target is shifted by one";
    let Some(end) = end else {
        if let Some(s) = start {
            i.wrong(
                i.doc.root.get("seq_len_start"),
                "missing",
                format!("`seq_len_start` is {s}, and there is no `seq_len_end`"),
                "give both",
            );
        }
        let seq = i.count("seq_len").unwrap_or_else(|| {
            let n = positions.unwrap_or(512);
            let message = format!("`seq_len` is missing: AGI2's trainer takes model_positions, else 512 ({n} here), its estimator 512");
            i.job.notes.push(Diagnostic::warning("default-mismatch", message).effect(format!("{n} is used")));
            n
        });
        i.say_count("train.seq_len", seq.saturating_sub(1).max(1), why);
        i.say_count("train.micro_batch_size", batch, "batch_size");
        return seq;
    };
    if let Some(both) = i.node("seq_len") {
        let message = "`seq_len` and `seq_len_start`/`seq_len_end` are both given".into();
        i.wrong(
            Some(both),
            "contradiction",
            message,
            "keep one of the two forms",
        );
    }
    let start = start.unwrap_or(end);
    // floor(batch * end * 1.125 / current), at least 4: the token count stays, the score maps grow with the length
    let at = |current: u64| {
        (u128::from(batch) * u128::from(end) * 9 / (8 * u128::from(current))).max(4) as u64
    };
    i.note(
        format!(
            "length ramps from {start} to {end} and the batch from {} to {}, by the trainer's rule max(4, floor(batch x end x 1.125 / length)); \
             the last length is estimated, where the score maps are largest",
            at(start),
            at(end)
        ),
        i.doc.root.get("seq_len_end"),
    );
    i.say_count(
        "train.micro_batch_size",
        at(end),
        "the trainer's batch rule at the last length",
    );
    i.say_count("train.seq_len", end.saturating_sub(1).max(1), why);
    end
}

fn vocabulary(i: &mut Import) {
    match i.text("tokenizer") {
        Some("tiktoken") => i.config_count("vocab_size", TIKTOKEN),
        Some("char") => i.config_count("vocab_size", CHARACTERS),
        Some(other) => i.wrong(
            i.doc.root.get("tokenizer"),
            "bad-value",
            format!("`tokenizer` is \"{other}\""),
            "\"char\" or \"tiktoken\"",
        ),
        None => {
            i.config_count("vocab_size", CHARACTERS);
            i.note(format!("vocabulary: the trainer of that time fits one of characters on the corpus, about {CHARACTERS}; --vocab-size N changes it"), None);
            let why =
                "AGI2's estimator assumes 50257 tokens, its trainer of that time used characters";
            i.uncertain(
                "model.config.vocab_size",
                vec![Value::Int(TIKTOKEN.into())],
                why,
            );
        }
    }
}
