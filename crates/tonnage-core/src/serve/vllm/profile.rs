//! The profile run: one forward of `max_num_batched_tokens` tokens without attention, written as the frames of vLLM's modules hold
//! their tensors, then the sampler (vLLM 0.33.0, `model_executor/models/*.py`, `v1/worker/gpu/model_runner.py`, `v1/worker/gpu/sample`).

use super::device::{Device, Tensor};
use super::graphs::{self, Play, Widths};
use super::model::{Family, Model, Weights};
use super::runner;
use super::weights::widths;
use std::cell::{Cell, RefCell};

/// Tensors that a first forward leaves behind.
#[derive(Default)]
pub(super) struct Left {
    held: RefCell<Vec<Tensor>>,
    /// The workspace that layers share; it only grows.
    pub workspace: RefCell<Option<Tensor>>,
    /// An fp32 RoPE table until its first use, then the one in 16 bits.
    pub table: RefCell<Option<Tensor>>,
    matched: Cell<bool>,
    /// Whether a Marlin kernel ran, and whether cuBLAS got its second workspace after that.
    marlin: Cell<bool>,
    cublas: Cell<bool>,
}

impl Left {
    /// `_match_cos_sin_cache_dtype`: the first use makes the table in the model's type.
    pub fn match_table(&self, d: &Device) {
        let mut table = self.table.borrow_mut();
        if let Some(wide) = table.as_ref().filter(|_| !self.matched.get()) {
            let narrow = d.tensor(wide.bytes / 2);
            *table = Some(narrow);
            self.matched.set(true);
        }
    }
}

pub(super) struct Profile<'a> {
    /// Set where Inductor has compiled the forward.
    pub compiled: Option<Widths>,
    /// Inductor has no cache of this model yet and times its kernels.
    pub autotunes: bool,
    pub device: &'a Device,
    pub m: &'a Model,
    pub tp: u64,
    /// Tokens of the pass.
    pub tokens: u64,
    /// Requests of the sampler's pass.
    pub requests: u64,
    pub max_requests: u64,
    pub max_model_len: u64,
    pub block_size: u64,
    pub hopper: bool,
    /// fp8 arithmetic.
    pub fp8: bool,
    pub multiprocessors: u64,
    pub left: &'a Left,
}

