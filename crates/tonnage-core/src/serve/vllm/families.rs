//! Families whose layers differ from the classic decoder: latent attention, Llama 4, Gemma 4, hybrids with Mamba 2, gpt-oss, MiniMax-M2, and
//! those that run through transformers' own modules (vLLM 0.33.0, `model_executor/models/{deepseek_v2,llama4,gemma4,nemotron_h,gpt_oss,
//! minimax_m2}.py`, `model_executor/models/transformers`, transformers 5.20).

use super::device::Tensor;
use super::model::{Family, Latent, Weights};
use super::profile::Profile;
use super::weights::Loader;

impl Loader<'_> {
    /// Latent attention: projections to the latents and back; the output's; the shared table in fp32.
    pub(super) fn latent(&mut self, l: Latent, rope: &mut bool) {
        let h = self.m.hidden;
        let heads = self.m.heads / self.tp;
        let query = heads * (l.nope + l.rope);
        match l.q_lora_rank {
            Some(q) => {
                self.linear(q + l.kv_lora_rank + l.rope, h, false);
                self.norm(q, false);
                self.linear(query, q, false);
            }
            None => {
                self.linear(query, h, false);
                self.linear(l.kv_lora_rank + l.rope, h, false);
            }
        }
        self.norm(l.kv_lora_rank, false);
        self.linear(heads * (l.nope + l.value), l.kv_lora_rank, false);
        self.linear(h, heads * l.value, false);
        if std::mem::take(rope) {
            self.rope(self.m.rope_positions, l.rope, 4);
        }
        self.scales();
    }

    pub(super) fn deepseek(&mut self, i: u64, l: Latent, rope: &mut bool) {
        self.latent(l, rope);
        match self.m.moe {
            Some(e) if self.m.sparse(i) => self.sparse(e),
            _ => self.gated(false),
        }
        self.norm(self.m.hidden, false);
        self.norm(self.m.hidden, false);
    }

    pub(super) fn llama4(&mut self, i: u64, rope: &mut bool) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        self.linear(q + 2 * kv, h, false);
        self.linear(h, q, false);
        if !self.m.global[i as usize] {
            if std::mem::take(rope) {
                self.rope(self.m.rope_positions, self.m.rotary, 2);
            }
            if self.m.field("use_qk_norm").as_bool() == Some(true) {
                self.keep(4 * self.m.head_dim);
            }
        }
        self.scales();
        match self.m.moe {
            Some(e) if self.m.sparse(i) => self.sparse(e),
            _ => {
                let w = self
                    .m
                    .number("intermediate_size_mlp")
                    .unwrap_or(self.m.intermediate)
                    / self.tp;
                self.linear(2 * w, h, false);
                self.linear(h, w, false);
            }
        }
        self.norm(h, false);
        self.norm(h, false);
    }

    /// Gemma 3: norms of queries and keys; two tables, the global one stretched by its factor.
    pub(super) fn gemma3(&mut self, i: u64, ropes: &mut [bool; 2]) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        let full = self.m.global[i as usize];
        self.linear(q + 2 * kv, h, false);
        self.linear(h, q, false);
        self.norm(self.m.head_dim, false);
        self.norm(self.m.head_dim, false);
        if std::mem::take(&mut ropes[usize::from(full)]) {
            let positions = if full {
                self.m.rope_positions
            } else {
                self.m.max_position
            };
            self.rope(positions, self.m.rotary, 2);
        }
        self.scales();
        self.gated(false);
        for _ in 0..4 {
            self.norm(h, false);
        }
    }

    /// Gemma 4: heads of two sizes, each with its table; a dense and a sparse feed-forward side by side.
    pub(super) fn gemma4(&mut self, i: u64, ropes: &mut [bool; 2]) {
        let h = self.m.hidden;
        let full = self.m.global[i as usize];
        let (q, kv, head) = self.m.heads_of(full, self.tp);
        self.linear(q + 2 * kv, h, false);
        self.norm(head, false);
        self.norm(head, false);
        self.linear(h, q, false);
        self.norm(head, false);
        if std::mem::take(&mut ropes[usize::from(full)]) {
            self.rope(self.m.max_position, head, 2);
        }
        self.scales();
        self.gated(false);
        for _ in 0..4 {
            self.norm(h, false);
        }
        if let Some(e) = self.m.moe {
            self.norm(h, false);
            self.keep(2 * h);
            self.keep(2 * e.experts);
            self.keep(2);
            self.sparse(e);
            for _ in 0..3 {
                self.norm(h, false);
            }
        }
        self.keep(2);
    }

    /// gpt-oss: attention sinks, biases everywhere. Its table is in fp32 until the first forward.
    pub(super) fn gpt_oss(&mut self, rope: &mut bool) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        if std::mem::take(rope) {
            let at = self.rope(self.m.rope_positions, self.m.rotary, 4);
            self.wide_rope = Some(at);
        }
        self.keep(2 * self.m.heads / self.tp);
        self.linear(q + 2 * kv, h, true);
        self.linear(h, q, true);
        self.scales();
        if let Some(e) = self.m.moe {
            self.sparse(e);
        }
        self.norm(h, false);
        self.norm(h, false);
    }

    pub(super) fn minimax(&mut self, rope: &mut bool) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        self.linear(q + 2 * kv, h, false);
        self.linear(h, q, false);
        if std::mem::take(rope) {
            self.rope(self.m.max_position, self.m.rotary, 2);
        }
        self.scales();
        self.norm(q, false);
        self.norm(kv, false);
        if let Some(e) = self.m.moe {
            self.sparse(e);
        }
        self.norm(h, false);
        self.norm(h, false);
    }

    /// One layer of a hybrid by its letter: `M` mixer, `-` feed-forward, `E` experts, `*` attention.
    pub(super) fn hybrid(&mut self, kind: char) {
        let h = self.m.hidden;
        match kind {
            'M' => {
                let Some(s) = self.m.state else { return };
                let (inner, conv, heads) =
                    (s.inner / self.tp, s.conv.1 / self.tp, s.dt_rank / self.tp);
                self.keep(2 * conv * (s.conv.0 + 1));
                if self.m.field("use_conv_bias").as_bool().unwrap_or(true) {
                    self.keep(2 * conv);
                }
                self.linear(inner + conv + heads, h, false);
                self.keep(4 * heads);
                self.keep(2 * heads);
                self.keep(2 * heads);
                self.linear(h, inner, false);
                self.keep(2 * inner);
            }
            '-' => self.plain_mlp(false),
            'E' => {
                if let Some(e) = self.m.moe {
                    self.sparse(e);
                }
            }
            _ => {
                let (q, kv) = self.widths();
                self.linear(q + 2 * kv, h, false);
                self.linear(h, q, false);
                self.scales();
            }
        }
        self.norm(h, false);
    }

    /// GPT-NeoX and SmolLM3 by transformers' modules with vLLM's linear layers: no table, only frequencies (made by the caller).
    pub(super) fn foreign(&mut self) {
        let (q, kv) = self.widths();
        let h = self.m.hidden;
        let neox = self.m.family == Family::GptNeox;
        self.norm(h, neox);
        self.norm(h, neox);
        let bias = neox && self.m.field("attention_bias").as_bool().unwrap_or(true);
        self.linear(q + 2 * kv, h, bias);
        self.linear(h, q, bias);
        self.scales();
        if neox {
            self.plain_mlp(true);
        } else {
            self.gated(false);
        }
    }

    /// What latent attention makes of quantised weights after loading: the second half of the back projection in 16 bits.
    pub(super) fn dequantised_latent(&mut self) {
        if let (Some(l), Ok(Weights::BlockFp8)) = (self.m.latent, &self.m.weights) {
            for _ in 0..self.m.layers {
                let heads = self.m.heads / self.tp;
                self.extra(2 * l.kv_lora_rank * heads * (l.nope + l.value));
            }
        }
    }
}

