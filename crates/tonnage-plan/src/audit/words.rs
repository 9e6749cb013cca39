//! What a phrase of a document says about a claim: model, phase, part, method, settings, card.

use super::claim::{Part, Phase, Role, Settings};

/// The hints of a phrase; absent ones come from the phrases around it.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    pub subject: Option<String>,
    pub phase: Option<Phase>,
    pub part: Option<Part>,
    pub role: Option<Role>,
    pub gpu: Option<String>,
    pub settings: Settings,
    /// It speaks of memory.
    pub memory: bool,
    /// It speaks of less.
    pub saving: Option<String>,
}

impl Hints {
    /// These hints, and where they say nothing those of the phrase around.
    pub fn within(mut self, outer: &Hints) -> Hints {
        self.subject = self.subject.or_else(|| outer.subject.clone());
        self.phase = self.phase.or(outer.phase);
        self.part = self.part.or(outer.part);
        self.role = self.role.or(outer.role);
        self.gpu = self.gpu.or_else(|| outer.gpu.clone());
        self.memory |= outer.memory;
        for (k, v) in &outer.settings {
            self.settings.entry(k.clone()).or_insert_with(|| v.clone());
        }
        self
    }
}

/// Parts, longest word first where one holds another.
const PARTS: &[(&str, Part)] = &[
    ("kv cache", Part::KvCache),
    ("kv-cache", Part::KvCache),
    ("key-value cache", Part::KvCache),
    ("optimizer", Part::Optimizer),
    ("optimiser", Part::Optimizer),
    ("adam state", Part::Optimizer),
    ("gradients", Part::Gradients),
    ("activations", Part::Activations),
    ("backward", Part::Backward),
    ("adapters", Part::Adapter),
    ("lora parameters", Part::Adapter),
    ("lora weights", Part::Adapter),
    ("model weights", Part::Weights),
    ("model parameters", Part::Weights),
    ("base model", Part::Weights),
    ("weights", Part::Weights),
    ("overhead", Part::Overhead),
    ("working memory", Part::Working),
    ("input", Part::Inputs),
];

/// The part whose word stands last in a phrase.
pub fn part(phrase: &str) -> Option<Part> {
    let lower = phrase.to_lowercase();
    PARTS
        .iter()
        .filter_map(|(w, p)| Some((lower.rfind(w)?, *p)))
        .max_by_key(|(at, _)| *at)
        .map(|(_, p)| p)
}

/// `7B`, `1.3B`, `350M`: a size used as a name.
fn size(word: &str) -> bool {
    let Some(n) = word.strip_suffix(['B', 'M']) else {
        return false;
    };
    !n.is_empty() && n.parse::<f64>().is_ok() && n.starts_with(|c: char| c.is_ascii_digit())
}

/// The model a phrase names: one of the bound names (the longest), a model of the catalog, a size.
fn subject(phrase: &str, names: &[String]) -> Option<String> {
    let lower = phrase.to_lowercase();
    let whole = |n: &&String| {
        let n = n.to_lowercase();
        lower.match_indices(&n).any(|(i, _)| {
            let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            edge(lower[..i].chars().next_back()) && edge(lower[i + n.len()..].chars().next())
        })
    };
    if let Some(n) = names.iter().filter(whole).max_by_key(|n| n.len()) {
        return Some(n.clone());
    }
    let words = phrase
        .split([' ', ',', '(', ')', '*', '`', '|', ':', ';'])
        .map(|w| w.trim_matches(['.', '\'', '"']))
        .filter(|w| !w.is_empty());
    let mut sizes = None;
    for w in words {
        let named =
            w.len() > 3 && w.contains(|c: char| c.is_ascii_digit()) && w.contains(['-', '/', '.']);
        if named && tonnage_catalog::model(w).is_ok() {
            return Some(w.to_string());
        }
        if size(w) && sizes.is_none() {
            sizes = Some(w.to_string());
        }
    }
    sizes
}

/// The card that a phrase names, as it spells it.
fn card(phrase: &str) -> Option<String> {
    use tonnage_catalog::{LookupError, gpu};
    let words: Vec<&str> = phrase
        .split([' ', ',', '(', ')', '*', '|', '+', ';', ':'])
        .filter(|w| !w.is_empty())
        .collect();
    for n in (1..=4).rev() {
        for w in words.windows(n) {
            let name = w.join(" ");
            let digit = name.contains(|c: char| c.is_ascii_digit());
            if !digit || name.len() < 2 {
                continue;
            }
            match gpu(&name) {
                Ok(_) | Err(LookupError::Ambiguous { .. }) => return Some(name),
                Err(_) => {}
            }
        }
    }
    None
}

