//! What a block is: what the recorder saw at its address; else the code that asked for it and when it was made and freed.

use crate::raw::tag;
use crate::trace::{Place, Site};
use std::collections::{HashMap, HashSet};
use tonnage_core::footprint::Component;

/// A block's life.
#[derive(Clone, Copy, Debug)]
pub struct Born {
    pub place: u32,
    pub requested: u64,
    pub block: u64,
    pub stack: u32,
    /// Where it was freed; `None`: alive at the end.
    pub ended: Option<u32>,
}

/// Something that the recorder found at a block's address.
#[derive(Clone, Debug)]
pub struct Tagged {
    pub id: u32,
    pub category: String,
    /// Of the storage.
    pub bytes: u64,
    pub name: String,
}

#[derive(Clone, Debug)]
struct Frame {
    file: String,
    line: u32,
    function: String,
}

/// The stacks of the recording, innermost frame first.
pub struct Frames {
    root: String,
    frames: Vec<Frame>,
    stacks: Vec<Vec<u32>>,
    facts: Vec<Facts>,
}

/// What a stack says.
#[derive(Clone, Debug, Default)]
struct Facts {
    site: Site,
    loss: bool,
    cache: bool,
    attention: bool,
    clip: bool,
    product: bool,
}

fn is_library(file: &str) -> bool {
    file.contains("site-packages")
        || file.contains("dist-packages")
        || file.contains("/lib/python3")
        || file.starts_with('<')
}

/// Functions that say nothing about what is computed.
const DULL: [&str; 14] = [
    "forward",
    "__call__",
    "<lambda>",
    "_call_impl",
    "_wrapped_call_impl",
    "_apply",
    "cuda",
    "to",
    "wrapper",
    "inner",
    "convert",
    "_fn",
    "decorate_context",
    "wrapper_fn",
];

const LOSS: [&str; 8] = [
    "cross_entropy",
    "nll_loss",
    "log_softmax",
    "fixed_cross_entropy",
    "ForCausalLMLoss",
    "ForMaskedLMLoss",
    "ForSequenceClassificationLoss",
    "loss_function",
];

