//! Multi-head latent attention: queries and keys have a part that is rotated and one that is not, keys and values come from one
//! compressed latent.

use super::Config;
use crate::common;
use crate::layers::{Linear, RmsNorm};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use std::rc::Rc;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// The rotary tables of a call.
#[derive(Clone)]
pub enum Tables {
    /// Cosines and sines [1, S, rope] in the model's dtype.
    Real { cos: Tensor, sin: Tensor },
    /// V2: e^(i angle) as [1, S, rope / 2, 2] fp32, which is a complex [1, S, rope / 2].
    Complex(Tensor),
}

impl Tables {
    /// For positions `[b, s]`.
    pub fn new(m: &Run, c: &Config, [b, s]: [u64; 2], dtype: ScalarType) -> Tables {
        let dim = c.qk_rope_head_dim;
        if c.v3 {
            let (cos, sin) = common::rope::tables_for(m, b, s, dim, dtype);
            return Tables::Real { cos, sin };
        }
        let cx = &m.cx;
        cx.with_grad(false, || {
            let f32s = |op, d: &[u64]| cx.empty(op, Shape::new(d), ScalarType::F32);
            let positions = f32s(OpId::TO_COPY, &[b, 1, s]);
            let freqs = f32s(OpId::BMM, &[b, s, dim / 2]);
            cx.gemm();
            let ones = f32s(OpId::ONES_LIKE, &[b, s, dim / 2]);
            let polar = f32s(OpId::COS, &[b, s, dim / 2, 2]);
            drop(ones);
            let scaled = f32s(OpId::MUL, &[b, s, dim / 2, 2]);
            drop(polar);
            drop(positions);
            drop(freqs);
            Tables::Complex(scaled)
        })
    }
}

enum Query {
    Direct(Linear),
    Lora { a: Linear, norm: RmsNorm, b: Linear },
}

/// `self_attn`.
pub struct Attention {
    id: ModuleId,
    query: Query,
    kv_a: Linear,
    kv_norm: RmsNorm,
    kv_b: Linear,
    o: Linear,
    c: Rc<Config>,
}

impl Attention {
    pub fn new(b: &mut NetBuilder, c: &Rc<Config>) -> Attention {
        let (d, h, bias) = (c.hidden_size, c.num_attention_heads, c.attention_bias);
        let width = h * c.qk_head_dim();
        b.scope("self_attn", |b| {
            let query = match c.q_lora_rank {
                None => Query::Direct(Linear::new(b, "q_proj", d, width, false)),
                Some(r) => Query::Lora {
                    a: Linear::new(b, "q_a_proj", d, r, bias),
                    norm: RmsNorm::new(b, "q_a_layernorm", r),
                    b: Linear::new(b, "q_b_proj", r, width, false),
                },
            };
            let rank = c.kv_lora_rank;
            let joined = rank + c.qk_rope_head_dim;
            let expanded = h * (c.qk_nope_head_dim + c.v_head_dim);
            Attention {
                id: b.id(),
                query,
                kv_a: Linear::new(b, "kv_a_proj_with_mqa", d, joined, bias),
                kv_norm: RmsNorm::new(b, "kv_a_layernorm", rank),
                kv_b: Linear::new(b, "kv_b_proj", rank, expanded, false),
                o: Linear::new(b, "o_proj", h * c.v_head_dim, d, bias),
                c: c.clone(),
            }
        })
    }

    fn queries(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut q = match &self.query {
            Query::Direct(l) => l.forward(m, x),
            Query::Lora { a, norm, b } => {
                let low = a.forward(m, x);
                let normed = norm.forward(m, &low);
                drop(low);
                b.forward(m, &normed)
            }
        };
        q = self.heads(m, &q, self.c.qk_head_dim(), x);
        q
    }

