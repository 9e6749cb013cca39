//! Mixtures of experts: weights in each format, and the forward with its workspaces (vLLM 0.33.0, `model_executor/layers/fused_moe`:
//! `modular_kernel.py`, `experts/{triton_moe,marlin_moe,gpt_oss_triton_kernels_moe}.py`, `router/*.py`, `runner/moe_runner.py`).

use super::device::Tensor;
use super::model::{Family, Moe, Weights};
use super::profile::Profile;
use super::weights::Loader;

/// Widths that a kernel pads an expert to: hidden size and inner width.
fn padded(l: Kernel, h: u64, w: u64) -> (u64, u64) {
    match l {
        // `_round_up_to`: multiples of 256 and 128 for Marlin, 64 for the Triton kernels of Hopper
        Kernel::MarlinFp4 => (h.next_multiple_of(256), w.next_multiple_of(128)),
        Kernel::TritonFp4 => (h, w.next_multiple_of(64)),
        _ => (h, w),
    }
}

/// Who computes the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Triton,
    /// Packed integers by Marlin.
    Marlin,
    /// Packed integers by Triton, where Marlin's tiles do not divide a rank's width.
    Wna16,
    MarlinFp4,
    TritonFp4,
}

/// The kernel that vLLM takes for a format.
pub(super) fn kernel(weights: &Result<Weights, String>, hopper: bool, h: u64, w: u64) -> Kernel {
    match weights {
        Ok(Weights::Packed { group, .. }) => {
            if w.is_multiple_of((*group).max(64)) && h.is_multiple_of(128) {
                Kernel::Marlin
            } else {
                Kernel::Wna16
            }
        }
        Ok(Weights::Mxfp4) if hopper => Kernel::TritonFp4,
        Ok(Weights::Mxfp4) => Kernel::MarlinFp4,
        _ => Kernel::Triton,
    }
}

impl Loader<'_> {
    /// Router, shared experts and experts of one layer, in the order of the model's module.
    pub(super) fn sparse(&mut self, e: Moe) {
        let h = self.m.hidden;
        match self.m.family {
            Family::MiniMaxM2 => {
                self.keep(4 * e.experts);
                self.experts(e);
                // the router in fp32
                self.keep(4 * e.experts * h);
                return;
            }
            Family::GptOss => {
                self.keep(2 * e.experts * h);
                self.keep(2 * e.experts);
            }
            // a quantisation of all linear layers takes Qwen's router along
            Family::Qwen3Moe if self.m.weights != Ok(Weights::BlockFp8) => {
                self.linear(e.experts, h, false);
            }
            Family::NemotronH => {
                self.keep(2 * e.experts * h);
                self.keep(4 * e.experts);
            }
            Family::DeepSeek => {
                self.keep(2 * e.experts * h);
                if self.m.field("topk_method").as_str() == Some("noaux_tc") {
                    self.keep(4 * e.experts);
                }
            }
            _ => {
                self.keep(2 * e.experts * h);
            }
        }
        if e.shared > 0 {
            let w = e.shared / self.tp;
            let up = if self.m.family == Family::NemotronH {
                1
            } else {
                2
            };
            self.linear(up * w, h, false);
            self.linear(h, w, false);
        }
        self.experts(e);
    }

    /// The experts' weights as they stay.
    pub(super) fn experts(&mut self, e: Moe) {
        let (h, w, n) = (self.m.hidden, e.width / self.tp, e.experts);
        // squared ReLU has no gate
        let up = if self.m.family == Family::NemotronH {
            w
        } else {
            2 * w
        };
        let kernel = kernel(&self.m.weights, self.machete, h, w);
        match (&self.m.weights, kernel) {
            (Ok(Weights::Packed { bits, group, zeros }), k) => {
                let mut g = *group;
                while k == Kernel::Wna16 && g > 1 && !(w.is_multiple_of(g) && h.is_multiple_of(g)) {
                    g /= 2;
                }
                let (bits, zeros) = (*bits, *zeros);
                self.keep(bits * n * up * h / 8);
                self.keep(bits * n * h * w / 8);
                let (g1, g2) = (h.div_ceil(g), w.div_ceil(g));
                self.keep(2 * n * up * g1);
                self.keep(2 * n * h * g2);
                if zeros || k == Kernel::Marlin {
                    self.keep(bits * n * up * g1 / 8);
                    self.keep(bits * n * h * g2 / 8);
                }
            }
            (Ok(Weights::Fp8), _) => {
                self.quantise_experts(n * up * h, n * h * w, n);
            }
            (Ok(Weights::BlockFp8), _) => {
                self.keep(n * up * h);
                self.keep(n * h * w);
                // squares of 64 where a rank's width is not whole in 128s
                let b = if w.is_multiple_of(128) { 128 } else { 64 };
                self.keep(4 * n * up.div_ceil(b) * h.div_ceil(b));
                self.keep(4 * n * h.div_ceil(b) * w.div_ceil(b));
            }
            (Ok(Weights::Mxfp4), k) => {
                let (hp, wp) = padded(k, h, w);
                // biases: Hopper's kernels want fp32
                let bias = if k == Kernel::TritonFp4 { 4 } else { 2 };
                self.keep(n * 2 * wp * hp / 2);
                self.keep(n * hp * wp / 2);
                self.keep(bias * n * 2 * wp);
                self.keep(bias * n * hp);
                let scales = |rows: u64, columns: u64| match k {
                    // swizzled: 256 rows by four columns (`layout_details/hopper_scale.py`)
                    Kernel::TritonFp4 => {
                        n * rows.next_multiple_of(256) * (columns / 32).next_multiple_of(4)
                    }
                    _ => n * rows * columns / 32,
                };
                let (a, b) = (scales(2 * wp, hp), scales(hp, wp));
                self.keep(a);
                self.keep(b);
            }
            _ => {
                self.keep(2 * n * up * h);
                self.keep(2 * n * h * w);
            }
        }
    }
}

