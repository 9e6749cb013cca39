//! One function for each family of architectures (src/models/*.cpp).

use super::Builder;
use super::attn::{AttnInputs, Extra};
use super::ffn::{Act, Moe};
use crate::serve::llamacpp::error::Error;
use crate::serve::llamacpp::ggml::{Id, Unary};
use crate::serve::llamacpp::hparams::{Arch, Gating};

/// Builds the graph of the model's architecture.
pub(super) fn model(b: &mut Builder) -> Result<(), Error> {
    match b.x.h.arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Qwen3Moe => llama(b),
        Arch::Gemma2 | Arch::Gemma3 => gemma(b),
        Arch::Phi3 => phi3(b),
        Arch::Gpt2 => gpt2(b),
        Arch::GptOss => gpt_oss(b),
        Arch::Deepseek2 => deepseek2(b),
        Arch::Mamba | Arch::Mamba2 => b.mamba_model(),
        Arch::Lfm2 => b.lfm2_model(),
        Arch::Qwen3Next => b.qwen3next_model(),
    }
}

/// Q and K are turned by their positions.
fn rope(b: &mut Builder, qkv: &mut [Id; 3], pos: Id, factors: Option<Id>) {
    for x in &mut qkv[..2] {
        *x = b.g.rope(*x, pos, factors);
    }
}

fn output(b: &mut Builder, l: usize) -> (Option<Id>, Option<Id>) {
    let w = b.layer_opt(l, "attn_output.weight");
    (w, b.layer_opt(l, "attn_output.bias"))
}

/// llama, mistral, mixtral; qwen2; qwen3 and qwen3moe with norms on Q and K.
fn llama(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let normed = matches!(h.arch, Arch::Qwen3 | Arch::Qwen3Moe);
    let mut inp_l = b.inp_embd()?;
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let cur = b.rms(inp_l, l, "attn_norm.weight")?;
        let factors = match h.arch {
            Arch::Llama => b.rope_factors(l),
            _ => None,
        };
        let mut qkv = b.qkv(l, cur, h.head_k)?;
        if normed {
            qkv[0] = b.rms(qkv[0], l, "attn_q_norm.weight")?;
            qkv[0] = b.g.rope(qkv[0], pos, None);
            qkv[1] = b.rms(qkv[1], l, "attn_k_norm.weight")?;
            qkv[1] = b.g.rope(qkv[1], pos, None);
        } else {
            rope(b, &mut qkv, pos, factors);
        }
        let wo = output(b, l);
        let cur = b.attn(&inp, qkv, wo, Extra::default(), l)?;
        let (cur, residual) = b.pick(l, cur, inp_l, ids);
        let ffn_inp = b.g.add(cur, residual);
        b.g.label("feed forward", l as i32);
        let cur = b.rms(ffn_inp, l, "ffn_norm.weight")?;
        let cur = match b.layer_opt(l, "ffn_gate_inp.weight") {
            None => b.ffn(l, cur, "", Act::Gated)?,
            Some(_) => {
                let how = Moe {
                    norm: true,
                    gating: Gating::Softmax,
                };
                b.moe(l, cur, how)?
            }
        };
        inp_l = b.g.add(cur, ffn_inp);
    }
    b.head(inp_l, true, false)
}

/// gemma2, gemma3: norms before and after, scaled embeddings, sliding windows.
fn gemma(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let embd = b.inp_embd()?;
    let mut inp_l = b.g.scale(embd);
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let cur = b.rms(inp_l, l, "attn_norm.weight")?;
        let mut qkv = b.qkv(l, cur, h.head_k)?;
        if h.arch == Arch::Gemma3 {
            qkv[0] = b.rms(qkv[0], l, "attn_q_norm.weight")?;
            qkv[0] = b.g.rope(qkv[0], pos, None);
            qkv[1] = b.rms(qkv[1], l, "attn_k_norm.weight")?;
            qkv[1] = b.g.rope(qkv[1], pos, None);
        } else {
            rope(b, &mut qkv, pos, None);
        }
        qkv[0] = b.g.scale(qkv[0]);
        let wo = output(b, l);
        let cur = b.attn(&inp, qkv, wo, Extra::default(), l)?;
        let (cur, residual) = b.pick(l, cur, inp_l, ids);
        let cur = b.rms(cur, l, "post_attention_norm.weight")?;
        let sa_out = b.g.add(cur, residual);
        b.g.label("feed forward", l as i32);
        let cur = b.rms(sa_out, l, "ffn_norm.weight")?;
        let cur = b.ffn(l, cur, "", Act::Gated)?;
        let w = b.layer(l, "post_ffw_norm.weight")?;
        // the engine says no layer here
        let cur = b.norm(cur, Some(w), None, true, -1);
        inp_l = b.g.add(cur, sa_out);
    }
    b.head(inp_l, true, h.final_soft_cap)
}

