//! What may be changed: for each setting the user's own value and the others worth trying, with what they cost in words.

use tonnage_core::doc::Value;
use tonnage_core::job::{Job, Origin, setting};

/// A change that makes another method of the job and so needs `--allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Allow {
    /// Other optimizer states (8-bit, factored).
    Optimizer,
    /// Optimizer states paged to the host.
    Offload,
    /// Another type of weights or autocast.
    Precision,
    /// Adapters in place of all weights.
    Adapter,
    /// Another rank.
    Rank,
    /// Quantised frozen weights.
    Quant,
    /// Shorter samples.
    Length,
    /// Another global batch (training), or number of sequences (generation; that needs no allowance).
    Batch,
}

impl Allow {
    /// All of them.
    pub const ALL: [Allow; 8] = [
        Allow::Optimizer,
        Allow::Offload,
        Allow::Precision,
        Allow::Adapter,
        Allow::Rank,
        Allow::Quant,
        Allow::Length,
        Allow::Batch,
    ];
    /// Its spelling.
    pub fn name(self) -> &'static str {
        match self {
            Allow::Optimizer => "optimizer",
            Allow::Offload => "offload",
            Allow::Precision => "precision",
            Allow::Adapter => "adapter",
            Allow::Rank => "rank",
            Allow::Quant => "quant",
            Allow::Length => "length",
            Allow::Batch => "batch",
        }
    }
    /// From its spelling.
    pub fn parse(text: &str) -> Option<Allow> {
        Allow::ALL.into_iter().find(|a| a.name() == text)
    }
}

/// One change of settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    pub what: String,
    pub set: Vec<(&'static str, Option<Value>)>,
    /// What it costs, in words.
    pub cost: &'static str,
    pub needs: Option<Allow>,
}

impl Edit {
    /// The job with the change.
    pub fn apply(&self, job: &mut Job) -> Result<(), String> {
        for (k, v) in &self.set {
            match v {
                Some(v) => job.set(k, v.clone(), Origin::Flag)?,
                None => job.unset(k),
            }
        }
        Ok(())
    }
    /// The flags that make it.
    pub fn flags(&self) -> String {
        let flag = |(key, v): &(&'static str, Option<Value>)| {
            let value = match v {
                None => return format!("{key} left out"),
                Some(Value::Text(t)) => t.clone(),
                Some(Value::List(l)) => l
                    .iter()
                    .filter_map(|n| n.text())
                    .collect::<Vec<_>>()
                    .join(","),
                Some(v) => v.shown(),
            };
            match setting(key) {
                Some(s) if !s.flag.is_empty() => format!("--{} {value}", s.flag),
                _ => format!("{key} = {value}"),
            }
        };
        self.set.iter().map(flag).collect::<Vec<_>>().join(" ")
    }
}

fn text(t: &str) -> Option<Value> {
    Some(Value::Text(t.into()))
}

fn int(n: u64) -> Option<Value> {
    Some(Value::Int(n.into()))
}

/// Alternatives of one setting; none of them taken: the user's own.
pub type Dimension = Vec<Edit>;

struct Builder {
    all: Vec<Dimension>,
    allow: Vec<Allow>,
}

impl Builder {
    fn add(&mut self, edits: Vec<Edit>) {
        let kept: Vec<Edit> = edits
            .into_iter()
            .filter(|e| e.needs.is_none_or(|n| self.allow.contains(&n)))
            .collect();
        if !kept.is_empty() {
            self.all.push(kept);
        }
    }
}

