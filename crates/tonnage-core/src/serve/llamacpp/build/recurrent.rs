//! Layers with a recurrent state: Mamba and Mamba-2 (src/models/mamba-base.cpp, mamba.cpp), short convolutions (lfm2.cpp), and how
//! states are read (src/llama-graph.cpp `build_rs`).

use super::attn::Extra;
use super::ffn::{Act, Moe};
use super::{Builder, Kept};
use crate::serve::llamacpp::error::Error;
use crate::serve::llamacpp::ggml::{Id, Unary};
use crate::serve::llamacpp::hparams::Arch;
use tonnage_units::GgmlType::{F32, I32};

/// The inputs that states bring: which rows are read, and which are only carried on.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateInputs {
    main: Id,
    extra: Id,
    /// Rows that are carried on.
    n_extra: u64,
}

impl Builder<'_> {
    /// `build_rs_inp`.
    pub(super) fn state_inputs(&mut self) -> StateInputs {
        let rows = self.x.m.states.first().map_or(1, |s| s.rows);
        let seqs = self.batch.n_seqs;
        let ids = self.g.input("state ids", I32, [rows, 1, 1, 1]);
        let n_extra = rows.saturating_sub(seqs);
        StateInputs {
            main: self.g.view_1d(ids, seqs),
            extra: self.g.view_1d(ids, n_extra),
            n_extra,
        }
    }

    /// The tensor of a state.
    pub(super) fn state(&mut self, l: usize, what: StateKind) -> Result<Id, Error> {
        let kept = match what {
            StateKind::Conv => Kept::Conv,
            StateKind::Scan => Kept::Scan,
        };
        if let Some(id) = self.stored.get(&(l, kept)) {
            return Ok(*id);
        }
        let state = self.x.m.states.iter().find(|s| s.layer == l);
        let state =
            state.ok_or_else(|| Error::Unsupported(format!("layer {l} without a state")))?;
        let width = match what {
            StateKind::Conv => self.x.h.conv_state(),
            StateKind::Scan => self.x.h.scan_state(),
        };
        let id = self
            .g
            .external(F32, [width, state.rows, 1, 1], state.buft, false);
        self.stored.insert((l, kept), id);
        Ok(id)
    }

    /// `build_rs`: clears a row, reads the rows of the batch with `read`, and carries the others on.
    pub(super) fn read_state(
        &mut self,
        inp: StateInputs,
        state: Id,
        read: impl FnOnce(&mut Self, Id, Id) -> Id,
    ) -> Id {
        let ne = self.g.get(state).ne;
        let states = self.g.reshape(state, [ne[0], ne[1], 1, 1]);
        let zero = self.g.view_1d(states, ne[0]);
        let zero = self.g.scale_inplace(zero);
        self.g.expand(zero);
        let out = read(self, states, inp.main);
        self.g.expand(out);
        let rest = self.g.get_rows(states, inp.extra);
        let nb = self.g.get(state).nb[1];
        let into = self.g.view_2d(state, ne[0], inp.n_extra, nb);
        let carried = self.g.cpy(rest, into);
        self.g.expand(carried);
        out
    }

    fn read_rows(&mut self, inp: StateInputs, state: Id) -> Id {
        self.read_state(inp, state, |b, states, ids| b.g.get_rows(states, ids))
    }

    /// mamba, mamba2.
    pub(super) fn mamba_model(&mut self) -> Result<(), Error> {
        let mut inp_l = self.inp_embd()?;
        let inp = self.state_inputs();
        let ids = self.inp_out_ids();
        for l in 0..self.x.h.n_layer {
            self.g.label("state space", l as i32);
            let cur = self.rms(inp_l, l, "attn_norm.weight")?;
            let cur = match self.x.h.arch {
                Arch::Mamba2 => self.mamba2_layer(inp, cur, l)?,
                _ => self.mamba_layer(inp, cur, l)?,
            };
            let (cur, residual) = self.pick(l, cur, inp_l, ids);
            inp_l = self.g.add(cur, residual);
        }
        self.head(inp_l, true, false)
    }

    /// Convolution states and the new columns together; the last ones go back into the state.
    pub(super) fn convolve(
        &mut self,
        inp: StateInputs,
        x: Id,
        l: usize,
        width: u64,
        taps: u64,
    ) -> Result<Id, Error> {
        let seqs = self.batch.n_seqs;
        let all = self.state(l, StateKind::Conv)?;
        let conv = self.read_rows(inp, all);
        let conv = self.g.reshape(conv, [taps - 1, width, seqs, 1]);
        Ok(self.conv_and_keep(conv, x, all, width, taps))
    }

    pub(super) fn conv_and_keep(
        &mut self,
        conv: Id,
        columns: Id,
        all: Id,
        width: u64,
        taps: u64,
    ) -> Id {
        let seqs = self.batch.n_seqs;
        let conv_x = self.g.concat(conv, columns, 0);
        let nb = self.g.get(conv_x).nb;
        let last = self
            .g
            .view_3d(conv_x, [taps - 1, width, seqs], nb[1], nb[2]);
        let into = match self.x.h.arch {
            Arch::Mamba => self.g.view_1d(all, (taps - 1) * width * seqs),
            _ => {
                let nb = self.g.get(all).nb[1];
                self.g.view_2d(all, (taps - 1) * width, seqs, nb)
            }
        };
        let kept = self.g.cpy(last, into);
        self.g.expand(kept);
        conv_x
    }

    fn mamba_layer(&mut self, inp: StateInputs, cur: Id, l: usize) -> Result<Id, Error> {
        let (h, s) = (self.x.h, self.x.h.ssm);
        let seqs = self.batch.n_seqs;
        let each = self.n() / seqs;
        let conv_all = self.state(l, StateKind::Conv)?;
        let scan_all = self.state(l, StateKind::Scan)?;
        let conv = self.read_rows(inp, conv_all);
        let conv = self.g.reshape(conv, [s.conv - 1, s.inner, seqs, 1]);
        let cur = self.g.reshape(cur, [h.n_embd, each, seqs, 1]);
        let w = self.layer(l, "ssm_in.weight")?;
        let xz = self.mm(w, cur);
        let nb = self.g.get(xz).nb;
        let x = self.g.view_3d(xz, [s.inner, each, seqs], nb[1], nb[2]);
        let z = self.g.view_3d(xz, [s.inner, each, seqs], nb[1], nb[2]);
        let columns = self.g.transpose(x);
        let conv_x = self.conv_and_keep(conv, columns, conv_all, s.inner, s.conv);
        let w = self.layer(l, "ssm_conv1d.weight")?;
        let x = self.g.ssm_conv(conv_x, w);
        let bias = self.layer(l, "ssm_conv1d.bias")?;
        let x = self.g.add(x, bias);
        let x = self.g.unary(Unary::Silu, x);

        let w = self.layer(l, "ssm_x.weight")?;
        let x_db = self.mm(w, x);
        let nb = self.g.get(x_db).nb;
        let mut dt = self.g.view_3d(x_db, [s.dt_rank, each, seqs], nb[1], nb[2]);
        let group = [s.state * nb[0], nb[1], nb[2]];
        let mut bb = self.g.view(x_db, [s.state, 1, each, seqs], group);
        let mut cc = self.g.view(x_db, [s.state, 1, each, seqs], group);
        let names = [
            "ssm_dt_norm.weight",
            "ssm_b_norm.weight",
            "ssm_c_norm.weight",
        ];
        let norms = names.map(|n| self.layer_opt(l, n));
        if s.dt_b_c_rms || norms.iter().all(Option::is_some) {
            dt = self.norm(dt, norms[0], None, true, l as i32);
            bb = self.norm(bb, norms[1], None, true, l as i32);
            cc = self.norm(cc, norms[2], None, true, l as i32);
        } else {
            dt = self.g.cont(dt);
        }
        let w = self.layer(l, "ssm_dt.weight")?;
        let dt = self.mm(w, dt);
        let bias = self.layer(l, "ssm_dt.bias")?;
        let dt = self.g.add(dt, bias);
        let heads = self.g.reshape(x, [1, s.inner, each, seqs]);
        let a = self.layer(l, "ssm_a")?;
        let rows = self.g.get(scan_all).ne[1];
        let y_ssm = self.read_state(inp, scan_all, |b, states, ids| {
            let ssm = b.g.reshape(states, [s.state, 1, s.inner, rows]);
            b.g.ssm_scan([ssm, heads, dt, a, bb, cc, ids])
        });
        let n_state = s.state * s.inner * seqs;
        let last = self.g.view_1d(y_ssm, n_state);
        let into = self.g.view_1d(scan_all, n_state);
        let kept = self.g.cpy(last, into);
        self.g.expand(kept);
        let nb = self.g.get(heads).nb;
        let y = self.g.view_3d(y_ssm, [s.inner, each, seqs], nb[2], nb[3]);
        let d = self.layer(l, "ssm_d")?;
        let skip = self.g.mul(x, d);
        let y = self.g.add(y, skip);
        let z = self.g.cont(z);
        let y = self.g.glu_split(z, y);
        let w = self.layer(l, "ssm_out.weight")?;
        let cur = self.mm(w, y);
        let ne = self.g.get(cur).ne;
        Ok(self.g.reshape(cur, [ne[0], each * seqs, 1, 1]))
    }

    fn mamba2_layer(&mut self, inp: StateInputs, cur: Id, l: usize) -> Result<Id, Error> {
        let s = self.x.h.ssm;
        let seqs = self.batch.n_seqs;
        let each = self.n() / seqs;
        let heads = s.dt_rank.max(1);
        let head = s.inner / heads;
        let width = s.inner + 2 * s.groups * s.state;
        let conv_all = self.state(l, StateKind::Conv)?;
        let scan_all = self.state(l, StateKind::Scan)?;
        let conv = self.read_rows(inp, conv_all);
        let conv = self.g.reshape(conv, [s.conv - 1, width, seqs, 1]);
        let w = self.layer(l, "ssm_in.weight")?;
        let zx = self.mm(w, cur);
        let ne = self.g.get(zx).ne;
        let zx = self.g.reshape(zx, [ne[0], each, seqs, 1]);
        let nb = self.g.get(zx).nb;
        let by_head = [head * nb[0], nb[1], nb[2]];
        let z = self.g.view(zx, [head, heads, each, seqs], by_head);
        let x_bc = self.g.view_3d(zx, [width, each, seqs], nb[1], nb[2]);
        let dt = self.g.view_3d(zx, [heads, each, seqs], nb[1], nb[2]);
        let columns = self.g.transpose(x_bc);
        let conv_x = self.conv_and_keep(conv, columns, conv_all, width, s.conv);
        let w = self.layer(l, "ssm_conv1d.weight")?;
        let x_bc = self.g.ssm_conv(conv_x, w);
        let bias = self.layer(l, "ssm_conv1d.bias")?;
        let x_bc = self.g.add(x_bc, bias);
        let x_bc = self.g.unary(Unary::Silu, x_bc);

        let nb = self.g.get(x_bc).nb;
        let x = self.g.view(
            x_bc,
            [head, heads, each, seqs],
            [head * nb[0], nb[1], nb[2]],
        );
        let group = [s.state * nb[0], nb[1], nb[2]];
        let bb = self.g.view(x_bc, [s.state, s.groups, each, seqs], group);
        let cc = self.g.view(x_bc, [s.state, s.groups, each, seqs], group);
        let dt = self.g.cont(dt);
        let bias = self.layer(l, "ssm_dt.bias")?;
        let dt = self.g.add(dt, bias);
        let a = self.layer(l, "ssm_a")?;
        let rows = self.g.get(scan_all).ne[1];
        let y_ssm = self.read_state(inp, scan_all, |b, states, ids| {
            let ssm = b.g.reshape(states, [s.state, head, heads, rows]);
            b.g.ssm_scan([ssm, x, dt, a, bb, cc, ids])
        });
        let n_state = s.state * s.inner;
        let row = 4 * n_state;
        let last = self.g.view_3d(y_ssm, [n_state, seqs, 1], row, row * seqs);
        let nb1 = self.g.get(scan_all).nb[1];
        let into = self
            .g
            .view_3d(scan_all, [n_state, seqs, 1], nb1, rows * row);
        let kept = self.g.cpy(last, into);
        self.g.expand(kept);
        let nb1 = self.g.get(x).nb[1];
        let y = self.g.view(
            y_ssm,
            [head, heads, each, seqs],
            [nb1, heads * nb1, each * heads * nb1],
        );
        let d = self.layer(l, "ssm_d")?;
        let skip = self.g.mul(x, d);
        let y = self.g.add(y, skip);
        let z = self.g.cont(z);
        let mut y = self.g.glu_split(z, y);
        if let Some(w) = self.layer_opt(l, "ssm_norm.weight") {
            let groups = s.groups.max(1);
            y = self.g.reshape(y, [s.inner / groups, groups, each, seqs]);
            y = self.norm(y, Some(w), None, true, l as i32);
        }
        let y = self.g.reshape(y, [s.inner, each * seqs, 1, 1]);
        let w = self.layer(l, "ssm_out.weight")?;
        Ok(self.mm(w, y))
    }

    /// lfm2: short convolutions and attention.
    pub(super) fn lfm2_model(&mut self) -> Result<(), Error> {
        let h = self.x.h;
        let mut cur = self.inp_embd()?;
        let states = self.state_inputs();
        let attn = self.attn_inputs();
        let pos = self.inp_pos();
        let ids = self.inp_out_ids();
        for l in 0..h.n_layer {
            self.g.label("operator", l as i32);
            let before = cur;
            let normed = self.rms(cur, l, "attn_norm.weight")?;
            let out = if h.recurrent[l] {
                self.short_conv(states, normed, l)?
            } else {
                let mut qkv = self.qkv(l, normed, h.head_k)?;
                qkv[0] = self.rms(qkv[0], l, "attn_q_norm.weight")?;
                qkv[1] = self.rms(qkv[1], l, "attn_k_norm.weight")?;
                for x in &mut qkv[..2] {
                    *x = self.g.rope(*x, pos, None);
                }
                let wo = self.layer_opt(l, "attn_output.weight");
                self.attn(&attn, qkv, (wo, None), Extra::default(), l)?
            };
            let (out, before) = self.pick(l, out, before, ids);
            let sum = self.g.add(before, out);
            self.g.label("feed forward", l as i32);
            let normed = self.rms(sum, l, "ffn_norm.weight")?;
            let out = match self.layer_opt(l, "ffn_gate_inp.weight") {
                None => self.ffn(l, normed, "", Act::Gated)?,
                Some(_) => {
                    let how = Moe {
                        norm: true,
                        gating: h.gating,
                    };
                    self.moe(l, normed, how)?
                }
            };
            cur = self.g.add(sum, out);
        }
        self.head(cur, true, false)
    }

    fn short_conv(&mut self, inp: StateInputs, cur: Id, l: usize) -> Result<Id, Error> {
        let h = self.x.h;
        let seqs = self.batch.n_seqs;
        let each = self.n() / seqs;
        let cur = self.g.reshape(cur, [h.n_embd, each, seqs, 1]);
        let w = self.layer(l, "shortconv.in_proj.weight")?;
        let bcx = self.mm(w, cur);
        let (ne, nb) = (self.g.get(bcx).ne, self.g.get(bcx).nb);
        let part = [ne[0] / 3, ne[1], ne[2]];
        let b = self.g.view_3d(bcx, part, nb[1], nb[2]);
        let c = self.g.view_3d(bcx, part, nb[1], nb[2]);
        let x = self.g.view_3d(bcx, part, nb[1], nb[2]);
        let bx = self.g.mul(b, x);
        let bx = self.g.transpose(bx);
        let bx = self.convolve(inp, bx, l, h.n_embd, h.ssm.short_cache)?;
        let w = self.layer(l, "shortconv.conv.weight")?;
        let out = self.g.ssm_conv(bx, w);
        let y = self.g.mul(c, out);
        let w = self.layer(l, "shortconv.out_proj.weight")?;
        let y = self.mm(w, y);
        let ne = self.g.get(y).ne;
        Ok(self.g.reshape(y, [ne[0], each * seqs, 1, 1]))
    }
}

/// Which state of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateKind {
    Conv,
    Scan,
}
