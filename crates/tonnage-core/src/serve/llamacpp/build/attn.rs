//! Attention: the inputs of a cache, storing into it, the products (src/llama-graph.cpp `build_attn*`, src/llama-kv-cache.cpp
//! `get_k`, `get_v`, `cpy_k`, `cpy_v`).

use super::{Builder, Kept};
use crate::serve::llamacpp::error::Error;
use crate::serve::llamacpp::ggml::{Id, Unary, cuda};
use tonnage_units::GgmlType::{self, F16, F32, I64};

/// The inputs that a cache brings.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheInputs {
    k_idxs: Id,
    /// None where K is all there is.
    v_idxs: Option<Id>,
    mask: Id,
    k_rot: Option<Id>,
    v_rot: Option<Id>,
}

/// Inputs of all caches, in their order.
#[derive(Clone, Debug)]
pub(super) struct AttnInputs {
    caches: Vec<CacheInputs>,
    /// Sliding-window models have the order q, k, v.
    sliding: bool,
}

/// What a layer's attention has besides Q, K and V.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extra {
    pub sinks: Option<Id>,
    pub v_mla: Option<Id>,
}

/// Bytes of a row.
fn row(ty: GgmlType, n: u64) -> u64 {
    n / ty.block_len() * ty.block_bytes()
}

