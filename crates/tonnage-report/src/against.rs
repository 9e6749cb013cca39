//! Training against generation, and one plan over several cards: what a comparison says about pairs of jobs.

use crate::style::{Paint, Style};
use crate::table::{Comparison, Entry};
use tonnage_core::footprint::{Component, Footprint};
use tonnage_units::Bytes;

/// A training job and a generation of the same model.
pub struct Pair<'a> {
    pub train: (&'a Entry, &'a Footprint),
    pub generate: (&'a Entry, &'a Footprint),
}

/// What a footprint was made with.
pub fn setting<'a>(f: &'a Footprint, key: &str) -> Option<&'a str> {
    let found = f.assumptions.iter().find(|a| a.key == key);
    found.map(|a| a.value.as_str())
}

/// The label without the part that a sweep over the kind of work added.
fn base(label: &str) -> String {
    let words = label.split(' ').filter(|w| !w.starts_with("kind="));
    words.collect::<Vec<_>>().join(" ")
}

/// Every generation with the training that it belongs to: the one with the same other settings, else the last one before it of the same
/// model.
pub fn pairs(c: &Comparison) -> Vec<Pair<'_>> {
    let answered: Vec<(&Entry, &Footprint)> = c
        .entries
        .iter()
        .filter_map(|e| e.footprint.as_ref().ok().map(|f| (e, f)))
        .collect();
    let is = |f: &Footprint, kind: &str| setting(f, "work.kind") == Some(kind);
    let same = |a: &Footprint, b: &Footprint| {
        (&a.model.model_type, a.model.base_param_count)
            == (&b.model.model_type, b.model.base_param_count)
    };
    let mut out = Vec::new();
    for (i, &generate) in answered.iter().enumerate() {
        if !is(generate.1, "generate") {
            continue;
        }
        let fit = |t: &&(&Entry, &Footprint)| is(t.1, "train") && same(t.1, generate.1);
        let named = |t: &&(&Entry, &Footprint)| base(&t.0.label) == base(&generate.0.label);
        let train = answered
            .iter()
            .find(|t| fit(t) && named(t))
            .or_else(|| answered[..i].iter().rev().find(fit));
        if let Some(&train) = train {
            out.push(Pair { train, generate });
        }
    }
    out
}

impl Pair<'_> {
    /// (training, generation) at the allocated level.
    fn allocated(&self) -> (u64, u64) {
        let of = |f: &Footprint| f.peak.allocated.expected;
        (of(self.train.1), of(self.generate.1))
    }

    /// How many times generation's allocated peak training's is.
    pub fn ratio(&self) -> f64 {
        let (t, g) = self.allocated();
        t as f64 / g.max(1) as f64
    }

    /// The same of the device level.
    pub fn device_ratio(&self) -> f64 {
        let of = |f: &Footprint| f.peak.device.expected;
        of(self.train.1) as f64 / of(self.generate.1).max(1) as f64
    }

    /// Components that only one of the two has, with their bytes: (training's, generation's).
    pub fn alone(&self) -> [Vec<(Component, u64)>; 2] {
        let (t, g) = (self.train.1, self.generate.1);
        let only = |a: &Footprint, b: &Footprint| {
            Component::ALL
                .into_iter()
                .filter(|c| a.component(*c) > 0 && b.component(*c) == 0)
                .map(|c| (c, a.component(c)))
                .collect()
        };
        [only(t, g), only(g, t)]
    }

    fn name(&self) -> String {
        match base(&self.generate.0.label) {
            b if b.is_empty() => self.generate.1.job.clone(),
            b => b,
        }
    }
}

/// The lines about pairs; empty where there are none.
pub fn text(c: &Comparison, s: &Style) -> Vec<String> {
    let bytes = |n: u64| Bytes(n).display(s.units).to_string();
    let mut out = Vec::new();
    for p in pairs(c) {
        if out.is_empty() {
            out.push(String::new());
            out.push(s.paint(Paint::Bold, "training against generation"));
        }
        let (t, g) = p.allocated();
        let less = if t >= g {
            let pct = 100.0 * (t - g) as f64 / t.max(1) as f64;
            format!("generation takes {} ({pct:.1} %) less", bytes(t - g))
        } else {
            format!("generation takes {} more", bytes(g - t))
        };
        out.push(format!(
            "{}: training {}, generation {} allocated: {:.1}x ({:.1}x on the device); {less}",
            p.name(),
            bytes(t),
            bytes(g),
            p.ratio(),
            p.device_ratio(),
        ));
        let list = |v: &[(Component, u64)]| {
            let parts = v
                .iter()
                .map(|(c, n)| format!("{} {}", c.title(), bytes(*n)));
            parts.collect::<Vec<_>>().join(", ")
        };
        for (who, v) in ["training", "generation"].iter().zip(p.alone()) {
            if !v.is_empty() {
                out.push(format!("  only {who} has {}", list(&v)));
            }
        }
        let of = |key: &str| setting(p.generate.1, key).unwrap_or("1").to_string();
        out.push(format!(
            "  generation's batch is {} (generate.batch_size), for {} new tokens; training's, {}, has no part in it",
            of("generate.batch_size"),
            of("generate.new_tokens"),
            p.train.1.micro_batch_size
        ));
    }
    out
}

