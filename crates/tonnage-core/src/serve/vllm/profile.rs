//! The profile run: one forward of `max_num_batched_tokens` tokens without attention, written as the frames of vLLM's modules hold
//! their tensors, then the sampler (vLLM 0.33.0, `model_executor/models/*.py`, `v1/worker/gpu/model_runner.py`, `v1/worker/gpu/sample`).

use super::device::{Device, Tensor};
use super::model::{Family, Model, Weights};
use super::weights::widths;
use std::cell::RefCell;

/// Tensors that a first forward leaves behind.
#[derive(Default)]
pub(super) struct Left {
    held: RefCell<Vec<Tensor>>,
}

pub(super) struct Profile<'a> {
    pub device: &'a Device,
    pub m: &'a Model,
    pub tp: u64,
    /// Tokens of the pass.
    pub tokens: u64,
    /// Requests of the sampler's pass.
    pub requests: u64,
    pub left: &'a Left,
}

impl Profile<'_> {
    /// A 16-bit activation of `width` elements a token.
    fn t(&self, width: u64) -> Tensor {
        self.device.tensor(2 * self.tokens * width)
    }

    /// A linear layer's output; with fp8 weights its input is quantised first, with a scale for each token.
    fn linear(&self, width: u64, input: u64) -> Tensor {
        let quantised = (self.m.weights == Ok(Weights::Fp8)).then(|| {
            (
                self.device.tensor(self.tokens * input),
                self.device.tensor(4 * self.tokens),
            )
        });
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

    fn reduce(&self, part: Tensor) -> Tensor {
        if self.tp == 1 {
            return part;
        }
        let whole = self.t(part.bytes / 2 / self.tokens);
        drop(part);
        whole
    }

    /// Forward, then sampler; the peak shows on the device.
    pub fn run(&self) {
        let hidden = self.forward();
        // 1 MiB that stays from the first forward on, after its peak
        self.left
            .held
            .borrow_mut()
            .push(self.device.tensor(1 << 20));
        let sampled = self.device.tensor(2 * self.requests * self.m.hidden);
        self.sampler();
        drop((sampled, hidden));
    }

    fn forward(&self) -> Tensor {
        use Family::*;
        let h = self.m.hidden;
        let mut hidden = self.reduce(self.t(h));
        match self.m.family {
            Llama | Phi3 | Qwen2 | Qwen3 | Qwen3Moe | Mixtral | Gemma2 => {
                let mut residual: Option<Tensor> = None;
                for _ in 0..self.m.layers {
                    (hidden, residual) = self.fused(hidden, residual);
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
            _ => {}
        }
        hidden
    }

    /// `x = norm(x)`.
    fn normed(&self, x: Tensor) -> Tensor {
        let y = self.t(self.m.hidden);
        drop(x);
        y
    }

    /// A layer whose norms take the residual along. The model's loop still holds the layer's input, and where the sum is a new
    /// tensor (Gemma) the old residual too, while the layer runs.
    fn fused(&self, input: Tensor, residual: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        let h = self.m.hidden;
        let gemma = self.m.family == Family::Gemma2;
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
        let mut hidden = self.attention();
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
            Family::Mixtral | Family::Qwen3Moe => self.experts(),
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
    fn attention(&self) -> Tensor {
        let (q, kv) = widths(self.m, self.tp);
        let qkv = self.linear(q + 2 * kv, self.m.hidden);
        let norms = match self.m.family {
            Family::Qwen3 | Family::Qwen3Moe => Some((self.t(q), self.t(kv))),
            _ => None,
        };
        let attended = self.t(q);
        let part = self.linear(self.m.hidden, q);
        let out = self.reduce(part);
        drop((attended, norms, qkv));
        out
    }

    /// Gate and up in one, then down. Most families keep the first product until the end, Llama's rebinds it.
    fn gated(&self, keeps: bool) -> Tensor {
        let i = self.m.intermediate / self.tp;
        let both = self.linear(2 * i, self.m.hidden);
        let x = self.t(i);
        let both = keeps.then_some(both);
        let part = self.linear(self.m.hidden, i);
        let out = self.reduce(part);
        drop((x, both));
        out
    }

    /// Router and experts; two workspaces are made by the first layer and stay (`fused_moe/modular_kernel.py`, `TritonExperts`).
    fn experts(&self) -> Tensor {
        let (t, k) = (self.tokens, self.m.hidden);
        let Some(e) = self.m.moe else {
            return self.t(k);
        };
        let w = e.width / self.tp;
        let rows = 2 * t * e.top_k;
        let workspaces = rows * (w.max(k) + (2 * w).max(k));
        let mut held = self.left.held.borrow_mut();
        if held.is_empty() {
            held.push(self.device.tensor(workspaces));
        }
        drop(held);
        let logits = self.device.tensor(2 * t * e.experts);
        let chosen = (
            self.device.tensor(4 * t * e.top_k),
            self.device.tensor(4 * t * e.top_k),
        );
        let out = self.t(k);
        let out = self.reduce(out);
        drop((chosen, logits));
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
        let sum = self.t(h);
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
        let attended = self.attention();
        let mlp = self.plain_mlp();
        let out = self.t(h);
        drop((mlp, attended, normed, input));
        out
    }

    /// Up, activation, down; each result replaces the one before.
    fn plain_mlp(&self) -> Tensor {
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

    /// Mixer: projection to twice the inner width, convolution, scan, each its own tensor; norms in place.
    fn mamba(&self, input: Tensor, residual: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        let (normed, residual) = match residual {
            None => (self.t(self.m.hidden), input),
            Some(r) => (input, r),
        };
        let i = self.m.state.map_or(0, |s| s.inner) / self.tp;
        let projected = self.t(2 * i);
        let convolved = self.t(i);
        let scanned = self.t(i);
        drop((projected, convolved));
        let out = self.t(self.m.hidden);
        drop((scanned, normed));
        (out, Some(residual))
    }

    /// Two passes; the second sets every option, so that all of its buffers are made.
    fn sampler(&self) {
        let (n, v) = (self.requests, self.m.vocab);
        let d = self.device;
        let logits = d.tensor(2 * n * v);
        let full = d.tensor(4 * n * v);
        let masked = d.tensor(4 * n * v);
        let probabilities = d.tensor(4 * n * v);
        drop((probabilities, masked, full, logits));
    }
}