/// The whole number after one of these words, with `=`, `:`, `size`, `of` or `length` between.
fn after(lower: &str, keys: &[&str]) -> Option<u64> {
    for k in keys {
        for (i, _) in lower.match_indices(k) {
            let rest = lower[i + k.len()..].trim_start_matches(['=', ':', ' ', '`', '*', '-', '_']);
            let rest = ["size", "length", "len", "of", "rank"]
                .iter()
                .find_map(|w| rest.strip_prefix(w))
                .unwrap_or(rest)
                .trim_start_matches(['=', ':', ' ', '`', '*']);
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let next = rest[digits.len()..].chars().next();
            // a number with a unit is another thing
            if !digits.is_empty()
                && next.is_none_or(|c| !c.is_alphanumeric() && c != '.' && c != '%')
            {
                return digits.parse().ok();
            }
        }
    }
    None
}

fn any(lower: &str, words: &[&str]) -> bool {
    words.iter().any(|w| lower.contains(w))
}

/// Reads a phrase. `names` are what the bindings call subjects.
pub fn hints(phrase: &str, names: &[String]) -> Hints {
    let lower = phrase.to_lowercase();
    let mut h = Hints {
        subject: subject(phrase, names),
        part: part(phrase),
        gpu: card(phrase),
        ..Hints::default()
    };
    let training = any(&lower, &["training", "fine-tun", "finetun", "to train"]);
    let inference = any(
        &lower,
        &[
            "inference",
            "generation",
            "generating",
            "serving",
            "evaluation",
        ],
    );
    h.phase = match (training, inference) {
        (true, false) => Some(Phase::Training),
        (false, true) => Some(Phase::Inference),
        _ => None,
    };
    h.role = if lower.contains("minimum") {
        Some(Role::Minimum)
    } else if lower.contains("recommended") {
        Some(Role::Recommended)
    } else if any(&lower, &["optimal", "ideal"]) {
        Some(Role::Optimal)
    } else {
        None
    };
    h.memory = any(
        &lower,
        &[
            "memory", "vram", "gpu", "need", "requir", "total", "peak", "uses", "fits", "takes",
        ],
    );
    let mut put = |k: &str, v: &str| {
        h.settings.insert(k.into(), v.into());
    };
    if lower.contains("qlora") {
        put("method", "qlora");
    } else if lower.contains("lora") {
        put("method", "lora");
    } else if any(
        &lower,
        &[
            "full fine",
            "full training",
            "full finetun",
            "full-param",
            "full param",
        ],
    ) || lower.trim() == "full"
    {
        put("method", "full");
    }
    for (words, name) in [
        (&["fp32", "float32", "32-bit"][..], "fp32"),
        (&["bf16", "bfloat16"][..], "bf16"),
        (&["fp16", "float16", "16-bit", "half precision"][..], "fp16"),
        (&["8-bit", "8bit", "int8"][..], "8bit"),
        (&["4-bit", "4bit", "int4", "nf4"][..], "4bit"),
    ] {
        if any(&lower, words) && !(name == "4bit" && lower.contains("qlora")) {
            put("precision", name);
            break;
        }
    }
    if let Some(n) = after(&lower, &["batch size", "batch_size", "batch"]) {
        put("batch_size", &n.to_string());
    }
    if let Some(n) = after(
        &lower,
        &[
            "sequence length",
            "seq_len",
            "seq len",
            "sequence",
            "context length",
            "context",
            "block size",
            "block_size",
        ],
    ) {
        put("seq_len", &n.to_string());
    }
    if any(&lower, &["save", "saving", "reduc", "less memory", "lower"]) {
        let of = [
            ("checkpointing", "checkpointing"),
            ("mixed precision", "mixed precision"),
            ("fp16", "fp16"),
            ("half precision", "fp16"),
            ("4-bit", "4-bit"),
            ("8-bit", "8-bit"),
            ("lora", "lora"),
        ];
        h.saving = of
            .iter()
            .find(|(w, _)| lower.contains(w))
            .map(|(_, n)| (*n).into());
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases() {
        let h = hints(
            "QLoRA fine-tuning of a 7B model, batch size 4, sequence length 512",
            &[],
        );
        assert_eq!(h.subject.as_deref(), Some("7B"));
        assert_eq!(h.phase, Some(Phase::Training));
        let of = |k: &str| h.settings.get(k).map(String::as_str);
        assert_eq!(
            (of("method"), of("batch_size"), of("seq_len")),
            (Some("qlora"), Some("4"), Some("512"))
        );
        let h = hints("an RTX 3060 holds it", &[]);
        assert_eq!(h.gpu.as_deref(), Some("RTX 3060"));
        assert_eq!(
            part("weights and then optimizer states"),
            Some(Part::Optimizer)
        );
        assert_eq!(after("batch 8 gb", &["batch"]), Some(8));
        assert_eq!(after("batch 8gb", &["batch"]), None);
    }
}
