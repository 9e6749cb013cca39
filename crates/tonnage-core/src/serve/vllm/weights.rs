//! Loading: every tensor of one rank in the order in which vLLM's modules make them, with the temporaries of the RoPE tables
//! (vLLM 0.33.0, `model_executor/models/*.py`, `model_executor/layers/{linear,vocab_parallel_embedding,rotary_embedding/base}.py`).

use super::device::{Device, Tensor};
use super::model::{Family, Model, Weights};

/// Embedding and head rows are padded to a multiple of this (`DEFAULT_VOCAB_PADDING_SIZE`).
const VOCAB_PADDING: u64 = 64;

/// What is done to a layer after all were made (`process_weights_after_loading`).
enum Later {
    /// Marlin: the packed weight becomes a new tensor, GPTQ's zero points go.
    Repack {
        weight: usize,
        scales: usize,
        zeros: Option<usize>,
    },
    /// Machete: reordered through two copies into the same tensor; AWQ's zero points become 16-bit numbers.
    Reorder {
        weight: usize,
        zeros: Option<(usize, u64)>,
    },
    /// A 16-bit weight of `elements` arrives and becomes fp8, for Marlin repacked.
    Quantise { elements: u64, channels: u64 },
    /// Both weights of `experts` experts likewise.
    QuantiseExperts { up: u64, down: u64, experts: u64 },
}

