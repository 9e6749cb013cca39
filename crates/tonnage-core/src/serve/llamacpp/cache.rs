//! KV caches and recurrent states (llama.cpp v0.5.0, src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp,
//! llama-model.cpp `create_memory`), and the numbers of a context (llama-context.cpp).

use super::error::Error;
use super::ggml::{Buft, cuda, pad};
use super::hparams::Hparams;
use super::settings::{FlashAttention, Settings};
use super::weights::Weights;
use tonnage_units::GgmlType;

/// Cells come in multiples of it.
const CELLS: u64 = 256;
/// Most sequences (`LLAMA_MAX_SEQ`).
const MAX_SEQ: u64 = 256;
/// Longest context that is considered: sizes stay within 64 bits.
const MAX_CONTEXT: u64 = 1 << 28;

/// The numbers of a context after the engine has rounded them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Tokens in all, and of one sequence.
    pub n_ctx: u64,
    pub n_ctx_seq: u64,
    pub n_batch: u64,
    pub n_ubatch: u64,
    pub n_seq: u64,
    pub unified: bool,
    pub n_outputs_max: u64,
    /// Flash attention as asked for: V is kept as it comes, not transposed.
    pub flash_attention: bool,
    /// Whether it must still be found out if it runs.
    pub probe: bool,
}

/// One cache of one kind of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    pub sliding: bool,
    /// Cells of each stream.
    pub cells: u64,
    pub streams: u64,
    pub layers: Vec<LayerCache>,
}

/// A layer's K and V.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCache {
    pub layer: usize,
    pub buft: Buft,
    /// Values of a row.
    pub k: u64,
    /// Values of a row; 0 where K is all there is.
    pub v: u64,
    /// In the buffer, padding included.
    pub k_bytes: u64,
    pub v_bytes: u64,
}

/// A layer's recurrent state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerState {
    pub layer: usize,
    pub buft: Buft,
    pub rows: u64,
    pub conv_bytes: u64,
    pub scan_bytes: u64,
}

/// What a context keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The full cache first, then that of the sliding layers.
    pub caches: Vec<Cache>,
    pub states: Vec<LayerState>,
}

impl Memory {
    /// The cache that holds a layer.
    pub fn of(&self, layer: usize) -> Option<(usize, &LayerCache)> {
        self.caches.iter().enumerate().find_map(|(i, c)| {
            let l = c.layers.iter().find(|l| l.layer == layer)?;
            Some((i, l))
        })
    }
}

/// Rounds and checks the settings of a context.
///
/// # Errors
/// What the engine refuses, in its words, and impossible numbers.
pub fn context(h: &Hparams, s: &Settings) -> Result<Context, Error> {
    let setting = |field, problem: String| Err(Error::Setting { field, problem });
    if s.n_batch == 0 && s.n_ubatch == 0 {
        return Err(Error::Refused(
            "n_batch and n_ubatch cannot both be zero".into(),
        ));
    }
    let n_seq = s.n_seq.max(1);
    if n_seq > MAX_SEQ {
        return Err(Error::Refused(format!("n_seq_max must be <= {MAX_SEQ}")));
    }
    let asked = match s.context_len {
        0 => h.n_ctx_train,
        n => n,
    };
    if asked == 0 {
        let why = "n_ctx and model->hparams.n_ctx_train cannot both be zero";
        return Err(Error::Refused(why.into()));
    }
    if asked > MAX_CONTEXT || s.n_batch > MAX_CONTEXT || s.n_ubatch > MAX_CONTEXT {
        return setting("context_len", format!("more than {MAX_CONTEXT} tokens"));
    }
    let n_batch = asked.min(s.n_batch);
    let n_ubatch = n_batch.min(match s.n_ubatch {
        0 => s.n_batch,
        n => n,
    });
    if n_ubatch == 0 {
        return setting("n_batch", "no token in a batch".into());
    }
    let mut n_ctx = pad(asked, CELLS);
    let mut n_ctx_seq = n_ctx;
    if !s.kv_unified {
        n_ctx_seq = pad(n_ctx / n_seq, CELLS);
        if n_ctx_seq == 0 {
            return Err(Error::Refused("n_ctx_seq == 0".into()));
        }
        n_ctx = n_ctx_seq * n_seq;
    }
    let (flash_attention, probe) = attention(h, s)?;
    Ok(Context {
        n_ctx,
        n_ctx_seq,
        n_batch,
        n_ubatch,
        n_seq,
        unified: s.kv_unified,
        n_outputs_max: match s.n_outputs_max {
            0 => n_batch,
            n => n,
        },
        flash_attention,
        probe,
    })
}