impl Profile<'_> {
    pub(super) fn latent(&self, l: Latent) -> Tensor {
        let heads = self.m.heads / self.tp;
        let (h, query) = (self.m.hidden, heads * (l.nope + l.rope));
        let (first, second, q) = match l.q_lora_rank {
            Some(r) => {
                let both = self.linear(r + l.kv_lora_rank + l.rope, h);
                let normed = self.t(r);
                let kv = self.t(l.kv_lora_rank);
                let q = self.linear(query, r);
                (both, (Some(normed), kv), q)
            }
            None => {
                let latent = self.linear(l.kv_lora_rank + l.rope, h);
                let q = self.linear(query, h);
                (latent, (None, self.t(l.kv_lora_rank)), q)
            }
        };
        let attended = self.t(heads * l.value);
        // what a chunked prefill would need (`mla_attention.py`, `determine_chunked_prefill_workspace_size`)
        let rows = (8 * self.max_model_len)
            .max(4 * self.max_requests * self.block_size)
            .min(65_536)
            .max(self.max_requests * self.block_size);
        let chunk = self.device.tensor(2 * rows * heads * (l.nope + l.value));
        if !self.hopper {
            // Triton's attention splits the keys among the multiprocessors (`triton_mla.py`)
            let splits = (self.max_model_len / 512)
                .max(1)
                .next_power_of_two()
                .min(2 * self.multiprocessors);
            self.workspace(4 * self.max_requests * heads * splits * (l.kv_lora_rank + 1));
        }
        drop(chunk);
        let part = self.linear(h, heads * l.value);
        let out = self.reduce(part);
        drop((attended, q, second, first));
        out
    }

    /// Query and keys normalised in fp32 by Llama 4.
    pub(super) fn llama4_attention(&self, i: u64) -> Tensor {
        let (q, kv) = super::weights::widths(self.m, self.tp);
        let h = self.m.hidden;
        let both = self.linear(q + 2 * kv, h);
        let full = self.m.global[i as usize];
        let mut held = vec![];
        if !full {
            if self.m.field("use_qk_norm").as_bool() == Some(true) {
                for width in [q, kv] {
                    let copy = self.t(width);
                    let wide = self.device.tensor(4 * self.tokens * width);
                    let normed = self.device.tensor(4 * self.tokens * width);
                    drop(wide);
                    held.push(self.t(width));
                    drop((normed, copy));
                }
            }
        } else if self.m.field("attn_temperature_tuning").as_bool() != Some(false) {
            let wide = self.device.tensor(4 * self.tokens * q);
            held.push(self.t(q));
            drop(wide);
        }
        let attended = self.t(q);
        let part = self.linear(h, q);
        let out = self.reduce(part);
        drop((attended, held, both));
        out
    }

    pub(super) fn gpt_oss_attention(&self) -> Tensor {
        let (q, kv) = super::weights::widths(self.m, self.tp);
        let both = self.linear(q + 2 * kv, self.m.hidden);
        self.left.match_table(self.device);
        let attended = self.t(q);
        let part = self.linear(self.m.hidden, q);
        let out = self.reduce(part);
        drop((attended, both));
        out
    }

    pub(super) fn minimax_attention(&self) -> Tensor {
        let (q, kv) = super::weights::widths(self.m, self.tp);
        let both = self.linear(q + 2 * kv, self.m.hidden);
        let norms = (self.t(q), self.t(kv));
        let attended = self.t(q);
        let part = self.linear(self.m.hidden, q);
        let out = self.reduce(part);
        drop((attended, norms, both));
        out
    }

    /// A layer of Gemma 4; every norm is a new tensor.
    pub(super) fn gemma4(&self, i: u64, input: Tensor) -> Tensor {
        let h = self.m.hidden;
        let (q, kv, _) = self.m.heads_of(self.m.global[i as usize], self.tp);
        let normed = self.t(h);
        let both = self.linear(q + 2 * kv, h);
        let norms = (self.t(q), self.t(kv), self.t(kv));
        let attended = self.t(q);
        let part = self.linear(h, q);
        let out = self.reduce(part);
        drop((attended, both, norms, normed));
        let out = self.normed(out);
        // the sum with the layer's input is the new residual
        let residual = self.t(h);
        drop(out);
        let normed = self.t(h);
        let dense = self.gated(true);
        drop(normed);
        let dense = self.normed(dense);
        let sparse_in = self.t(h);
        let router_in = (self.t(h), self.t(h));
        drop(router_in);
        let sparse = self.experts();
        let sparse = self.normed(sparse);
        let sum = self.t(h);
        drop((sparse, dense));
        let sum = self.normed(sum);
        let whole = self.t(h);
        drop(sum);
        let out = self.t(h);
        drop((whole, sparse_in, residual, input));
        out
    }

    /// A layer of a hybrid; norms in place after the first.
    pub(super) fn hybrid(
        &self,
        kind: char,
        input: Tensor,
        residual: Option<Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        let h = self.m.hidden;
        let (normed, residual) = match residual {
            None => (self.t(h), input),
            Some(r) => (input, r),
        };
        let out = match kind {
            'M' => self.mamba2(),
            '-' => self.plain_mlp(),
            'E' => self.experts(),
            _ => self.attention(),
        };
        drop(normed);
        (out, Some(residual))
    }

    /// Mixer of Mamba 2: the gated norm runs in fp32 where a rank holds more or fewer groups than one.
    fn mamba2(&self) -> Tensor {
        let h = self.m.hidden;
        let Some(s) = self.m.state else {
            return self.t(h);
        };
        let (inner, conv, heads) = (s.inner / self.tp, s.conv.1 / self.tp, s.dt_rank / self.tp);
        let projected = self.linear(inner + conv + heads, h);
        let scanned = self.t(inner);
        drop(self.t(conv));
        let wide = || self.device.tensor(4 * self.tokens * inner);
        let groups = self.m.number("n_groups").unwrap_or(1);
        let normed = if groups == 1 {
            self.t(inner)
        } else {
            let gate = wide();
            let silu = wide();
            drop(gate);
            let x = wide();
            drop(silu);
            let squares = wide();
            let variance = self
                .device
                .tensor(4 * self.tokens * (groups / self.tp).max(1));
            drop(squares);
            let small = (
                self.device.tensor(variance.bytes),
                self.device.tensor(variance.bytes),
            );
            drop(small.0);
            let y = wide();
            drop((small.1, x));
            let narrow = self.t(inner);
            let out = self.t(inner);
            drop((narrow, variance, y));
            out
        };
        let part = self.linear(h, inner);
        let out = self.reduce(part);
        drop((normed, scanned, projected));
        out
    }

    /// Both rotations as transformers writes them: `x * cos + rotate_half(x) * sin`.
    fn rotated(&self, width: u64) -> Tensor {
        let a = self.t(width);
        let half = self.t(width / 2);
        let turned = self.t(width);
        drop(half);
        let b = self.t(width);
        drop(turned);
        let sum = self.t(width);
        drop((a, b));
        sum
    }

    /// Cosine and sine of the positions, in 16 bits.
    pub(super) fn angles(&self) -> (Tensor, Tensor) {
        let d = self.device;
        let (t, r) = (self.tokens, self.m.rotary);
        let frequencies = d.tensor(2 * t * r);
        let angles = d.tensor(4 * t * r);
        let wide = (d.tensor(4 * t * r), d.tensor(4 * t * r));
        let out = (d.tensor(2 * t * r), d.tensor(2 * t * r));
        drop((wide, angles, frequencies));
        out
    }

    /// GPT-NeoX: attention and feed-forward side by side.
    pub(super) fn neox(&self, input: Option<Tensor>) -> Tensor {
        let (q, kv) = super::weights::widths(self.m, self.tp);
        let h = self.m.hidden;
        let heads = q / self.m.head_dim;
        let normed = self.t(h);
        let both = self.linear(q + 2 * kv, h);
        let turned = (
            self.rotated(heads * self.m.rotary),
            self.rotated(heads * self.m.rotary),
        );
        let query = self.t(q);
        let key = self.t(kv);
        drop(turned);
        let flat = (self.t(q), self.t(kv), self.t(kv));
        let attended = self.t(q);
        drop(flat);
        let part = self.linear(h, q);
        let out = self.reduce(part);
        drop((attended, query, key, both, normed));
        let normed = self.t(h);
        let mlp = self.plain_mlp();
        drop(normed);
        let sum = self.t(h);
        let y = self.t(h);
        drop((sum, mlp, out, input));
        y
    }

    /// SmolLM3; every fourth layer leaves out the rotation.
    pub(super) fn smollm3(&self, i: u64, input: Option<Tensor>) -> Tensor {
        let (q, kv) = super::weights::widths(self.m, self.tp);
        let h = self.m.hidden;
        let normed = self.t(h);
        let both = self.linear(q + 2 * kv, h);
        let every = self.m.number("no_rope_layer_interval").unwrap_or(4).max(1);
        let turned = !(i + 1).is_multiple_of(every);
        let turned = turned.then(|| (self.rotated(q), self.rotated(kv)));
        let attended = self.t(q);
        let part = self.linear(h, q);
        let out = self.reduce(part);
        drop((attended, turned, both, normed));
        let residual = self.t(h);
        drop(out);
        let normed = self.t(h);
        let out = self.gated(false);
        drop(normed);
        let sum = self.t(h);
        drop((out, residual, input));
        sum
    }
}
