//! Loading: every tensor of one rank in the order in which vLLM's modules make them, with the temporaries of the RoPE tables
//! (vLLM 0.33.0, `model_executor/models/*.py`, `model_executor/layers/{linear,vocab_parallel_embedding,rotary_embedding/base}.py`).

use super::device::{Device, Tensor};
use super::model::{Family, Model, Weights};

/// Embedding and head rows are padded to a multiple of this (`DEFAULT_VOCAB_PADDING_SIZE`).
const VOCAB_PADDING: u64 = 64;

pub(super) struct Loader<'a> {
    pub device: &'a Device,
    pub m: &'a Model,
    pub tp: u64,
    held: Vec<Tensor>,
    /// Which of them are packed anew after loading, and their bytes then.
    packed: Vec<(usize, u64)>,
    /// Machete instead of Marlin (compute capability 9): zero points stay, AWQ's as 16-bit numbers.
    pub machete: bool,
    /// Bytes of parameters and buffers, without rounding.
    pub bytes: u64,
}

impl<'a> Loader<'a> {
    pub fn new(device: &'a Device, m: &'a Model, tp: u64) -> Loader<'a> {
        Loader {
            device,
            m,
            tp,
            held: vec![],
            packed: vec![],
            machete: false,
            bytes: 0,
        }
    }

    /// A tensor that stays.
    fn keep(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.held.push(self.device.tensor(bytes));
    }

    /// A weight `[out, input]` in the model's format, and its 16-bit bias.
    fn linear(&mut self, out: u64, input: u64, bias: bool) {
        match self.m.weights {
            Ok(Weights::Packed { bits, group, zeros }) => {
                let groups = input.div_ceil(group);
                for bytes in [bits * out * input / 8, 2 * out * groups] {
                    self.packed.push((self.held.len(), bytes));
                    self.keep(bytes);
                }
                if zeros || self.machete {
                    let after = if zeros && self.machete {
                        2 * out * groups
                    } else {
                        bits * out * groups / 8
                    };
                    self.packed.push((self.held.len(), after));
                    self.keep(bits * out * groups / 8);
                }
            }
            Ok(Weights::Fp8) => {
                self.keep(out * input);
                self.keep(4);
            }
            _ => self.keep(2 * out * input),
        }
        if bias {
            self.keep(2 * out);
        }
    }

    fn norm(&mut self, width: u64, bias: bool) {
        self.keep(2 * width);
        if bias {
            self.keep(2 * width);
        }
    }

    /// `_q_scale`, `_k_scale`, `_v_scale`, `_prob_scale` of an attention layer.
    fn scales(&mut self) {
        for _ in 0..4 {
            self.keep(4);
        }
    }

    fn vocab(&self) -> u64 {
        self.m.vocab.next_multiple_of(VOCAB_PADDING)
    }

    fn embedding(&mut self) {
        self.keep(2 * self.vocab() / self.tp * self.m.hidden);
    }

    /// The shared RoPE table of cosines and sines, and what making it needs (`_compute_cos_sin_cache`).
    fn rope(&mut self, positions: u64, width: u64) {
        let half = 4 * positions * (width / 2);
        let d = self.device;
        let inv = d.tensor(2 * width);
        let t = d.tensor(4 * positions);
        let freqs = d.tensor(half);
        let cos = d.tensor(half);
        let sin = d.tensor(half);
        let table = d.tensor(2 * half);
        drop((inv, t, freqs, cos, sin));
        self.keep(2 * positions * width);
        drop(table);
    }

    /// Widths of one rank's query and of its keys.
    pub fn widths(&self) -> (u64, u64) {
        widths(self.m, self.tp)
    }

    fn attention(&mut self, rope: &mut bool, qkv_bias: bool, o_bias: bool) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        self.linear(q + 2 * kv, h, qkv_bias);
        self.linear(h, q, o_bias);
        if std::mem::take(rope) {
            self.rope(self.m.rope_positions, self.m.rotary);
        }
        self.scales();
    }

    fn gated(&mut self, bias: bool) {
        let (h, i) = (self.m.hidden, self.m.intermediate / self.tp);
        self.linear(2 * i, h, bias);
        self.linear(h, i, bias);
    }

    fn plain_mlp(&mut self, bias: bool) {
        let (h, i) = (self.m.hidden, self.m.intermediate / self.tp);
        self.linear(i, h, bias);
        self.linear(h, i, bias);
    }

    /// Router and experts of one layer.
    fn experts(&mut self) {
        let h = self.m.hidden;
        if let Some(e) = self.m.moe {
            let w = e.width / self.tp;
            self.keep(2 * e.experts * h);
            self.keep(2 * e.experts * 2 * w * h);
            self.keep(2 * e.experts * h * w);
        }
    }

    /// The whole model. The tensors stay until the loader is dropped.
    pub fn load(&mut self) {
        let (h, m) = (self.m.hidden, self.m);
        let mut rope = true;
        self.embedding();
        match m.family {
            Family::Gpt2 | Family::Opt => {
                // OPT keeps two rows before position 0
                let extra = if m.family == Family::Opt { 2 } else { 0 };
                self.keep(2 * (m.max_position + extra) * h);
            }
            Family::Bloom => self.norm(h, true),
            _ => {}
        }
        for _ in 0..m.layers {
            self.layer(&mut rope);
        }
        let bias = matches!(
            m.family,
            Family::Gpt2 | Family::Opt | Family::Bloom | Family::Falcon | Family::StableLm
        );
        self.norm(h, bias);
        if m.family == Family::Gemma2 {
            // the embedding's normaliser
            self.keep(2);
        }
        // one more scalar in every record
        self.held.push(self.device.tensor(4));
        if !m.tied {
            self.embedding();
        }
        // `process_weights_after_loading`: the kernel's layout is a new tensor
        for (i, bytes) in std::mem::take(&mut self.packed) {
            self.held[i] = self.device.tensor(bytes);
        }
    }

    fn layer(&mut self, rope: &mut bool) {
        use Family::*;
        let h = self.m.hidden;
        let config_bias = |name: &str| self.m.field(name).as_bool().unwrap_or(false);
        match self.m.family {
            Llama | Phi3 | Granite => {
                let bias = config_bias("attention_bias");
                let mlp = config_bias("mlp_bias");
                self.attention(rope, bias, bias);
                self.gated(mlp);
                self.norm(h, false);
                self.norm(h, false);
            }
            Qwen2 => {
                self.attention(rope, true, false);
                self.gated(false);
                self.norm(h, false);
                self.norm(h, false);
            }
            Qwen3 | Qwen3Moe => {
                let bias = config_bias("attention_bias");
                self.attention(rope, bias, false);
                self.norm(self.m.head_dim, false);
                self.norm(self.m.head_dim, false);
                if self.m.family == Qwen3Moe {
                    self.experts();
                } else {
                    self.gated(false);
                }
                self.norm(h, false);
                self.norm(h, false);
            }
            Mixtral => {
                self.attention(rope, false, false);
                self.experts();
                self.norm(h, false);
                self.norm(h, false);
            }
            Gemma2 => {
                self.attention(rope, false, false);
                self.gated(false);
                for _ in 0..4 {
                    self.norm(h, false);
                }
            }
            Cohere => {
                self.attention(rope, false, false);
                self.gated(false);
                self.norm(h, false);
            }
            StableLm => {
                self.attention(rope, config_bias("use_qkv_bias"), false);
                self.gated(false);
                self.norm(h, true);
                self.norm(h, true);
            }
            Falcon => {
                self.norm(h, true);
                self.attention(rope, false, false);
                self.plain_mlp(config_bias("bias"));
            }
            Gpt2 | Opt | Bloom => {
                let (q, kv) = self.widths();
                self.norm(h, true);
                self.linear(q + 2 * kv, h, true);
                self.linear(h, q, true);
                self.scales();
                if self.m.family == Bloom {
                    // ALiBi slopes
                    self.keep(4 * self.m.heads / self.tp);
                }
                self.norm(h, true);
                self.plain_mlp(true);
            }
            Mamba => self.mamba(),
            _ => {}
        }
    }

    fn mamba(&mut self) {
        let h = self.m.hidden;
        if let Some(s) = self.m.state {
            let i = s.inner / self.tp;
            self.keep(2 * i * (s.conv.0 + 1));
            self.keep(2 * i);
            self.linear(2 * i, h, false);
            self.linear(s.dt_rank + 2 * s.state, i, false);
            self.linear(i, s.dt_rank, false);
            self.keep(2 * i);
            self.keep(4 * i * s.state);
            self.keep(2 * i);
            self.linear(h, i, false);
        }
        self.norm(h, false);
    }
}

/// Widths of one rank's query and of its keys (or values); key heads are copied where there are fewer than ranks.
pub(super) fn widths(m: &Model, tp: u64) -> (u64, u64) {
    (
        m.heads / tp * m.head_dim,
        (m.kv_heads / tp).max(1) * m.head_dim,
    )
}