/// Whether flash attention is on, and whether that is still a question (`llama_init_from_model`).
fn attention(h: &Hparams, s: &Settings) -> Result<(bool, bool), Error> {
    let mut wish = s.flash_attention;
    if h.mla.is_some() && s.type_k != s.type_v {
        return Err(Error::Refused(format!(
            "model does not support different K ({}) and V ({}) cache types",
            s.type_k, s.type_v
        )));
    }
    if s.type_v.is_quantized() && wish != FlashAttention::On {
        if wish == FlashAttention::Off {
            return Err(Error::Refused(
                "quantized V cache requires flash_attn to be enabled".into(),
            ));
        }
        wish = FlashAttention::On;
    }
    if wish != FlashAttention::Off {
        for (what, ty, head) in [("K", s.type_k, h.head_k), ("V", s.type_v, h.head_v)] {
            let block = ty.block_len();
            if ty.is_quantized() && !head.is_multiple_of(block) {
                let low = what.to_ascii_lowercase();
                return Err(Error::Refused(format!(
                    "{what} cache type {ty} with block size {block} does not divide n_embd_head_{low}={head}"
                )));
            }
        }
    }
    Ok((wish != FlashAttention::Off, wish == FlashAttention::Auto))
}

/// Bytes of `rows` rows of `n` values in a buffer.
fn stored(ty: GgmlType, n: u64, rows: u64, buft: Buft) -> Result<u64, Error> {
    let bytes = ty
        .bytes(n, rows)
        .map_err(|e| Error::Refused(e.to_string()))?;
    let more = match buft {
        Buft::Cuda(_) => cuda::row_padding(ty, n),
        _ => 0,
    };
    Ok(pad(bytes.saturating_add(more), buft.alignment()))
}

/// Makes caches and states.
///
/// # Errors
/// A cache type whose blocks do not divide a row.
pub fn memory(h: &Hparams, s: &Settings, c: &Context, w: &Weights) -> Result<Memory, Error> {
    let place = |layer: usize| match s.offload_kqv {
        true => w.layers[layer].memory(),
        false => Buft::Cpu,
    };
    let streams = if c.unified { 1 } else { c.n_seq };
    let full = c.n_ctx_seq;
    let window = match s.swa_full {
        true => full,
        false => {
            let reach = h.n_swa * if c.unified { c.n_seq } else { 1 };
            pad(full.min(reach + c.n_ubatch), CELLS)
        }
    };
    let mut kinds = vec![(false, full)];
    if h.n_swa > 0 {
        kinds.push((true, window));
    }
    let mut caches = Vec::new();
    for (sliding, cells) in kinds {
        let mut layers = Vec::new();
        for l in (0..h.n_layer).filter(|l| !h.recurrent[*l] && h.swa[*l] == sliding) {
            let buft = place(l);
            let (k, v) = match h.mla {
                Some(_) => (h.k_width(l), 0),
                None if c.flash_attention => (h.k_width(l), h.v_width(l)),
                // a transposed V is as wide as the widest
                None => (h.k_width(l), h.v_width_max()),
            };
            layers.push(LayerCache {
                layer: l,
                buft,
                k,
                v,
                k_bytes: stored(s.type_k, k, cells * streams, buft)?,
                v_bytes: match v {
                    0 => 0,
                    _ => stored(s.type_v, v, cells * streams, buft)?,
                },
            });
        }
        caches.push(Cache {
            sliding,
            cells,
            streams,
            layers,
        });
    }
    let f32_row = |n: u64, buft: Buft| stored(GgmlType::F32, n, c.n_seq, buft);
    let mut states = Vec::new();
    for l in (0..h.n_layer).filter(|l| h.recurrent[*l]) {
        let buft = place(l);
        states.push(LayerState {
            layer: l,
            buft,
            rows: c.n_seq,
            conv_bytes: f32_row(h.conv_state(), buft)?,
            scan_bytes: f32_row(h.scan_state(), buft)?,
        });
    }
    if states.len() == h.n_layer {
        caches.clear();
    }
    Ok(Memory { caches, states })
}