fn phi3(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let mut inp_l = b.inp_embd()?;
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let factors = b.rope_factors(l);
        let w = b.layer(l, "attn_norm.weight")?;
        let bias = b.layer_opt(l, "attn_norm.bias");
        let cur = b.norm(inp_l, Some(w), bias, true, l as i32);
        let mut qkv = b.qkv(l, cur, h.head_k)?;
        rope(b, &mut qkv, pos, factors);
        qkv[0] = b.g.scale(qkv[0]);
        let wo = output(b, l);
        let cur = b.attn(&inp, qkv, wo, Extra::default(), l)?;
        let (cur, residual) = b.pick(l, cur, inp_l, ids);
        let residual = b.g.add(cur, residual);
        b.g.label("feed forward", l as i32);
        let w = b.layer(l, "ffn_norm.weight")?;
        let bias = b.layer_opt(l, "ffn_norm.bias");
        let cur = b.norm(residual, Some(w), bias, true, l as i32);
        let cur = match b.layer_opt(l, "ffn_gate_inp.weight") {
            None => b.ffn(l, cur, "", Act::Fused)?,
            Some(_) => return Err(Error::Unsupported("experts in phi3".into())),
        };
        inp_l = b.g.add(residual, cur);
    }
    b.head(inp_l, true, false)
}

fn gpt2(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let embd = b.inp_embd()?;
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let table = b
        .optional(
            "position_embd.weight",
            crate::serve::llamacpp::weights::Device::Cpu,
        )
        .ok_or_else(|| Error::MissingTensor("position_embd.weight".into()))?;
    let pos = b.g.get_rows(table, pos);
    let mut inp_l = b.g.add(embd, pos);
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let w = b.layer(l, "attn_norm.weight")?;
        let bias = b.layer_opt(l, "attn_norm.bias");
        let cur = b.norm(inp_l, Some(w), bias, false, l as i32);
        let qkv = b.qkv(l, cur, h.head_k)?;
        let wo = output(b, l);
        let cur = b.attn(&inp, qkv, wo, Extra::default(), l)?;
        let (cur, residual) = b.pick(l, cur, inp_l, ids);
        let ffn_inp = b.g.add(cur, residual);
        b.g.label("feed forward", l as i32);
        let w = b.layer(l, "ffn_norm.weight")?;
        let bias = b.layer_opt(l, "ffn_norm.bias");
        let cur = b.norm(ffn_inp, Some(w), bias, false, l as i32);
        let cur = b.ffn(l, cur, "", Act::Plain(Unary::Gelu))?;
        inp_l = b.g.add(cur, ffn_inp);
    }
    b.head(inp_l, false, false)
}

fn gpt_oss(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let mut inp_l = b.inp_embd()?;
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let cur = b.rms(inp_l, l, "attn_norm.weight")?;
        let mut qkv = b.qkv(l, cur, h.n_rot)?;
        rope(b, &mut qkv, pos, None);
        let wo = output(b, l);
        let extra = Extra {
            sinks: b.layer_opt(l, "attn_sinks.weight"),
            v_mla: None,
        };
        let cur = b.attn(&inp, qkv, wo, extra, l)?;
        let ffn_inp = b.g.add(cur, inp_l);
        b.g.label("feed forward", l as i32);
        let cur = b.rms(ffn_inp, l, "post_attention_norm.weight")?;
        let how = Moe {
            norm: false,
            gating: Gating::SoftmaxWeight,
        };
        let cur = b.moe(l, cur, how)?;
        inp_l = b.g.add(cur, ffn_inp);
    }
    // the last layer's rows are a result of their own, and only then picked
    b.g.get_mut(inp_l).output = true;
    let cur = b.g.get_rows(inp_l, ids);
    b.head(cur, true, false)
}