impl Profile<'_> {
    /// Grows the workspace that all layers share (`v1/worker/workspace.py`).
    pub(super) fn workspace(&self, bytes: u64) {
        let mut w = self.left.workspace.borrow_mut();
        if w.as_ref().is_none_or(|t| t.bytes < bytes) {
            *w = None;
            self.device.empty_cache();
            *w = Some(self.device.tensor(bytes));
        }
    }

    /// Router, shared experts, experts, and the sum over ranks.
    pub(super) fn experts(&self) -> Tensor {
        let (t, h) = (self.tokens, self.m.hidden);
        let Some(e) = self.m.moe else {
            return self.t(h);
        };
        let w = e.width / self.tp;
        let k = e.top_k;
        let kernel = kernel(&self.m.weights, self.hopper, h, w);
        let d = self.device;
        let logits = match self.m.family {
            Family::MiniMaxM2 => {
                let wide = d.tensor(4 * t * h);
                let logits = d.tensor(4 * t * e.experts);
                drop(wide);
                logits
            }
            Family::Qwen3Moe if self.m.weights != Ok(Weights::BlockFp8) => {
                self.linear(e.experts, h)
            }
            Family::NemotronH => d.tensor(4 * t * e.experts),
            _ => self.half(e.experts),
        };
        if kernel == Kernel::TritonFp4 {
            let out = self.triton_fp4(e, w);
            drop(logits);
            return self.reduce(out);
        }
        let (hp, wp) = padded(kernel, h, w);
        let input = (hp > h).then(|| self.t(hp));
        let shared = (e.shared > 0).then(|| self.shared(e.shared / self.tp));
        let chosen = (d.tensor(4 * t * k), d.tensor(4 * t * k));
        drop(d.tensor(4 * t * k));
        let out = self.t(hp);
        // Llama 4 weighs the input instead of the output
        let weighed = (self.m.family == Family::Llama4).then(|| self.t(h));
        let fp8 = match self.m.weights {
            Ok(Weights::Fp8) => Some((d.tensor(t * h), d.tensor(4))),
            Ok(Weights::BlockFp8) => Some((d.tensor(t * h), d.tensor(4 * t * h.div_ceil(128)))),
            _ => None,
        };
        let up = if self.m.family == Family::NemotronH {
            wp
        } else {
            2 * wp
        };
        self.workspace(2 * t * k * (wp.max(hp) + up.max(hp)));
        let block = match (kernel, &self.m.weights) {
            (Kernel::Triton, Ok(Weights::BlockFp8)) => 64,
            (Kernel::Triton, _) => 128,
            _ => 64,
        };
        let slots = t * k + e.experts * (block - 1);
        let aligned = (
            d.tensor(4 * slots),
            d.tensor(4 * slots.div_ceil(block)),
            d.tensor(4),
        );
        drop(d.tensor(4 * (e.experts + 1)));
        match self.m.weights {
            Ok(Weights::Fp8) => drop((d.tensor(t * k * w), d.tensor(4))),
            Ok(Weights::BlockFp8) => {
                drop((d.tensor(t * k * w), d.tensor(4 * t * k * w.div_ceil(128))));
            }
            _ => {}
        }
        if matches!(kernel, Kernel::Marlin | Kernel::MarlinFp4) {
            self.marlin();
            drop(d.tensor(self.multiprocessors * 4 * 65_536));
        }
        drop((aligned, fp8, weighed, chosen));
        let mut logits = Some(logits);
        if self.m.family == Family::DeepSeek {
            // the router is the runner's own
            logits = None;
        }
        let out = match shared {
            Some(s) => {
                let sum = self.t(h);
                // the routed and the shared part live on in the runner's frame
                let whole = self.reduce(sum);
                drop((s, out));
                whole
            }
            None if hp > h => {
                // the columns that padding added are a view's rest
                let whole = self.reduce(out);
                drop(input);
                return self.after(whole, logits);
            }
            None => self.reduce(out),
        };
        drop(input);
        self.after(out, logits)
    }

    fn after(&self, out: Tensor, logits: Option<Tensor>) -> Tensor {
        drop(logits);
        out
    }

    /// The shared experts; their output is summed over ranks with the routed one.
    fn shared(&self, w: u64) -> Tensor {
        let h = self.m.hidden;
        let wide = self.linear(
            if self.m.family == Family::NemotronH {
                w
            } else {
                2 * w
            },
            h,
        );
        let x = self.t(w);
        // Llama's module rebinds the product
        let wide = (self.m.family == Family::DeepSeek).then_some(wide);
        let out = self.linear(h, w);
        drop((x, wide));
        out
    }

    /// gpt-oss on Hopper: routing by bit matrices, both products whole.
    fn triton_fp4(&self, e: Moe, w: u64) -> Tensor {
        let (t, h, d) = (self.tokens, self.m.hidden, self.device);
        let w = padded(Kernel::TritonFp4, h, w).1;
        let routing = (d.tensor(8 * t * e.top_k), d.tensor(2 * t * e.top_k));
        let out = self.t(h);
        let inner = d.tensor(2 * t * e.top_k * w);
        let wide = d.tensor(2 * t * e.top_k * h);
        drop((wide, inner, routing));
        out
    }
}