impl Frames {
    /// None yet; user files are shown relative to `root`.
    pub fn new(root: &str) -> Frames {
        let mut root = root.to_string();
        if !root.is_empty() && !root.ends_with('/') {
            root.push('/');
        }
        Frames {
            root,
            frames: Vec::new(),
            stacks: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// The next frame.
    pub fn frame(&mut self, file: &str, line: u32, function: &str) {
        self.frames.push(Frame {
            file: file.into(),
            line,
            function: function.into(),
        });
    }

    /// The next stack.
    pub fn stack(&mut self, ids: &[u32]) {
        let ids: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|i| (*i as usize) < self.frames.len())
            .collect();
        let all: Vec<&Frame> = ids.iter().map(|i| &self.frames[*i as usize]).collect();
        let has = |names: &[&str]| all.iter().any(|f| names.contains(&f.function.as_str()));
        let op = all
            .iter()
            .take_while(|f| is_library(&f.file))
            .find(|f| !DULL.contains(&f.function.as_str()))
            .map(|f| f.function.clone());
        let stem = |f: &Frame| {
            let name = f.file.rsplit('/').next().unwrap_or("");
            name.trim_end_matches(".py").to_string()
        };
        let op = match (op, all.first()) {
            // a `forward` of torch.nn: its file says which
            (None, Some(f)) if f.file.contains("torch/nn/modules/") && f.function == "forward" => {
                stem(f)
            }
            (Some(_), Some(f))
                if f.file.contains("torch/nn/modules/") && f.function == "forward" =>
            {
                stem(f)
            }
            (None, Some(f)) if is_library(&f.file) => stem(f),
            (None, _) => String::new(),
            (Some(op), _) => op,
        };
        let source = all
            .iter()
            .find(|f| !is_library(&f.file))
            .map(|f| self.line(&f.file, f.line, &f.function))
            .unwrap_or_default();
        let facts = Facts {
            loss: has(&LOSS)
                || all
                    .first()
                    .is_some_and(|f| f.file.ends_with("torch/nn/modules/loss.py")),
            cache: all
                .iter()
                .any(|f| f.file.ends_with("transformers/cache_utils.py")),
            attention: all.iter().any(|f| f.function == "eager_attention_forward"),
            clip: has(&["clip_grad_norm_", "unscale_", "clip_grad_value_"]),
            product: matches!(op.as_str(), "linear" | "addmm" | "matmul" | "bmm" | "")
                || op.contains("linear"),
            site: Site { op, source },
        };
        self.stacks.push(ids);
        self.facts.push(facts);
    }

    fn line(&self, file: &str, line: u32, function: &str) -> String {
        let file = file.strip_prefix(&self.root).unwrap_or(file);
        if function.is_empty() || function == "<module>" {
            format!("{file}:{line}")
        } else {
            format!("{file}:{line} {function}")
        }
    }

    /// `file:line` as reports show it.
    pub fn shown(&self, at: &str) -> String {
        at.strip_prefix(&self.root).unwrap_or(at).into()
    }

    /// The innermost line outside libraries.
    pub fn user_line(&self, frames: &[(String, u32, String)]) -> String {
        frames
            .iter()
            .find(|f| !is_library(&f.0))
            .map(|f| self.line(&f.0, f.1, &f.2))
            .unwrap_or_default()
    }

    /// The code of a stack.
    pub fn site(&self, stack: u32) -> Site {
        self.facts
            .get(stack as usize)
            .map(|f| f.site.clone())
            .unwrap_or_default()
    }

    /// The place, with the phase that only the code shows: clipping happens between backward and the optimizer.
    pub fn place(&self, stack: u32, place: &Place) -> Place {
        let mut p = place.clone();
        if p.phase == "between" && self.facts.get(stack as usize).is_some_and(|f| f.clip) {
            p.phase = "clip".into();
        }
        p
    }
}

const HEADS: [&str; 9] = [
    "lm_head",
    "head",
    "fc_out",
    "output_projection",
    "embed_out",
    "cls",
    "score",
    "classifier",
    "vocab_projector",
];

fn is_head(module: &str) -> bool {
    let first = module.split('.').next().unwrap_or("");
    HEADS.contains(&first)
        || module
            .rsplit('.')
            .next()
            .is_some_and(|l| HEADS.contains(&l))
}

/// Default sizes of the cuBLAS workspace (below capability 9.0, from there) and of cuBLASLt's: torch 2.11 CublasHandlePool.cpp.
const WORKSPACES: [u64; 3] = [8_519_680, 33_554_432, 1 << 20];

/// Components and names of all blocks.
pub fn all(
    places: &[Place],
    born: &[Born],
    tagged: &[Tagged],
    frames: &Frames,
) -> (Vec<Component>, Vec<String>) {
    let mut found: Vec<Option<Component>> = vec![None; born.len()];
    let mut names = vec![String::new(); born.len()];
    // bytes of fp32 parameters by their module, for autocast's copies
    let mut weights: HashMap<&str, HashSet<u64>> = HashMap::new();
    for t in tagged {
        let Some(c) = tag(&t.category) else { continue };
        let slot = &mut found[t.id as usize];
        // the first name stays; optimizer states alone rename, as in the recorded breakdowns
        if slot.is_none() || c == Component::OptimizerState {
            *slot = Some(c);
            names[t.id as usize] = t.name.clone();
        }
        if c == Component::Parameters {
            let module = t.name.rsplit_once('.').map_or("", |x| x.0);
            weights.entry(module).or_default().insert(t.bytes);
        }
    }
    let nothing = Facts::default();
    let facts = |b: &Born| frames.facts.get(b.stack as usize).unwrap_or(&nothing);
    let mut logits: HashSet<u64> = HashSet::new();
    let mut others: HashSet<u64> = HashSet::new();
    let mut out: Vec<Component> = Vec::with_capacity(born.len());
    for (b, tag) in born.iter().zip(&found) {
        let p = &places[b.place as usize];
        let c = tag.unwrap_or_else(|| {
            by_life(
                b,
                p,
                b.ended.map(|e| &places[e as usize]),
                facts(b),
                &weights,
            )
        });
        if p.phase == "forward" {
            if c == Component::LogitsAndLoss {
                logits.insert(b.requested);
            } else {
                others.insert(b.requested);
            }
        }
        out.push(c);
    }
    // backward has no Python frames: a block as large as the logits, where nothing else of the forward pass is, is their gradient
    for (i, b) in born.iter().enumerate() {
        let p = &places[b.place as usize];
        if out[i] == Component::Temporaries
            && p.phase == "backward"
            && b.requested > 1 << 20
            && logits.contains(&b.requested)
            && !others.contains(&b.requested)
        {
            out[i] = Component::LogitsAndLoss;
        }
    }
    (out, names)
}

fn by_life(
    b: &Born,
    p: &Place,
    end: Option<&Place>,
    f: &Facts,
    weights: &HashMap<&str, HashSet<u64>>,
) -> Component {
    if f.cache {
        return Component::KvCache;
    }
    let working = matches!(
        p.phase.as_str(),
        "forward" | "backward" | "prefill" | "decode"
    );
    if working
        && end.is_none()
        && WORKSPACES.contains(&b.requested)
        && (p.phase == "backward" || f.product)
    {
        return Component::Workspaces;
    }
    let same_step = end.is_some_and(|e| (e.step, e.micro_batch) == (p.step, p.micro_batch));
    let same = end.is_some_and(|e| same_step && e.phase == p.phase);
    // from torch 2.15 every product has its own; no tensor is likely to have the size of the smaller one
    if working && same && b.requested == WORKSPACES[0] && (p.phase == "backward" || f.product) {
        return Component::Workspaces;
    }
    let logits = f.loss || is_head(&p.module);
    match p.phase.as_str() {
        "forward" => {
            let into_backward = same_step && end.is_some_and(|e| e.phase == "backward");
            let copy = p.node == "amp"
                && weights
                    .get(p.module.as_str())
                    .is_some_and(|w| w.contains(&(b.requested * 2)));
            if copy && (same || into_backward) {
                Component::AutocastCopies
            } else if logits {
                Component::LogitsAndLoss
            } else if same {
                Component::Temporaries
            } else if into_backward {
                if f.attention && matches!(f.site.op.as_str(), "softmax" | "dropout") {
                    Component::AttentionScores
                } else {
                    Component::SavedActivations
                }
            // a run that ended in the middle of its step: what forward had made and nobody had freed
            } else if end.is_none() && b.requested > 512 {
                Component::SavedActivations
            } else {
                Component::HeldOutputs
            }
        }
        "backward" if same || end.is_none() => Component::Temporaries,
        // what leaves backward and no optimizer was seen with it
        "backward" => Component::Gradients,
        "prefill" | "decode" if logits => Component::LogitsAndLoss,
        "prefill" | "decode" if !same => Component::KvCache,
        "optimizer" if end.is_none() => Component::OptimizerState,
        "load" | "between" if !same => Component::Inputs,
        _ => Component::Temporaries,
    }
}