/// A line for each generation: what its cache costs a token and at its end.
pub fn caches(c: &Comparison, s: &Style) -> Vec<String> {
    let mut out = Vec::new();
    for e in &c.entries {
        let Some(k) = e.footprint.as_ref().ok().and_then(|f| f.kv_cache) else {
            continue;
        };
        if out.is_empty() {
            out.push(String::new());
            out.push(s.paint(Paint::Bold, "keys and values"));
        }
        out.push(format!(
            "{}: {} bytes a token, {} for {} sequence{} of {} tokens",
            e.label,
            k.bytes_per_token,
            Bytes(k.bytes).display(s.units),
            k.sequences,
            if k.sequences == 1 { "" } else { "s" },
            k.tokens
        ));
    }
    out
}

/// The pairs as JSON.
pub fn json(c: &Comparison) -> serde_json::Value {
    let all = pairs(c).into_iter().map(|p| {
        let (t, g) = p.allocated();
        let [training, generation] = p.alone().map(|v| {
            let parts = v.iter().map(|(c, n)| (c.name().to_string(), (*n).into()));
            serde_json::Value::Object(parts.collect())
        });
        serde_json::json!({
            "training": p.train.0.label, "generation": p.generate.0.label,
            "training_allocated_bytes": t, "generation_allocated_bytes": g,
            "ratio": p.ratio(), "device_ratio": p.device_ratio(),
            "only_training": training, "only_generation": generation,
        })
    });
    all.collect::<Vec<_>>().into()
}

/// What changes from the first job to this one, apart from memory: settings with both values (`-`: it has no such setting).
pub fn changed(first: &Footprint, now: &Footprint) -> Vec<String> {
    let mut out = Vec::new();
    if first.gpu != now.gpu {
        out.push(format!("gpu: {} to {}", first.gpu, now.gpu));
    }
    let mut seen = Vec::new();
    for a in first.assumptions.iter().chain(&now.assumptions) {
        if seen.contains(&a.key.as_str()) {
            continue;
        }
        seen.push(&a.key);
        let (x, y) = (setting(first, &a.key), setting(now, &a.key));
        // a default of a table that only one of the jobs has says nothing
        let told = |f: &Footprint| {
            let found = f.assumptions.iter().find(|b| b.key == a.key);
            found.is_some_and(|b| b.origin != "default")
        };
        if x != y && (x.is_some() && y.is_some() || told(first) || told(now)) {
            let show = |v: Option<&str>| v.unwrap_or("-").to_string();
            out.push(format!("{}: {} to {}", a.key, show(x), show(y)));
        }
    }
    out
}

/// A verdict for each job on its card, and what changes from the first to the others.
pub fn verdicts(c: &Comparison, s: &Style) -> Vec<String> {
    let mut out = Vec::new();
    let answered = || {
        c.entries
            .iter()
            .filter_map(|e| e.footprint.as_ref().ok().map(|f| (e, f)))
    };
    for (e, f) in answered() {
        if let Some(v) = f.decisive() {
            if out.is_empty() {
                out.push(String::new());
            }
            out.push(format!(
                "{} on {}: {}; {}",
                e.label,
                v.name,
                v.outcome.name(),
                v.why
            ));
        }
    }
    let Some((first, f)) = answered().next() else {
        return out;
    };
    let cards = answered().any(|(_, g)| g.gpu != f.gpu);
    if cards {
        for (e, now) in answered().skip(1) {
            let changes = changed(f, now);
            if !changes.is_empty() {
                out.push(String::new());
                let head = format!("what changes from {} to {}", first.label, e.label);
                out.push(s.paint(Paint::Bold, &head));
                out.extend(changes.into_iter().map(|c| format!("  {c}")));
            }
        }
    }
    out
}