    /// `y.view(B, S, -1, size).transpose(1, 2)`.
    fn heads(&self, m: &Run, y: &Tensor, size: u64, x: &Tensor) -> Tensor {
        // keys and values are made of every cached token
        let (b, h) = (x.size(0), self.c.num_attention_heads);
        let shape = Shape::new(&[b, y.numel() / (b * h * size).max(1), h, size]);
        ops::transpose(&m.cx, &ops::view(&m.cx, y, shape), 1, 2)
    }

    /// The result [B, S, D] and the probabilities of eager attention.
    pub fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        tables: &Tables,
        mask: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        m.within(self.id, || self.attend(m, x, tables, mask))
    }

    fn attend(
        &self,
        m: &Run,
        x: &Tensor,
        tables: &Tables,
        mask: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let c = &self.c;
        let five = m.options.stack.transformers_5();
        let (b, s, rope) = (x.size(0), x.size(1), c.qk_rope_head_dim);
        let q_states = self.queries(m, x);
        let [q_pass, mut q_rot] = pair(ops::split(cx, &q_states, &[c.qk_nope_head_dim, rope], -1));
        let compressed = self.kv_a.forward(m, x);
        let [mut latent, mut k_rot] =
            pair(ops::split(cx, &compressed, &[c.kv_lora_rank, rope], -1));
        latent = self.kv_norm.forward(m, &latent);
        let (q, k, v);
        let mut compressed_latent = None;
        if five {
            latent = ops::view(cx, &latent, Shape::new(&[b, 1, s, c.kv_lora_rank]));
            k_rot = ops::view(cx, &k_rot, Shape::new(&[b, 1, s, rope]));
            (q_rot, k_rot) = self.rotate(m, &q_rot, &k_rot, tables);
            // the cache holds both latents, not keys and values
            (latent, k_rot) = m.cached(self.id, None, latent, k_rot);
            q = ops::cat(cx, &[&q_pass, &q_rot], -1);
            (k, v) = self.expand(m, &latent, &k_rot, x);
            compressed_latent = Some(latent);
        } else {
            let (k_pass, values) = self.keys_and_values(m, &latent, x);
            // only an argument there
            drop(latent);
            k_rot = ops::view(cx, &k_rot, Shape::new(&[b, 1, s, rope]));
            (q_rot, k_rot) = self.rotate(m, &q_rot, &k_rot, tables);
            k_rot = ops::expand(cx, &k_rot, k_pass.shape.with(-1, rope));
            q = ops::cat(cx, &[&q_pass, &q_rot], -1);
            let keys = ops::cat(cx, &[&k_pass, &k_rot], -1);
            (k, v) = m.cached(self.id, None, keys, values);
        }
        let p = c.attention_dropout;
        let (mut o, w) = common::attention::attend_with_weights(m, &q, &k, &v, mask, p, true);
        let width = c.num_attention_heads * c.v_head_dim;
        o = ops::reshape(cx, &o, Shape::new(&[b, s, width]));
        o = self.o.forward(m, &o);
        drop(q_states);
        drop(q_pass);
        drop(q_rot);
        drop(compressed);
        drop(compressed_latent);
        drop(k_rot);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    /// The unrotated part of the keys and the values [B, H, S, size] from the latent.
    fn keys_and_values(&self, m: &Run, latent: &Tensor, x: &Tensor) -> (Tensor, Tensor) {
        let sizes = [self.c.qk_nope_head_dim, self.c.v_head_dim];
        let y = self.kv_b.forward(m, latent);
        let y = self.heads(m, &y, sizes[0] + sizes[1], x);
        let [k, v] = pair(ops::split(&m.cx, &y, &sizes, -1));
        (k, v)
    }

    /// 5.x, `expand_kv`: both parts of the keys are copied into an empty tensor.
    fn expand(&self, m: &Run, latent: &Tensor, k_rot: &Tensor, x: &Tensor) -> (Tensor, Tensor) {
        let cx = &m.cx;
        let (nope, v) = self.keys_and_values(m, latent, x);
        let k_rot = ops::expand(cx, k_rot, nope.shape.with(-1, self.c.qk_rope_head_dim));
        let empty = cx.empty(
            OpId::CAT,
            nope.shape.with(-1, self.c.qk_head_dim()),
            nope.dtype,
        );
        let k = ops::copy_into(cx, empty, &nope);
        let k = ops::copy_into(cx, k, &k_rot);
        (k, v)
    }

    /// `apply_rotary_pos_emb_interleave`, `apply_rotary_pos_emb` or V2's `apply_rotary_emb`.
    fn rotate(&self, m: &Run, q: &Tensor, k: &Tensor, tables: &Tables) -> (Tensor, Tensor) {
        let cx = &m.cx;
        let (cos, sin) = match tables {
            Tables::Complex(freqs) => return rotate_complex(m, q, k, freqs),
            Tables::Real { cos, sin } => (cos, sin),
        };
        if !self.c.rope_interleave {
            return common::rope::apply(m, q, k, cos, sin);
        }
        if !m.options.stack.transformers_5() {
            let (q, k) = (deinterleaved(m, q), deinterleaved(m, k));
            return common::rope::apply(m, &q, &k, cos, sin);
        }
        let half = |t: &Tensor| {
            let t = ops::slice(cx, t, -1, 0, t.size(-1) / 2);
            ops::unsqueeze(cx, &t, 1)
        };
        let (cos, sin) = (half(cos), half(sin));
        let pairs = |x: &Tensor| [ops::every(cx, x, 2), ops::every(cx, x, 2)];
        let (q, k) = (pairs(q), pairs(k));
        let one = |[x1, x2]: &[Tensor; 2]| {
            let (a, b) = (ops::mul(cx, x1, &cos), ops::mul(cx, x2, &sin));
            let first = ops::sub(cx, &a, &b);
            drop(a);
            drop(b);
            let (a, b) = (ops::mul(cx, x2, &cos), ops::mul(cx, x1, &sin));
            let second = ops::add(cx, &a, &b);
            drop(a);
            drop(b);
            ops::cat(cx, &[&first, &second], -1)
        };
        (one(&q), one(&k))
    }
}