impl Builder<'_> {
    /// V is stored transposed: flash attention was not asked for, whatever it turned out to be.
    fn transposed(&self) -> bool {
        !self.x.c.flash_attention
    }

    /// `build_attn_inp_kv`, `build_attn_inp_kv_iswa`, `build_attn_inp_k`.
    pub(super) fn attn_inputs(&mut self) -> AttnInputs {
        let (n, seqs) = (self.n(), self.batch.n_seqs);
        let h = self.x.h;
        let mla = h.mla.is_some();
        let streams = if self.x.c.unified { 1 } else { seqs };
        let mask_type = if self.x.flash_attention { F16 } else { F32 };
        let mut caches = Vec::new();
        for cache in &self.x.m.caches {
            let k_idxs = self.g.input("cache indices", I64, [n, 1, 1, 1]);
            let v_idxs = (!mla).then(|| {
                let rows = match self.transposed() {
                    true => n * h.v_width_max(),
                    false => n,
                };
                self.g.input("cache indices", I64, [rows, 1, 1, 1])
            });
            let ne = [cache.cells, n / streams, 1, streams];
            let mask = self.g.input("attention mask", mask_type, ne);
            caches.push(CacheInputs {
                k_idxs,
                v_idxs,
                mask,
                k_rot: None,
                v_rot: None,
            });
        }
        // quantised caches hold rotated values
        for (i, cache) in self.x.m.caches.iter().enumerate() {
            if mla || cache.layers.is_empty() {
                continue;
            }
            if self.x.s.type_k.is_quantized() && h.head_k.is_multiple_of(64) {
                let mut n = 128;
                while h.head_k.is_multiple_of(n) {
                    n *= 2;
                }
                let ne = [n / 2, n / 2, 1, 1];
                caches[i].k_rot = Some(self.g.input(cuda::ROTATION, F32, ne));
            }
            if self.x.s.type_v.is_quantized() && h.head_v.is_multiple_of(64) {
                caches[i].v_rot = Some(self.g.input(cuda::ROTATION, F32, [64, 64, 1, 1]));
            }
        }
        AttnInputs {
            caches,
            sliding: h.n_swa > 0,
        }
    }

    /// `llama_mul_mat_hadamard`.
    fn rotate(&mut self, cur: Id, rot: Id) -> Id {
        let n = self.g.get(rot).ne[0];
        let (ne, all) = (self.g.get(cur).ne, self.g.get(cur).elements());
        let flat = match self.g.get(cur).is_contiguous() {
            true => self.g.reshape(cur, [n, all / n, 1, 1]),
            false => self.g.cont_as(cur, [n, all / n, 1, 1]),
        };
        let turned = self.g.mul_mat(rot, flat);
        self.g.reshape(turned, ne)
    }

    /// The tensor of a cache.
    fn kept(&mut self, l: usize, what: Kept) -> Result<Id, Error> {
        if let Some(id) = self.stored.get(&(l, what)) {
            return Ok(*id);
        }
        let m = self.x.m;
        let (cache, lc) = m
            .of(l)
            .ok_or_else(|| Error::Unsupported(format!("layer {l} without a cache")))?;
        let (cells, streams) = (m.caches[cache].cells, m.caches[cache].streams);
        let (ty, width) = match what {
            Kept::K => (self.x.s.type_k, lc.k),
            _ => (self.x.s.type_v, lc.v),
        };
        let id = self
            .g
            .external(ty, [width, cells, streams, 1], lc.buft, false);
        self.stored.insert((l, what), id);
        Ok(id)
    }

    /// `cpy_k`, and `cpy_v` of a cache that is not transposed.
    fn store(&mut self, cache: Id, cur: Id, idxs: Id) -> Id {
        let (t, c) = (self.g.get(cur), self.g.get(cache).ne);
        let (width, n, nb) = (t.ne[0] * t.ne[1], t.ne[2], t.nb[2]);
        let from = self.g.view_2d(cur, width, n, nb);
        let into = match c[2] > 1 {
            true => self.g.reshape(cache, [width, c[1] * c[2], 1, 1]),
            false => cache,
        };
        self.g.set_rows(into, from, idxs)
    }

    /// `cpy_v` of a transposed cache.
    fn store_transposed(&mut self, cache: Id, cur: Id, idxs: Id) -> Id {
        let t = self.g.get(cur);
        let (width, n) = (t.ne[0] * t.ne[1], t.ne[2]);
        let packed = row(t.ty, width) == t.nb[2];
        let mut cur = match packed {
            true => self.g.reshape(cur, [width, n, 1, 1]),
            false => self.g.cont_as(cur, [width, n, 1, 1]),
        };
        let full = self.g.get(cache).ne[0];
        if width < full {
            cur = self.g.pad_to(cur, [full, n, 1, 1]);
        }
        let all = self.g.get(cache).elements();
        let into = self.g.reshape(cache, [1, all, 1, 1]);
        let all = self.g.get(cur).elements();
        let cur = self.g.reshape(cur, [1, all, 1, 1]);
        self.g.set_rows(into, cur, idxs)
    }

    /// `build_attn`: stores K and V, attends, and applies the output matrix `wo` with its bias.
    pub(super) fn attn(
        &mut self,
        inp: &AttnInputs,
        qkv: [Id; 3],
        wo: (Option<Id>, Option<Id>),
        extra: Extra,
        l: usize,
    ) -> Result<Id, Error> {
        let [mut q, mut k, mut v] = qkv;
        let cache = self.x.m.of(l).map_or(0, |c| c.0);
        let c = inp.caches[cache];
        if let Some(rot) = c.k_rot {
            q = self.rotate(q, rot);
            k = self.rotate(k, rot);
        }
        if let Some(rot) = c.v_rot {
            v = self.rotate(v, rot);
        }
        let order = match inp.sliding {
            true => [q, k, v],
            false => [q, v, k],
        };
        for x in order {
            self.g.expand(x);
        }
        let k_all = self.kept(l, Kept::K)?;
        let stored = self.store(k_all, k, c.k_idxs);
        self.g.expand(stored);
        let k_view = self.cache_view(k_all, l, self.x.h.head_k);
        let v_view = match c.v_idxs {
            Some(idxs) => {
                let v_all = self.kept(l, Kept::V)?;
                let stored = match self.transposed() {
                    true => self.store_transposed(v_all, v, idxs),
                    false => self.store(v_all, v, idxs),
                };
                self.g.expand(stored);
                match self.transposed() {
                    true => self.cache_view_transposed(v_all, l),
                    false => self.cache_view(v_all, l, self.x.h.head_v),
                }
            }
            None => {
                let width = self.g.get(v).ne[0];
                let t = self.g.get(k_view);
                let (ne, nb) = (t.ne, t.nb);
                self.g
                    .view(k_view, [width, ne[1], ne[2], ne[3]], [nb[1], nb[2], nb[3]])
            }
        };
        let mut cur = self.mha(q, k_view, v_view, c.mask, extra, l);
        if let Some(rot) = c.v_rot {
            cur = self.rotate(cur, rot);
        }
        if let Some(w) = wo.0 {
            cur = self.mm(w, cur);
        }
        if let Some(b) = wo.1 {
            cur = self.g.add(cur, b);
        }
        Ok(cur)
    }

    /// `get_k`, and `get_v` of a cache that is not transposed.
    fn cache_view(&mut self, cache: Id, l: usize, head: u64) -> Id {
        let t = self.g.get(cache);
        let (ty, ne) = (t.ty, t.ne);
        let heads = self.x.h.n_head_kv[l];
        let nb = [row(ty, head), row(ty, ne[0]), row(ty, ne[0] * ne[1])];
        self.g.view(cache, [head, heads, ne[1], ne[2]], nb)
    }

    fn cache_view_transposed(&mut self, cache: Id, l: usize) -> Id {
        let t = self.g.get(cache);
        let (ty, ne) = (t.ty, t.ne);
        let (heads, head) = (self.x.h.n_head_kv[l], self.x.h.head_v);
        let nb = [
            row(ty, ne[1] * head),
            row(ty, ne[1]),
            row(ty, ne[1] * ne[0]),
        ];
        self.g.view(cache, [ne[1], heads, head, ne[2]], nb)
    }

    /// `build_attn_mha`.
    fn mha(&mut self, q: Id, k: Id, v: Id, mask: Id, extra: Extra, l: usize) -> Id {
        let (tv, tq) = (self.g.get(v), self.g.get(q));
        let transposed = tv.nb[1] > tv.nb[2];
        let streams = self.g.get(k).ne[3];
        let (ne, nb) = (tq.ne, tq.nb);
        let each = ne[2] / streams;
        let q = self.g.view(
            q,
            [ne[0], ne[1], each, streams],
            [nb[1], nb[2], nb[2] * each],
        );
        let q = self.g.permute(q, [0, 2, 1, 3]);
        let mut k = self.g.permute(k, [0, 2, 1, 3]);
        let mut v = self.g.permute(v, [0, 2, 1, 3]);
        let cur = if self.x.flash_attention {
            if transposed {
                v = self.g.transpose(v);
            }
            for x in [&mut k, &mut v] {
                if self.g.get(*x).ty == F32 {
                    *x = self.g.cast(*x, F16);
                }
            }
            let mut cur = self.g.flash_attn(q, k, v, mask, extra.sinks);
            self.attention.push((cur, l));
            if let Some(w) = extra.v_mla {
                cur = self.g.permute(cur, [0, 2, 1, 3]);
                cur = self.g.mul_mat(w, cur);
                cur = self.g.permute(cur, [0, 2, 1, 3]);
                cur = self.g.cont(cur);
            }
            let ne = self.g.get(cur).ne;
            self.g.reshape(cur, [ne[0] * ne[1], ne[2] * ne[3], 1, 1])
        } else {
            let mut kq = self.g.mul_mat(k, q);
            if self.x.h.attention_soft_cap {
                kq = self.g.scale(kq);
                kq = self.g.unary(Unary::Tanh, kq);
                kq = self.g.scale(kq);
            }
            let kq = self.g.soft_max(kq, Some(mask), extra.sinks);
            if !transposed {
                v = self.g.transpose(v);
                v = self.g.cont(v);
            }
            let mut kqv = self.g.mul_mat(v, kq);
            if let Some(w) = extra.v_mla {
                kqv = self.g.mul_mat(w, kqv);
            }
            let cur = self.g.permute(kqv, [0, 2, 1, 3]);
            let ne = self.g.get(cur).ne;
            let cur = self.g.cont_as(cur, [ne[0] * ne[1], ne[2] * ne[3], 1, 1]);
            if !self.x.s.offload_kqv {
                let cpu = self.x.b.list.len() - 1;
                self.g.wished.push((cur, cpu));
            }
            cur
        };
        self.g.expand(cur);
        cur
    }

    /// `build_qkv`: fused or three products, with their biases; as heads.
    pub(super) fn qkv(&mut self, l: usize, cur: Id, head: u64) -> Result<[Id; 3], Error> {
        let (h, n) = (self.x.h, self.n());
        let (nq, nkv) = (h.n_head[l], h.n_head_kv[l]);
        if let Some(w) = self.layer_opt(l, "attn_qkv.weight") {
            let mut qkv = self.mm(w, cur);
            if let Some(b) = self.layer_opt(l, "attn_qkv.bias") {
                qkv = self.g.add(qkv, b);
            }
            let nb = self.g.get(qkv).nb[1];
            let view = |b: &mut Self, heads: u64| b.g.view_3d(qkv, [head, heads, n], 4 * head, nb);
            return Ok([view(self, nq), view(self, nkv), view(self, nkv)]);
        }
        let mut out = [0; 3];
        for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
            let w = self.layer(l, &format!("attn_{name}.weight"))?;
            let mut x = self.mm(w, cur);
            if let Some(b) = self.layer_opt(l, &format!("attn_{name}.bias")) {
                x = self.g.add(x, b);
            }
            out[i] = x;
        }
        for (x, heads) in out.iter_mut().zip([nq, nkv, nkv]) {
            *x = self.g.reshape(*x, [head, heads, n, 1]);
        }
        Ok(out)
    }

    /// `get_rope_factors`: of long or short contexts, or the same for all.
    pub(super) fn rope_factors(&mut self, l: usize) -> Option<Id> {
        let d = self.device(l);
        let name = match self.x.c.n_ctx_seq > self.x.h.n_ctx_orig {
            true => "rope_factors_long.weight",
            false => "rope_factors_short.weight",
        };
        self.optional("rope_freqs.weight", d)
            .or_else(|| self.optional(name, d))
    }
}