pub(super) struct Loader<'a> {
    pub device: &'a Device,
    pub m: &'a Model,
    pub tp: u64,
    held: Vec<Option<Tensor>>,
    later: Vec<Later>,
    /// Machete instead of Marlin (compute capability 9): zero points stay, AWQ's as 16-bit numbers.
    pub machete: bool,
    /// fp8 arithmetic (compute capability 8.9 on); without it Marlin unpacks fp8.
    pub fp8: bool,
    /// An fp32 RoPE table that the first forward turns into 16 bits.
    pub wide_rope: Option<usize>,
    /// Bytes that the attention backend takes with its first layer.
    pub counters: Option<u64>,
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
            later: vec![],
            machete: false,
            fp8: false,
            wide_rope: None,
            counters: None,
            bytes: 0,
        }
    }

    /// A tensor that stays.
    pub(super) fn keep(&mut self, bytes: u64) -> usize {
        self.bytes += bytes;
        self.extra(bytes)
    }

    /// One that is no parameter or buffer.
    pub(super) fn extra(&mut self, bytes: u64) -> usize {
        self.held.push(Some(self.device.tensor(bytes)));
        self.held.len() - 1
    }

    /// Hands out a tensor.
    pub fn take(&mut self, at: usize) -> Option<Tensor> {
        self.held.get_mut(at).and_then(Option::take)
    }

    /// Experts made fp8 while loading.
    pub(super) fn quantise_experts(&mut self, up: u64, down: u64, experts: u64) {
        self.later
            .push(Later::QuantiseExperts { up, down, experts });
    }

    /// A weight `[out, input]` in the model's format, and its 16-bit bias.
    pub(super) fn linear(&mut self, out: u64, input: u64, bias: bool) {
        match self.m.weights {
            Ok(Weights::Packed { bits, group, zeros }) => {
                let groups = input.div_ceil(group);
                let weight = self.keep(bits * out * input / 8);
                let zero = self.extra(bits * out * groups / 8);
                let scales = self.keep(2 * out * groups);
                self.later.push(if self.machete {
                    Later::Reorder {
                        weight,
                        zeros: zeros.then_some((zero, 2 * out * groups)),
                    }
                } else {
                    Later::Repack {
                        weight,
                        scales,
                        zeros: (!zeros).then_some(zero),
                    }
                });
            }
            Ok(Weights::Fp8) => self.later.push(Later::Quantise {
                elements: out * input,
                channels: out,
            }),
            Ok(Weights::BlockFp8) => {
                self.keep(out * input);
                // before Hopper by Marlin, which wants 16-bit scales for every row
                self.keep(match self.machete {
                    true => 4 * out.div_ceil(128) * input.div_ceil(128),
                    false => 2 * out * input.div_ceil(128),
                });
            }
            _ => {
                self.keep(2 * out * input);
            }
        }
        if bias {
            self.keep(2 * out);
        }
    }

    /// `process_weights_after_loading`, module by module.
    fn finish(&mut self) {
        let d = self.device;
        for l in std::mem::take(&mut self.later) {
            match l {
                Later::Repack {
                    weight,
                    scales,
                    zeros,
                } => {
                    let bytes = self.held[weight].as_ref().map_or(0, |t| t.bytes);
                    self.held[weight] = Some(d.tensor(bytes));
                    drop(d.tensor(self.held[scales].as_ref().map_or(0, |t| t.bytes)));
                    if let Some(z) = zeros {
                        self.held[z] = None;
                    }
                }
                Later::Reorder { weight, zeros } => {
                    let bytes = self.held[weight].as_ref().map_or(0, |t| t.bytes);
                    drop((d.tensor(bytes), d.tensor(bytes)));
                    if let Some((z, bytes)) = zeros {
                        self.held[z] = Some(d.tensor(bytes));
                    }
                }
                Later::Quantise { elements, channels } => {
                    let half = d.tensor(2 * elements);
                    let narrow = d.tensor(elements);
                    drop(half);
                    if self.fp8 {
                        self.held.push(Some(narrow));
                        self.bytes += elements;
                        self.keep(4);
                    } else {
                        let packed = d.tensor(elements);
                        self.keep(elements);
                        drop((packed, narrow));
                        self.keep(2 * channels);
                    }
                }
                Later::QuantiseExperts { up, down, experts } => {
                    let halves = (d.tensor(2 * up), d.tensor(2 * down));
                    self.keep(up);
                    self.keep(down);
                    self.keep(4 * experts);
                    self.keep(4 * experts);
                    drop(halves);
                }
            }
        }
    }

    pub(super) fn norm(&mut self, width: u64, bias: bool) {
        self.keep(2 * width);
        if bias {
            self.keep(2 * width);
        }
    }

    /// `_q_scale`, `_k_scale`, `_v_scale`, `_prob_scale` of an attention layer.
    pub(super) fn scales(&mut self) {
        for _ in 0..4 {
            self.keep(4);
        }
        // ranges of keys and values, where the checkpoint is in fp8
        if self.m.weights == Ok(Weights::BlockFp8) && self.m.latent.is_none() {
            self.keep(4);
            self.keep(4);
        }
        // FlashInfer, which serves fp8 caches before Hopper, counts thread blocks for each token and head (`backends/flashinfer.py`)
        if let Some(bytes) = self.counters.take() {
            self.extra(bytes);
        }
    }

    fn vocab(&self) -> u64 {
        self.m.vocab.next_multiple_of(VOCAB_PADDING)
    }

    fn embedding(&mut self) {
        self.keep(2 * self.vocab() / self.tp * self.m.hidden);
    }

    /// The shared RoPE table of cosines and sines in elements of `size` bytes, and what making it needs (`_compute_cos_sin_cache`).
    pub(super) fn rope(&mut self, positions: u64, width: u64, size: u64) -> usize {
        let half = 4 * positions * (width / 2);
        let d = self.device;
        let inv = d.tensor(2 * width);
        let t = d.tensor(4 * positions);
        let freqs = d.tensor(half);
        let cos = d.tensor(half);
        let sin = d.tensor(half);
        let table = d.tensor(2 * half);
        drop((inv, t, freqs, cos, sin));
        if size == 4 {
            self.bytes += table.bytes;
            self.held.push(Some(table));
            return self.held.len() - 1;
        }
        let at = self.keep(size * positions * width);
        drop(table);
        at
    }

    /// Phi's tables for short and for long contexts, joined (`rotary_embedding/phi3_long_rope_scaled_rope.py`).
    fn long_rope(&mut self, original: u64, positions: u64, width: u64) {
        let d = self.device;
        let table = |positions: u64| {
            let half = || d.tensor(4 * positions * (width / 2));
            let t = d.tensor(4 * positions);
            let frequencies = half();
            let raw = half();
            let cos = half();
            drop(raw);
            let raw = half();
            let sin = half();
            drop(raw);
            let wide = d.tensor(4 * positions * width);
            drop((t, frequencies, cos, sin));
            let narrow = d.tensor(2 * positions * width);
            drop(wide);
            narrow
        };
        let (short, long) = (table(original), table(positions));
        self.keep(2 * (original + positions) * width);
        drop((short, long));
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
            let long = self.m.rope_positions - self.m.max_position;
            if self.m.family == Family::Phi3 && long > 0 {
                self.long_rope(long, self.m.max_position, self.m.rotary);
            } else {
                self.rope(self.m.rope_positions, self.m.rotary, 2);
            }
        }
        self.scales();
    }

    pub(super) fn gated(&mut self, bias: bool) {
        let (h, i) = (self.m.hidden, self.m.intermediate / self.tp);
        self.linear(2 * i, h, bias);
        self.linear(h, i, bias);
    }

    pub(super) fn plain_mlp(&mut self, bias: bool) {
        let (h, i) = (self.m.hidden, self.m.intermediate / self.tp);
        self.linear(i, h, bias);
        self.linear(h, i, bias);
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
            // two copies of the inverse frequencies
            Family::GptNeox | Family::SmolLm3 => {
                self.keep(2 * m.rotary);
                self.keep(2 * m.rotary);
            }
            _ => {}
        }
        let pattern = m.field("hybrid_override_pattern").as_str().unwrap_or("");
        let mut kinds = pattern.chars();
        let mut ropes = [true; 2];
        for i in 0..m.layers {
            match (m.family, m.latent) {
                (Family::DeepSeek, Some(l)) => self.deepseek(i, l, &mut rope),
                (Family::Llama4, _) => self.llama4(i, &mut rope),
                (Family::Gemma3, _) => self.gemma3(i, &mut ropes),
                (Family::Gemma4, _) => self.gemma4(i, &mut ropes),
                (Family::GptOss, _) => self.gpt_oss(&mut rope),
                (Family::MiniMaxM2, _) => self.minimax(&mut rope),
                (Family::NemotronH, _) => self.hybrid(kinds.next().unwrap_or('*')),
                (Family::GptNeox | Family::SmolLm3, _) => self.foreign(),
                _ => self.layer(&mut rope),
            }
        }
        let bias = matches!(
            m.family,
            Family::Gpt2
                | Family::Opt
                | Family::Bloom
                | Family::Falcon
                | Family::StableLm
                | Family::GptNeox
        );
        self.norm(h, bias);
        if matches!(m.family, Family::Gemma2 | Family::Gemma3 | Family::Gemma4) {
            // the embedding's normaliser
            self.keep(2);
        }
        if !m.tied {
            self.embedding();
        }
        if m.weights == Ok(Weights::Half) {
            // a table of nvfp4 values that importing compressed-tensors makes while the device is the default
            self.extra(32);
        }
        self.finish();
        self.dequantised_latent();
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
                match self.m.moe {
                    Some(e) if self.m.family == Qwen3Moe => self.sparse(e),
                    _ => self.gated(false),
                }
                self.norm(h, false);
                self.norm(h, false);
            }
            Mixtral => {
                self.attention(rope, false, false);
                if let Some(e) = self.m.moe {
                    self.sparse(e);
                }
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
                if config_bias("use_qk_norm") {
                    let (q, kv) = self.widths();
                    self.norm(q, false);
                    self.norm(kv, false);
                }
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
                if self.m.two_norms() {
                    self.norm(h, true);
                }
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