/// `x.view(b, h, s, d / 2, 2).transpose(4, 3).reshape(b, h, s, d)`.
fn deinterleaved(m: &Run, x: &Tensor) -> Tensor {
    let (b, h, s, d) = (x.size(0), x.size(1), x.size(2), x.size(3));
    let y = ops::view(&m.cx, x, Shape::new(&[b, h, s, d / 2, 2]));
    let y = ops::transpose(&m.cx, &y, 4, 3);
    ops::reshape(&m.cx, &y, x.shape)
}

/// Complex numbers stand as pairs in a last dimension.
fn rotate_complex(m: &Run, q: &Tensor, k: &Tensor, freqs: &Tensor) -> (Tensor, Tensor) {
    let cx = &m.cx;
    let complex = |x: &Tensor| {
        let wide = ops::to_dtype(cx, x, ScalarType::F32);
        let (b, h, s, d) = (x.size(0), x.size(1), x.size(2), x.size(3));
        ops::reshape(cx, &wide, Shape::new(&[b, h, s, d / 2, 2]))
    };
    let (q2, k2) = (complex(q), complex(k));
    let freqs = ops::unsqueeze(cx, freqs, 1);
    let one = |c: &Tensor, like: &Tensor| {
        let y = ops::mul_complex(cx, c, &freqs);
        let y = ops::reshape(cx, &y, like.shape);
        ops::to_dtype(cx, &y, like.dtype)
    };
    (one(&q2, q), one(&k2, k))
}

fn pair(parts: impl IntoIterator<Item = Tensor>) -> [Tensor; 2] {
    let mut parts = parts.into_iter();
    let mut next = || parts.next().expect("a split in two");
    [next(), next()]
}