impl Profile<'_> {
    /// A 16-bit activation of `width` elements a token.
    pub(super) fn t(&self, width: u64) -> Tensor {
        self.device.tensor(2 * self.tokens * width)
    }

    /// A 16-bit product. After a Marlin kernel the first one makes cuBLAS take a second workspace, where there is one rank.
    pub(super) fn half(&self, width: u64) -> Tensor {
        let y = self.t(width);
        self.second_workspace();
        y
    }

    fn second_workspace(&self) {
        let left = self.left;
        if left.marlin.get() && !left.cublas.get() && self.tp == 1 {
            left.cublas.set(true);
            left.held.borrow_mut().push(self.device.tensor(8_519_680));
        }
    }

    /// Marlin's locks stay from its first kernel on (`get_marlin_workspace`).
    pub(super) fn marlin(&self) {
        if !self.left.marlin.replace(true) {
            self.left
                .held
                .borrow_mut()
                .push(self.device.tensor(16 * self.multiprocessors));
        }
    }

    /// A linear layer's output. fp8 quantises its input first, with a scale for each token or for each 128 columns; Marlin sums in fp32
    /// tiles of 64 by 256 for each multiprocessor.
    pub(super) fn linear(&self, width: u64, input: u64) -> Tensor {
        let marlin = match &self.m.weights {
            Ok(Weights::Packed { .. }) => !self.hopper,
            Ok(Weights::Fp8) => !self.fp8,
            Ok(Weights::BlockFp8) => !self.hopper,
            _ => false,
        };
        if marlin {
            self.marlin();
            let y = self.t(width);
            drop(self.device.tensor(self.multiprocessors * 65_536));
            return y;
        }
        let t = self.tokens;
        let quantised = match &self.m.weights {
            Ok(Weights::Fp8) => Some((self.device.tensor(t * input), self.device.tensor(4 * t))),
            Ok(Weights::BlockFp8) => Some((
                self.device.tensor(t * input),
                self.device.tensor(4 * t * input.div_ceil(128)),
            )),
            Ok(Weights::Packed { .. }) => None,
            _ => return self.half(width),
        };
        let y = self.t(width);
        drop(quantised);
        y
    }

    /// The output of a row-parallel layer: the sum over ranks is another tensor.
    fn row(&self, width: u64, input: Tensor) -> Tensor {
        let part = self.linear(width, input.bytes / 2 / self.tokens);
        drop(input);
        self.reduce(part)
    }

    pub(super) fn reduce(&self, part: Tensor) -> Tensor {
        if self.tp == 1 {
            return part;
        }
        let whole = self.t(part.bytes / 2 / self.tokens);
        drop(part);
        whole
    }

    /// Forward, then sampler; the peak shows on the device.
    pub fn run(&self) {
        let (d, n) = (self.device, self.requests);
        let batch = runner::dummy(d, n);
        if self.autotunes {
            // on example tensors: the whole embedding table and two activations
            let (table, activation) = (
                2 * self.m.vocab * self.m.hidden / self.tp,
                2 * self.tokens * self.m.hidden,
            );
            drop([table, activation, activation].map(|bytes| d.tensor(bytes)));
        }
        let hidden = match &self.compiled {
            None => self.forward(),
            Some(w) => {
                let experts = || self.experts();
                let play = Play {
                    pieces: d,
                    attention: None,
                    whole: false,
                    between: &|| (),
                    experts: self.m.moe.map(|_| &experts as &dyn Fn() -> Tensor),
                };
                graphs::forward(w, self.tokens, &play)
            }
        };
        let index = d.tensor(8 * n);
        let sampled = d.tensor(2 * n * self.m.hidden);
        drop((index, batch));
        let padded = self.m.vocab.next_multiple_of(64);
        let mut logits = d.tensor(2 * n * padded / self.tp);
        self.second_workspace();
        if self.tp > 1 {
            logits = d.tensor(2 * n * padded);
        }
        let cache = runner::sampler(d, n, self.m.vocab);
        self.left.held.borrow_mut().push(cache);
        drop((logits, sampled, hidden));
    }

    fn forward(&self) -> Tensor {
        use Family::*;
        let h = self.m.hidden;
        let mut hidden = self.reduce(self.t(h));
        match self.m.family {
            Llama | Phi3 | Qwen2 | Qwen3 | Qwen3Moe | Mixtral | Gemma2 | Gemma3 | DeepSeek
            | Llama4 | GptOss | MiniMaxM2 => {
                if matches!(self.m.family, Gemma2 | Gemma3) {
                    // times the normaliser
                    hidden = self.normed(hidden);
                }
                let mut residual: Option<Tensor> = None;
                for i in 0..self.m.layers {
                    (hidden, residual) = self.fused(i, hidden, residual);
                }
                drop(residual);
            }
            Granite => {
                for _ in 0..self.m.layers {
                    hidden = self.granite(hidden);
                }
                hidden = self.normed(hidden);
            }
            Cohere | StableLm => {
                // the loop's `residual` is what the previous layer returned
                let mut residual = None;
                for _ in 0..self.m.layers {
                    let (out, r) = if self.m.family == Cohere {
                        self.cohere(hidden)
                    } else {
                        self.stablelm(hidden)
                    };
                    hidden = out;
                    residual = Some(r);
                }
                hidden = self.normed(hidden);
                drop(residual);
            }
            Falcon => {
                for _ in 0..self.m.layers {
                    hidden = self.falcon(hidden);
                }
                hidden = self.normed(hidden);
            }
            Gpt2 | Opt | Bloom => {
                // the model's frame keeps both embeddings
                let mut embeds = None;
                if self.m.family == Bloom {
                    hidden = self.normed(hidden);
                } else {
                    let positions = self.t(h);
                    let sum = self.t(h);
                    embeds = Some((std::mem::replace(&mut hidden, sum), positions));
                }
                for _ in 0..self.m.layers {
                    hidden = self.classic(hidden);
                }
                hidden = self.normed(hidden);
                drop(embeds);
            }
            Mamba => {
                let mut residual = None;
                for _ in 0..self.m.layers {
                    (hidden, residual) = self.mamba(hidden, residual);
                }
                drop(residual);
            }
            Gemma4 => {
                hidden = self.normed(hidden);
                for i in 0..self.m.layers {
                    hidden = self.gemma4(i, hidden);
                }
                hidden = self.normed(hidden);
            }
            NemotronH => {
                let pattern = self.m.field("hybrid_override_pattern").as_str();
                let mut residual = None;
                for kind in pattern.unwrap_or("").chars() {
                    (hidden, residual) = self.hybrid(kind, hidden, residual);
                }
                drop(residual);
            }
            GptNeox | SmolLm3 => {
                let angles = self.angles();
                // transformers' model keeps the embeddings
                let mut embeds = None;
                for i in 0..self.m.layers {
                    let input = if i == 0 {
                        embeds = Some(hidden);
                        None
                    } else {
                        Some(hidden)
                    };
                    hidden = if self.m.family == GptNeox {
                        self.neox(input)
                    } else {
                        self.smollm3(i, input)
                    };
                }
                hidden = self.normed(hidden);
                drop((embeds, angles));
            }
        }
        hidden
    }

    /// `x = norm(x)`.
    pub(super) fn normed(&self, x: Tensor) -> Tensor {
        let y = self.t(self.m.hidden);
        drop(x);
        y
    }

    /// A layer whose norms take the residual along. The model's loop still holds the layer's input, and where the sum is a new
    /// tensor (Gemma) the old residual too, while the layer runs.
    fn fused(&self, i: u64, input: Tensor, residual: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        let h = self.m.hidden;
        let gemma = matches!(self.m.family, Family::Gemma2 | Family::Gemma3);
        // both norms of Gemma return new tensors (`ir.ops.fused_add_rms_norm`), the others write into theirs
        let add = |x: Tensor, r: Tensor| {
            if gemma {
                (self.t(h), self.t(h), Some((x, r)))
            } else {
                (x, r, None)
            }
        };
        let (normed, mut residual, caller) = match residual {
            // first layer: the embedding becomes the residual, its norm is a new tensor
            None => (self.t(h), input, None),
            Some(r) => add(input, r),
        };
        let mut hidden = match (self.m.family, self.m.latent) {
            (Family::DeepSeek, Some(l)) => self.latent(l),
            (Family::Llama4, _) => self.llama4_attention(i),
            (Family::GptOss, _) => self.gpt_oss_attention(),
            (Family::MiniMaxM2, _) => self.minimax_attention(),
            _ => self.attention(),
        };
        // Llama's attention output replaces the norm in the layer's frame; in place, the norm is the caller's input
        let input = if gemma || caller.is_some() {
            drop(normed);
            None
        } else {
            Some(normed)
        };
        let mut old = None;
        if gemma {
            hidden = self.normed(hidden);
            (hidden, residual, old) = add(hidden, residual);
            // the attention's output has no owner any more, the residual of the first half only where it is the caller's
            if let Some((x, r)) = old.take() {
                drop(x);
                drop(r);
            }
        }
        let mut out = match self.m.family {
            Family::Llama | Family::Phi3 => self.gated(false),
            Family::Mixtral | Family::Qwen3Moe | Family::GptOss | Family::MiniMaxM2 => {
                self.experts()
            }
            Family::DeepSeek | Family::Llama4 if self.m.sparse(i) => self.experts(),
            Family::Llama4 => {
                let w = self.m.number("intermediate_size_mlp");
                self.gated_of(w.unwrap_or(self.m.intermediate) / self.tp, false)
            }
            _ => self.gated(true),
        };
        drop(hidden);
        if gemma {
            out = self.normed(out);
        }
        drop((input, caller, old));
        (out, Some(residual))
    }

    /// Projections around an attention that only makes its output.
    pub(super) fn attention(&self) -> Tensor {
        let (q, kv) = widths(self.m, self.tp);
        let qkv = self.linear(q + 2 * kv, self.m.hidden);
        let norms = match self.m.family {
            Family::Cohere if self.m.field("use_qk_norm").as_bool() == Some(true) => {
                Some((self.t(q), self.t(kv)))
            }
            Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => Some((self.t(q), self.t(kv))),
            _ => None,
        };
        let attended = self.t(q);
        let part = self.linear(self.m.hidden, q);
        // parallel blocks sum over ranks after the feed-forward
        let out = match self.m.family {
            Family::Cohere | Family::Falcon => part,
            _ => self.reduce(part),
        };
        drop((attended, norms, qkv));
        out
    }

    /// Gate and up in one, then down. Most families keep the first product until the end, Llama's rebinds it.
    pub(super) fn gated(&self, keeps: bool) -> Tensor {
        self.gated_of(self.m.intermediate / self.tp, keeps)
    }

    fn gated_of(&self, i: u64, keeps: bool) -> Tensor {
        let both = self.linear(2 * i, self.m.hidden);
        let x = self.t(i);
        let both = keeps.then_some(both);
        let part = self.linear(self.m.hidden, i);
        let out = match self.m.family {
            Family::Cohere => part,
            _ => self.reduce(part),
        };
        drop((x, both));
        out
    }

    fn granite(&self, input: Tensor) -> Tensor {
        let h = self.m.hidden;
        let scaled_add = |residual: Tensor, x: Tensor| {
            let scaled = self.t(h);
            let sum = self.t(h);
            drop(scaled);
            drop(x);
            (sum, residual)
        };
        let normed = self.t(h);
        let attended = self.attention();
        drop(normed);
        // the caller's frame holds the layer's input to the end
        let (hidden, input) = scaled_add(input, attended);
        let normed = self.t(h);
        let out = self.gated(true);
        drop(normed);
        let (sum, hidden) = scaled_add(hidden, out);
        drop((hidden, input));
        sum
    }

    /// Attention and feed-forward side by side; the layer returns its input as the residual.
    fn cohere(&self, input: Tensor) -> (Tensor, Tensor) {
        let h = self.m.hidden;
        let normed = self.t(h);
        let attended = self.attention();
        let mlp = self.gated(true);
        let sum = self.reduce(self.t(h));
        let out = self.t(h);
        drop((sum, attended, mlp, normed));
        (out, input)
    }

    fn stablelm(&self, input: Tensor) -> (Tensor, Tensor) {
        let h = self.m.hidden;
        let normed = self.t(h);
        let attended = self.attention();
        drop(normed);
        let sum = self.t(h);
        drop(attended);
        let normed = self.t(h);
        let mlp = self.gated(true);
        drop(normed);
        let out = self.t(h);
        drop((mlp, input));
        (out, sum)
    }

    fn falcon(&self, input: Tensor) -> Tensor {
        let h = self.m.hidden;
        let normed = self.t(h);
        let second = self.m.two_norms().then(|| self.t(h));
        let attended = self.attention();
        let i = self.m.intermediate / self.tp;
        let up = self.linear(i, h);
        let act = self.t(i);
        drop(up);
        let mlp = self.linear(h, i);
        drop(act);
        let mlp = self.reduce(mlp);
        let out = self.t(h);
        drop((mlp, attended, second, normed, input));
        out
    }

    /// Up, activation, down; each result replaces the one before.
    pub(super) fn plain_mlp(&self) -> Tensor {
        let i = self.m.intermediate / self.tp;
        let up = self.linear(i, self.m.hidden);
        let act = self.t(i);
        drop(up);
        self.row(self.m.hidden, act)
    }

    fn classic(&self, input: Tensor) -> Tensor {
        let h = self.m.hidden;
        let normed = self.t(h);
        let attended = self.attention();
        drop(normed);
        let sum = self.t(h);
        // GPT-2's frame keeps the attention's output to the end, the others rebind it
        let attended = (self.m.family == Family::Gpt2).then_some(attended);
        let normed = self.t(h);
        let out = if self.m.family == Family::Opt {
            let i = self.m.intermediate / self.tp;
            let up = self.linear(i, self.m.hidden);
            drop(normed);
            let act = self.t(i);
            drop(up);
            self.row(h, act)
        } else {
            let out = self.plain_mlp();
            drop(normed);
            out
        };
        let y = self.t(h);
        drop((out, sum, attended, input));
        y
    }

    /// Mixer: it writes into an output made before it; projection to twice the inner width and scan are tensors; norms in place.
    fn mamba(&self, input: Tensor, residual: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        let (normed, residual) = match residual {
            None => (self.t(self.m.hidden), input),
            Some(r) => (input, r),
        };
        let i = self.m.state.map_or(0, |s| s.inner) / self.tp;
        let y = self.t(self.m.hidden);
        let projected = self.t(2 * i);
        let scanned = self.t(i);
        let out = self.reduce(self.t(self.m.hidden));
        drop((out, scanned, projected, normed));
        (y, Some(residual))
    }
}