fn edit(what: &str, set: Vec<(&'static str, Option<Value>)>, cost: &'static str) -> Edit {
    Edit {
        what: what.into(),
        set,
        cost,
        needs: None,
    }
}

impl Edit {
    fn needing(mut self, a: Allow) -> Edit {
        self.needs = Some(a);
        self
    }
}

/// The dimensions of a job beside its batch.
pub fn dimensions(job: &Job, allow: &[Allow], flash_attention2: bool) -> Vec<Dimension> {
    let mut b = Builder {
        all: Vec::new(),
        allow: allow.to_vec(),
    };
    if job.word("work.kind") == "train" {
        training(job, &mut b);
    } else {
        generation(job, &mut b);
    }
    let attention = job.word("train.attention");
    let mut a = Vec::new();
    if attention == "eager" {
        a.push(edit(
            "fused attention (sdpa)",
            vec![("train.attention", text("sdpa"))],
            "none",
        ));
    }
    if attention != "flash_attention_2" && flash_attention2 && job.word("train.precision") != "fp32"
    {
        let cost = "another package (flash-attn); same result up to rounding";
        a.push(edit(
            "flash attention 2",
            vec![("train.attention", text("flash_attention_2"))],
            cost,
        ));
    }
    b.add(a);
    let conf = job.word("allocator.conf");
    if !conf.contains("expandable_segments") {
        let all = if conf.is_empty() {
            String::new()
        } else {
            format!("{conf},")
        };
        let v = format!("{all}expandable_segments:True");
        b.add(vec![edit(
            "expandable segments",
            vec![("allocator.conf", text(&v))],
            "none; less fragmentation",
        )]);
    }
    b.all
}

fn training(job: &Job, b: &mut Builder) {
    let key = "train.activation_checkpointing";
    let now = job.word(key);
    let mut edits = Vec::new();
    for (v, what, cost) in [
        (
            "none",
            "keep all activations",
            "more memory, no recomputation",
        ),
        (
            "selective",
            "recompute all but products and attention",
            "a few percent more computation",
        ),
        (
            "full",
            "recompute activations",
            "about a third more computation",
        ),
    ] {
        if v != now && !(v == "selective" && job.flag("train.checkpoint_reentrant")) {
            edits.push(edit(what, vec![(key, text(v))], cost));
        }
    }
    b.add(edits);
    let now = job.word("train.loss");
    let mut edits = Vec::new();
    for (v, what, cost) in [
        ("library", "the library's own loss", "full logits"),
        (
            "fused",
            "fused linear cross entropy (Liger)",
            "another package (liger-kernel); same result",
        ),
        (
            "chunked",
            "loss by chunks of the sequence",
            "smaller products in the head",
        ),
        (
            "cut",
            "cut cross entropy",
            "another package (cut-cross-entropy); logits computed twice",
        ),
    ] {
        if v != now {
            edits.push(edit(what, vec![("train.loss", text(v))], cost));
        }
    }
    b.add(edits);
    if job.word("train.hold") == "outputs" {
        b.add(vec![edit(
            "do not keep the model's outputs in a variable",
            vec![("train.hold", text("loss"))],
            "none",
        )]);
    }
    if job.word("train.zero_grad") != "none" {
        b.add(vec![edit(
            "free gradients after the step",
            vec![("train.zero_grad", text("none"))],
            "none",
        )]);
    }
    let now = job.word("train.optimizer");
    let mut edits = Vec::new();
    let adam = now.starts_with("adamw_");
    if adam && now != "adamw_fused" {
        edits.push(edit(
            "fused AdamW",
            vec![("train.optimizer", text("adamw_fused"))],
            "none; same result",
        ));
    }
    if adam || now.starts_with("adam") {
        let e = |what, v, cost, needs| {
            edit(what, vec![("train.optimizer", text(v))], cost).needing(needs)
        };
        edits.push(e(
            "paged AdamW (states may go to the host)",
            "paged_adamw32bit",
            "slow where the states do not fit",
            Allow::Offload,
        ));
        if now != "adamw8bit" {
            edits.push(e(
                "8-bit AdamW",
                "adamw8bit",
                "quantised moments",
                Allow::Optimizer,
            ));
        }
        if now != "paged_adamw8bit" {
            edits.push(e(
                "paged 8-bit AdamW",
                "paged_adamw8bit",
                "quantised moments, may go to the host",
                Allow::Optimizer,
            ));
        }
        edits.push(e(
            "Adafactor",
            "adafactor",
            "factored second moments: another optimizer",
            Allow::Optimizer,
        ));
    }
    b.add(edits);
    let now = job.word("train.precision");
    let mut edits = Vec::new();
    for (v, what, cost) in [
        (
            "bf16-mixed",
            "bf16 autocast",
            "bf16 products over fp32 weights",
        ),
        (
            "bf16",
            "weights, gradients and states in bf16",
            "small updates are rounded away",
        ),
    ] {
        if v != now && !(now.starts_with("fp16") && v == "bf16-mixed" && now.ends_with("mixed")) {
            edits.push(
                edit(what, vec![("train.precision", text(v))], cost).needing(Allow::Precision),
            );
        }
    }
    b.add(edits);
    match job.count("lora.r") {
        None => {
            let set = vec![("lora.r", int(16)), ("lora.targets", text("all-linear"))];
            b.add(vec![
                edit(
                    "LoRA of rank 16 on all linear layers",
                    set,
                    "another method: adapters are trained, not the weights",
                )
                .needing(Allow::Adapter),
            ]);
        }
        Some(r) => {
            let ranks = [r / 2, r / 4].into_iter().filter(|n| *n >= 4);
            b.add(
                ranks
                    .map(|n| {
                        edit(
                            &format!("rank {n} instead of {r}"),
                            vec![("lora.r", int(n))],
                            "smaller adapters",
                        )
                        .needing(Allow::Rank)
                    })
                    .collect(),
            );
        }
    }
    if job.count("lora.r").is_some() || b.allow.contains(&Allow::Adapter) {
        let mut edits = Vec::new();
        for (v, what, cost) in [
            (
                "nf4",
                "frozen weights in 4 bits (NF4)",
                "unpacking at each use; quantised base",
            ),
            (
                "int8",
                "frozen weights in 8 bits",
                "slower products; quantised base",
            ),
        ] {
            if job.word("quant.format") != v {
                edits.push(edit(what, vec![("quant.format", text(v))], cost).needing(Allow::Quant));
            }
        }
        b.add(edits);
    }
    if let Some(s) = job.count("train.seq_len") {
        let lengths = [s / 2, s / 4].into_iter().filter(|n| *n >= 64);
        b.add(
            lengths
                .map(|n| {
                    edit(
                        &format!("samples of {n} instead of {s} tokens"),
                        vec![("train.seq_len", int(n))],
                        "shorter samples",
                    )
                    .needing(Allow::Length)
                })
                .collect(),
        );
    }
}

fn generation(job: &Job, b: &mut Builder) {
    if job.word("generate.cache") == "dynamic" && job.word("work.kind") == "generate" {
        b.add(vec![edit(
            "a static cache",
            vec![("generate.cache", text("static"))],
            "allocated once for all tokens",
        )]);
    }
    if job.given("quant.format").is_none() {
        let e = |v, what| {
            edit(what, vec![("quant.format", text(v))], "quantised weights").needing(Allow::Quant)
        };
        b.add(vec![
            e("nf4", "weights in 4 bits (NF4)"),
            e("int8", "weights in 8 bits"),
        ]);
    }
}

/// Micro-batch and accumulation; the user's own first. Training keeps their product, unless a smaller global batch is allowed (then its
/// halves are tried too); generation takes any number of sequences.
pub fn splits(job: &Job, allow: &[Allow]) -> Vec<(u64, u64)> {
    let generates = job.word("work.kind") != "train";
    let key = if job.word("work.kind") == "generate" {
        "generate.batch_size"
    } else {
        "train.micro_batch_size"
    };
    let b = job.count(key).unwrap_or(1);
    if generates {
        let mut all = vec![(b, 1)];
        all.extend((0..11).map(|i| (1u64 << i, 1)).filter(|s| s.0 != b));
        return all;
    }
    let acc = job.count("train.gradient_accumulation_steps").unwrap_or(1);
    let global = b * acc;
    let mut all = vec![(b, acc)];
    let mut add = |g: u64| {
        let divisors = (1..=g.min(4096)).filter(|d| g.is_multiple_of(*d));
        for d in divisors {
            if !all.contains(&(d, g / d)) {
                all.push((d, g / d));
            }
        }
    };
    add(global);
    if allow.contains(&Allow::Batch) {
        let mut g = global;
        while g.is_multiple_of(2) {
            g /= 2;
            add(g);
        }
    }
    all
}

/// The change to another split.
pub fn split_edit(job: &Job, from: (u64, u64), to: (u64, u64)) -> Edit {
    match job.word("work.kind").as_str() {
        "generate" => edit(
            &format!("{} sequences at once instead of {}", to.0, from.0),
            vec![("generate.batch_size", int(to.0))],
            "other latency",
        ),
        "forward" => edit(
            &format!("batch {} instead of {}", to.0, from.0),
            vec![("train.micro_batch_size", int(to.0))],
            "none",
        ),
        _ => {
            let keeps = from.0 * from.1 == to.0 * to.1;
            let what = format!(
                "micro-batch {} x {} instead of {} x {}{}",
                to.0,
                to.1,
                from.0,
                from.1,
                if keeps {
                    format!(" (effective batch stays {})", to.0 * to.1)
                } else {
                    format!(
                        " (effective batch {} instead of {})",
                        to.0 * to.1,
                        from.0 * from.1
                    )
                }
            );
            let set = vec![
                ("train.micro_batch_size", int(to.0)),
                ("train.gradient_accumulation_steps", int(to.1)),
            ];
            let mut e = edit(
                &what,
                set,
                if to.0 < from.0 {
                    "more, smaller kernels"
                } else {
                    "fewer, larger kernels"
                },
            );
            e.needs = (!keeps).then_some(Allow::Batch);
            e
        }
    }
}