fn deepseek2(b: &mut Builder) -> Result<(), Error> {
    let h = b.x.h;
    let mut inp_l = b.inp_embd()?;
    let pos = b.inp_pos();
    let inp = b.attn_inputs();
    let ids = b.inp_out_ids();
    for l in 0..h.n_layer {
        b.g.label("attention", l as i32);
        let cur = b.rms(inp_l, l, "attn_norm.weight")?;
        let cur = deepseek2_attention(b, l, cur, pos, &inp)?;
        let (cur, residual) = b.pick(l, cur, inp_l, ids);
        let ffn_inp = b.g.add(cur, residual);
        b.g.label("feed forward", l as i32);
        let cur = b.rms(ffn_inp, l, "ffn_norm.weight")?;
        let cur = if l < h.dense_lead {
            b.ffn(l, cur, "", Act::Gated)?
        } else {
            let how = Moe {
                norm: h.expert_norm,
                gating: h.gating,
            };
            let experts = b.moe(l, cur, how)?;
            let shared = b.ffn(l, cur, "_shexp", Act::Gated)?;
            b.g.add(experts, shared)
        };
        inp_l = b.g.add(cur, ffn_inp);
    }
    b.head(inp_l, true, false)
}

fn deepseek2_attention(
    b: &mut Builder,
    l: usize,
    cur: Id,
    pos: Id,
    inp: &AttnInputs,
) -> Result<Id, Error> {
    let (h, n) = (b.x.h, b.n());
    let heads = h.n_head[l];
    let (head_k, head_v) = h.mla.unwrap_or((h.head_k, h.head_v));
    let (rot, lora) = (h.n_rot, h.kv_lora_rank);
    let Some(nope) = head_k.checked_sub(rot).filter(|n| *n > 0) else {
        return Err(Error::Unsupported(format!(
            "heads of {head_k} with {rot} turned"
        )));
    };
    let q = match b.layer_opt(l, "attn_q.weight") {
        Some(w) => b.mm(w, cur),
        None => {
            let w = b.layer(l, "attn_q_a.weight")?;
            let q = b.mm(w, cur);
            let q = b.rms(q, l, "attn_q_a_norm.weight")?;
            let w = b.layer(l, "attn_q_b.weight")?;
            b.mm(w, q)
        }
    };
    let q = b.g.reshape(q, [head_k, heads, n, 1]);
    let w = b.layer(l, "attn_kv_a_mqa.weight")?;
    let both = b.mm(w, cur);
    let row = 4 * (lora + rot);
    let kv = b.g.view_2d(both, lora, n, row);
    let k_pe = b.g.view_3d(both, [rot, 1, n], row, row);
    let k_pe = b.g.rope(k_pe, pos, None);
    let kv = b.rms(kv, l, "attn_kv_a_norm.weight")?;
    let wo = output(b, l);
    if h.mla.is_some() {
        let nb = b.g.get(q).nb;
        let q_nope = b.g.view_3d(q, [nope, heads, n], nb[1], nb[2]);
        let q_pe = b.g.view_3d(q, [rot, heads, n], nb[1], nb[2]);
        let q_pe = b.g.rope(q_pe, pos, None);
        let q_nope = b.g.permute(q_nope, [0, 2, 1, 3]);
        let w = b.layer(l, "attn_k_b.weight")?;
        let absorbed = b.g.mul_mat(w, q_nope);
        let absorbed = b.g.permute(absorbed, [0, 2, 1, 3]);
        let q = b.g.concat(absorbed, q_pe, 0);
        let kv = b.g.reshape(kv, [lora, 1, n, 1]);
        let k = b.g.concat(kv, k_pe, 0);
        let extra = Extra {
            sinks: None,
            v_mla: Some(b.layer(l, "attn_v_b.weight")?),
        };
        return b.attn(inp, [q, k, kv], wo, extra, l);
    }
    let w = b.layer(l, "attn_kv_b.weight")?;
    let kv = b.mm(w, kv);
    let each = 4 * (nope + head_v);
    let k_nope = b.g.view_3d(kv, [nope, heads, n], each, each * heads);
    let v = b.g.view_3d(kv, [head_v, heads, n], each, each * heads);
    let v = b.g.cont(v);
    let q = b.g.rope(q, pos, None);
    let k_pe = b.g.repeat(k_pe, [rot, heads, n, 1]);
    let k = b.g.concat(k_nope, k_pe, 0);
    b.attn(inp, [q, k, v], wo, Extra::default(), l)
}
