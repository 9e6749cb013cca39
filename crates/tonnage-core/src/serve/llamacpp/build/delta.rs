//! qwen3next: gated delta nets and gated attention (src/models/qwen3next.cpp, delta-net-base.cpp, with the fused operator).
//!
//! No recorded case has this architecture yet: written from the source alone.

use super::Builder;
use super::attn::{AttnInputs, Extra};
use super::ffn::{Act, Moe};
use super::recurrent::{StateInputs, StateKind};
use crate::serve::llamacpp::error::Error;
use crate::serve::llamacpp::ggml::{Id, Unary};
use crate::serve::llamacpp::hparams::Gating;

impl Builder<'_> {
    pub(super) fn qwen3next_model(&mut self) -> Result<(), Error> {
        let h = self.x.h;
        let mut inp_l = self.inp_embd()?;
        let states = self.state_inputs();
        let attn = self.attn_inputs();
        let pos = self.inp_pos();
        let ids = self.inp_out_ids();
        for l in 0..h.n_layer {
            self.g.label("attention", l as i32);
            let cur = self.rms(inp_l, l, "attn_norm.weight")?;
            self.g.expand(cur);
            let cur = match h.recurrent[l] {
                true => self.delta_layer(states, cur, l)?,
                false => self.gated_attention(&attn, cur, pos, l)?,
            };
            let residual = self.g.add(cur, inp_l);
            self.g.label("feed forward", l as i32);
            let cur = self.rms(residual, l, "post_attention_norm.weight")?;
            let cur = self.delta_ffn(cur, l)?;
            inp_l = self.g.add(cur, residual);
        }
        self.head_picked(inp_l, ids)
    }

    fn delta_ffn(&mut self, cur: Id, l: usize) -> Result<Id, Error> {
        if self.layer_opt(l, "ffn_gate_inp.weight").is_none() {
            return self.ffn(l, cur, "", Act::Gated);
        }
        let how = Moe {
            norm: true,
            gating: Gating::Softmax,
        };
        let experts = self.moe(l, cur, how)?;
        if self.layer_opt(l, "ffn_up_shexp.weight").is_none() {
            return Ok(experts);
        }
        let shared = self.ffn(l, cur, "_shexp", Act::Gated)?;
        let w = self.layer(l, "ffn_gate_inp_shexp.weight")?;
        let gate = self.mm(w, cur);
        let gate = self.g.unary(Unary::Sigmoid, gate);
        let shared = self.g.mul(shared, gate);
        Ok(self.g.add(experts, shared))
    }

    /// `build_layer_attn`: Q comes with a gate for what attention gives.
    fn gated_attention(
        &mut self,
        inp: &AttnInputs,
        cur: Id,
        pos: Id,
        l: usize,
    ) -> Result<Id, Error> {
        let (h, n) = (self.x.h, self.n());
        let (head, heads, kv) = (h.head_k, h.n_head[l], h.n_head_kv[l]);
        if self.layer_opt(l, "attn_qkv.weight").is_some() {
            return Err(Error::Unsupported("fused attn_qkv of qwen3next".into()));
        }
        let mut out = [0; 3];
        for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
            let w = self.layer(l, &format!("attn_{name}.weight"))?;
            out[i] = self.mm(w, cur);
            if let Some(b) = self.layer_opt(l, &format!("attn_{name}.bias")) {
                out[i] = self.g.add(out[i], b);
            }
        }
        let full = self.g.reshape(out[0], [2 * head, heads, n, 1]);
        let nb = self.g.get(full).nb;
        let half = [head, heads, n, 1];
        let q = self.g.view(full, half, [nb[1], nb[2], nb[3]]);
        let gate = self.g.view(full, half, [nb[1], nb[2], nb[3]]);
        let k = self.g.reshape(out[1], [head, kv, n, 1]);
        let v = self.g.reshape(out[2], [head, kv, n, 1]);
        let q = self.rms(q, l, "attn_q_norm.weight")?;
        let k = self.rms(k, l, "attn_k_norm.weight")?;
        let q = self.g.rope(q, pos, None);
        let k = self.g.rope(k, pos, None);
        let cur = self.attn(inp, [q, k, v], (None, None), Extra::default(), l)?;
        let gate = self.g.cont_as(gate, [head * heads, n, 1, 1]);
        let gate = self.g.unary(Unary::Sigmoid, gate);
        let cur = self.g.mul(cur, gate);
        let w = self.layer(l, "attn_output.weight")?;
        Ok(self.mm(w, cur))
    }

    /// `build_gdn_l2_norm`.
    fn gdn_norm(&mut self, x: Id) -> Id {
        let x = self.g.rms_norm(x);
        self.g.scale(x)
    }

    /// `build_qkvz`: what is convolved, and the gate z.
    fn qkvz(&mut self, cur: Id, l: usize) -> Result<(Id, Id), Error> {
        let s = self.x.h.ssm;
        let seqs = self.batch.n_seqs;
        let each = self.n() / seqs;
        let (k_heads, v_heads) = (s.groups.max(1), s.dt_rank.max(1));
        let v_dim = s.inner / v_heads;
        if let Some(w) = self.layer_opt(l, "attn_qkv.weight") {
            let mixed = self.mm(w, cur);
            let width = self.g.get(mixed).ne[0];
            let mixed = self.g.reshape(mixed, [width, each, seqs, 1]);
            let w = self.layer(l, "attn_gate.weight")?;
            return Ok((mixed, self.mm(w, cur)));
        }
        let w = self.layer(l, "ssm_in.weight")?;
        let mixed = self.mm(w, cur);
        let v_part = v_dim * v_heads / k_heads;
        let width = 2 * s.state + 2 * v_part;
        let mixed = self.g.reshape(mixed, [width, k_heads, each, seqs]);
        let nb = self.g.get(mixed).nb;
        let part = |b: &mut Self, n: u64| {
            b.g.view(mixed, [n, k_heads, each, seqs], [nb[1], nb[2], nb[3]])
        };
        let (q, k, v, z) = (
            part(self, s.state),
            part(self, s.state),
            part(self, v_part),
            part(self, v_part),
        );
        let z = self.g.cont(z);
        let flat = |b: &mut Self, x: Id, n: u64| b.g.cont_as(x, [n, each, seqs, 1]);
        let q = flat(self, q, s.state * k_heads);
        let k = flat(self, k, s.state * k_heads);
        let v = flat(self, v, v_dim * v_heads);
        let qk = self.g.concat(q, k, 0);
        Ok((self.g.concat(qk, v, 0), z))
    }

    /// `build_layer_attn_linear`.
    fn delta_layer(&mut self, inp: StateInputs, cur: Id, l: usize) -> Result<Id, Error> {
        let (h, s) = (self.x.h, self.x.h.ssm);
        let seqs = self.batch.n_seqs;
        let each = self.n() / seqs;
        let (k_heads, v_heads) = (s.groups.max(1), s.dt_rank.max(1));
        let (k_dim, v_dim) = (s.state, s.inner / v_heads);
        if !v_heads.is_multiple_of(k_heads) {
            return Err(Error::Unsupported(format!(
                "{v_heads} value heads on {k_heads} key heads"
            )));
        }
        let (mixed, z) = self.qkvz(cur, l)?;
        let w = self.layer(l, "ssm_ba.weight")?;
        let ba = self.mm(w, cur);
        let ratio = v_heads / k_heads;
        let ba = self.g.reshape(ba, [2 * ratio, k_heads, each, seqs]);
        let nb = self.g.get(ba).nb;
        let half = [ratio, k_heads, each, seqs];
        let b = self.g.view(ba, half, [nb[1], nb[2], nb[3]]);
        let a = self.g.view(ba, half, [nb[1], nb[2], nb[3]]);
        let b = self.g.cont(b);
        let beta = self.g.unary(Unary::Sigmoid, b);
        let alpha = self.g.cont_as(a, [v_heads, each, seqs, 1]);
        let bias = self.layer(l, "ssm_dt.bias")?;
        let alpha = self.g.add(alpha, bias);
        let alpha = self.g.unary(Unary::Softplus, alpha);
        let w = self.layer(l, "ssm_a")?;
        let gate = self.g.mul(alpha, w);
        let beta = self.g.reshape(beta, [1, v_heads, each, seqs]);
        let gate = self.g.reshape(gate, [1, v_heads, each, seqs]);

        let kernel = self.layer(l, "ssm_conv1d.weight")?;
        let width = s.inner + 2 * s.groups * s.state;
        let all = self.state(l, StateKind::Scan)?;
        let conv = self.state(l, StateKind::Conv)?;
        let old = self.read_state(inp, conv, |b, states, ids| b.g.get_rows(states, ids));
        let old = self.g.reshape(old, [s.conv - 1, width, seqs, 1]);
        let columns = self.g.transpose(mixed);
        let conv_in = self.conv_and_keep(old, columns, conv, width, s.conv);
        let state = self.read_state(inp, all, |b, states, ids| b.g.get_rows(states, ids));
        let state = self.g.reshape(state, [v_dim, v_dim, v_heads, seqs]);
        let out = self.g.ssm_conv(conv_in, kernel);
        let out = self.g.unary(Unary::Silu, out);
        let row = 4 * (2 * k_dim * k_heads + v_dim * v_heads);
        let part = |b: &mut Self, dim: u64, heads: u64| {
            let strides = [4 * dim, row, row * each];
            b.g.view(out, [dim, heads, each, seqs], strides)
        };
        let (q, k, v) = (
            part(self, k_dim, k_heads),
            part(self, k_dim, k_heads),
            part(self, v_dim, v_heads),
        );
        let (mut q, mut k) = (self.gdn_norm(q), self.gdn_norm(k));
        if k_heads != v_heads {
            for x in [&mut q, &mut k] {
                let one = self.g.reshape(*x, [k_dim, 1, k_heads, each * seqs]);
                let many = self.g.repeat(one, [k_dim, ratio, k_heads, each * seqs]);
                *x = self.g.reshape(many, [k_dim, v_heads, each, seqs]);
            }
        }
        let net = self.g.gated_delta_net([q, k, v, gate, beta, state]);
        let by_head = 4 * v_dim * v_heads;
        let output = self.g.view(
            net,
            [v_dim, v_heads, each, seqs],
            [4 * v_dim, by_head, by_head * each],
        );
        let square = 4 * v_dim * v_dim;
        let new = self.g.view(
            net,
            [v_dim, v_dim, v_heads, seqs],
            [4 * v_dim, square, square * v_heads],
        );
        let nb1 = self.g.get(all).nb[1];
        let into = self.g.view_2d(all, h.scan_state(), seqs, nb1);
        let kept = self.g.cpy(new, into);
        self.g.expand(kept);
        let z = self.g.reshape(z, [v_dim, v_heads, each, seqs]);
        let normed = self.rms(output, l, "ssm_norm.weight")?;
        let z = self.g.unary(Unary::Silu, z);
        let cur = self.g.mul(normed, z);
        let cur = self.g.reshape(cur, [v_dim * v_heads, each, seqs, 1]);
        let w = self.layer(l, "ssm_out.weight")?;
        let cur = self.mm(w, cur);
        Ok(self.g.reshape(cur, [h.n_embd, each * seqs, 1, 1]))
    }
}
