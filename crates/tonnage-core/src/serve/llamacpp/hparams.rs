//! What the engine reads from a file's metadata (llama.cpp v0.5.0, src/llama-model.cpp `load_hparams` and src/models/*.cpp
//! `load_arch_hparams`).

use super::error::Error;
use tonnage_model::readers::gguf::{Array, Gguf, Value};

/// Architectures whose graph is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    Gpt2,
    Deepseek2,
    GptOss,
    Mamba,
    Mamba2,
    Lfm2,
    Qwen3Next,
}

/// Names in `general.architecture`.
pub const ARCHITECTURES: [(&str, Arch); 14] = [
    ("llama", Arch::Llama),
    ("qwen2", Arch::Qwen2),
    ("qwen3", Arch::Qwen3),
    ("qwen3moe", Arch::Qwen3Moe),
    ("gemma2", Arch::Gemma2),
    ("gemma3", Arch::Gemma3),
    ("phi3", Arch::Phi3),
    ("gpt2", Arch::Gpt2),
    ("deepseek2", Arch::Deepseek2),
    ("gpt-oss", Arch::GptOss),
    ("mamba", Arch::Mamba),
    ("mamba2", Arch::Mamba2),
    ("lfm2", Arch::Lfm2),
    ("qwen3next", Arch::Qwen3Next),
];

/// Most layers (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u64 = 512;
/// Most of any other size: products of two stay far from 64 bits.
const MAX_SIZE: u64 = 1 << 28;
/// Widest row of a layer: activations, caches, states.
const MAX_ROW: u64 = 1 << 24;

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    Softmax,
    Sigmoid,
    /// Softmax over the chosen ones only.
    SoftmaxWeight,
}

/// State-space layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ssm {
    pub conv: u64,
    pub inner: u64,
    pub state: u64,
    pub dt_rank: u64,
    pub groups: u64,
    /// `shortconv.l_cache` (LFM2).
    pub short_cache: u64,
    /// RMS norms on dt, B and C (FalconMamba).
    pub dt_b_c_rms: bool,
}

/// The numbers of a model. Per-layer ones have an entry for each layer.
#[derive(Clone, Debug)]
pub struct Hparams {
    pub arch: Arch,
    pub n_layer: usize,
    pub n_embd: u64,
    pub n_vocab: u64,
    pub n_ctx_train: u64,
    /// `rope.scaling.original_context_length`.
    pub n_ctx_orig: u64,
    pub n_head: Vec<u64>,
    pub n_head_kv: Vec<u64>,
    pub head_k: u64,
    pub head_v: u64,
    pub n_rot: u64,
    pub n_swa: u64,
    /// Layers with a sliding window.
    pub swa: Vec<bool>,
    /// Layers with a recurrent state.
    pub recurrent: Vec<bool>,
    pub n_expert: u64,
    pub n_expert_used: u64,
    pub n_expert_groups: u64,
    pub n_group_used: u64,
    pub expert_scale: f64,
    pub expert_norm: bool,
    pub gating: Gating,
    /// Leading layers without experts.
    pub dense_lead: usize,
    pub attention_soft_cap: bool,
    pub final_soft_cap: bool,
    /// Head sizes after decompression where the cache holds the compressed state.
    pub mla: Option<(u64, u64)>,
    pub kv_lora_rank: u64,
    pub ssm: Ssm,
}

struct Reader<'a> {
    g: &'a Gguf,
    arch: &'a str,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }
    fn bad(&self, key: &str, v: &Value) -> Error {
        let mut found = format!("{v:?}");
        found.truncate(60);
        Error::BadKey {
            key: self.key(key),
            problem: format!("{found} is not from 0 to {MAX_SIZE}"),
        }
    }
    /// A size, where it is there.
    fn get(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.g.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if n <= MAX_SIZE => Ok(Some(n)),
                _ => Err(self.bad(key, v)),
            },
        }
    }
    fn need(&self, key: &str) -> Result<u64, Error> {
        self.get(key)?
            .ok_or_else(|| Error::MissingKey(self.key(key)))
    }
    /// One number for all layers, or one for each (`get_key_or_arr`).
    fn layers(&self, key: &str, n: usize) -> Result<Option<Vec<u64>>, Error> {
        let Some(v) = self.g.get(key) else {
            return Ok(None);
        };
        let Some(a) = v.as_array() else {
            return Ok(self.get(key)?.map(|x| vec![x; n]));
        };
        let list: Option<Vec<u64>> = a.items.iter().map(Value::as_u64).collect();
        match list {
            Some(l) if l.len() >= n && l.iter().all(|x| *x <= MAX_SIZE) => {
                Ok(Some(l[..n].to_vec()))
            }
            _ => Err(Error::BadKey {
                key: self.key(key),
                problem: format!("must be a number or {n} of them"),
            }),
        }
    }
    fn float(&self, key: &str) -> f64 {
        self.g.get(key).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

/// The architecture of a file.
///
/// # Errors
/// The key is missing, or no graph is known for it.
pub fn arch(g: &Gguf) -> Result<Arch, Error> {
    let name = g
        .architecture()
        .ok_or_else(|| Error::MissingKey("general.architecture".into()))?;
    ARCHITECTURES
        .iter()
        .find(|a| a.0 == name)
        .map(|a| a.1)
        .ok_or_else(|| {
            let shown: String = name.chars().take(60).collect();
            Error::Unsupported(format!("architecture `{shown}`"))
        })
}

/// Reads them.
///
/// # Errors
/// A key is missing, has another type or an impossible value, or asks for something that is not modelled.
pub fn read(g: &Gguf) -> Result<Hparams, Error> {
    let arch = arch(g)?;
    let r = Reader {
        g,
        arch: g.architecture().unwrap_or_default(),
    };
    let blocks = r.need("block_count")?;
    if blocks == 0 || blocks > MAX_LAYERS {
        return Err(Error::BadKey {
            key: r.key("block_count"),
            problem: format!("{blocks} layers (1 to {MAX_LAYERS} are possible)"),
        });
    }
    if r.get("nextn_predict_layers")?.unwrap_or(0) > 0 {
        let what = "next-token prediction layers (nextn_predict_layers)";
        return Err(Error::Unsupported(what.into()));
    }
    let n = blocks as usize;
    let n_embd = r.need("embedding_length")?;
    let recurrent_only = matches!(arch, Arch::Mamba | Arch::Mamba2);
    let n_head = r.layers("attention.head_count", n)?.unwrap_or(vec![0; n]);
    let n_head_kv = r
        .layers("attention.head_count_kv", n)?
        .unwrap_or_else(|| n_head.clone());
    let heads = n_head.iter().copied().max().unwrap_or(0);
    if !recurrent_only && (heads == 0 || n_embd == 0) {
        return Err(Error::MissingKey(r.key("attention.head_count")));
    }
    let default_head = n_embd.checked_div(heads).unwrap_or(0);
    let mut h = Hparams {
        arch,
        n_layer: n,
        n_embd,
        n_vocab: vocabulary(g, &r)?,
        n_ctx_train: r.need("context_length")?,
        n_ctx_orig: r
            .get("rope.scaling.original_context_length")?
            .unwrap_or(r.need("context_length")?),
        head_k: r.get("attention.key_length")?.unwrap_or(default_head),
        head_v: r.get("attention.value_length")?.unwrap_or(default_head),
        n_rot: 0,
        n_head,
        n_head_kv,
        n_swa: 0,
        swa: vec![false; n],
        recurrent: vec![recurrent_only; n],
        n_expert: r.get("expert_count")?.unwrap_or(0),
        n_expert_used: r.get("expert_used_count")?.unwrap_or(0),
        n_expert_groups: r.get("expert_group_count")?.unwrap_or(0),
        n_group_used: r.get("expert_group_used_count")?.unwrap_or(0),
        expert_scale: r.float("expert_weights_scale"),
        expert_norm: false,
        gating: Gating::Softmax,
        dense_lead: 0,
        attention_soft_cap: false,
        final_soft_cap: false,
        mla: None,
        kv_lora_rank: 0,
        ssm: Ssm::default(),
    };
    h.n_rot = r.get("rope.dimension_count")?.unwrap_or(h.head_k);
    if h.n_expert > 0 && (h.n_expert_used == 0 || h.n_expert_used > h.n_expert) {
        return Err(Error::BadKey {
            key: r.key("expert_used_count"),
            problem: format!("{} of {} experts", h.n_expert_used, h.n_expert),
        });
    }
    for (q, kv) in h.n_head.iter().zip(&h.n_head_kv) {
        if *kv > 0 && !q.is_multiple_of(*kv) {
            return Err(Error::BadKey {
                key: r.key("attention.head_count_kv"),
                problem: format!("{q} heads are not a multiple of {kv}"),
            });
        }
    }
    specific(&mut h, &r)?;
    widths(&h, &r)?;
    Ok(h)
}

/// That rows stay countable, and that states have what they need.
fn widths(h: &Hparams, r: &Reader) -> Result<(), Error> {
    let s = &h.ssm;
    let heads = h.n_head.iter().chain(&h.n_head_kv).copied();
    let heads = heads.max().unwrap_or(0);
    let rows = [
        ("embedding_length", h.n_embd),
        (
            "attention.key_length",
            h.head_k.saturating_mul(heads.max(1)),
        ),
        (
            "attention.value_length",
            h.head_v.saturating_mul(heads.max(1)),
        ),
        ("rope.dimension_count", h.n_rot),
        ("attention.kv_lora_rank", h.kv_lora_rank),
        ("attention.sliding_window", h.n_swa >> 4),
        ("expert_count", h.n_expert),
        ("expert_group_count", h.n_expert_groups),
        ("expert_group_used_count", h.n_group_used),
        (
            "attention.key_length_mla",
            h.mla.map_or(0, |m| m.0.max(m.1).saturating_mul(heads)),
        ),
        ("ssm.inner_size", s.inner.saturating_mul(s.conv.max(1))),
        ("ssm.state_size", s.inner.saturating_mul(s.state)),
        (
            "ssm.group_count",
            s.groups.saturating_mul(s.state).saturating_mul(s.conv),
        ),
        ("ssm.time_step_rank", s.dt_rank),
        ("shortconv.l_cache", s.short_cache.saturating_mul(h.n_embd)),
    ];
    for (key, n) in rows {
        if n > MAX_ROW {
            return Err(Error::BadKey {
                key: r.key(key),
                problem: format!("a row of {n} values (at most {MAX_ROW})"),
            });
        }
    }
    let needed = match h.arch {
        Arch::Mamba | Arch::Mamba2 | Arch::Qwen3Next => {
            vec![
                ("ssm.conv_kernel", s.conv),
                ("ssm.inner_size", s.inner),
                ("ssm.state_size", s.state),
            ]
        }
        Arch::Lfm2 => vec![("shortconv.l_cache", s.short_cache)],
        _ => vec![
            ("attention.key_length", h.head_k),
            ("attention.value_length", h.head_v),
        ],
    };
    let short = |n: u64| n == 0;
    if let Some((key, _)) = needed.iter().find(|x| short(x.1)) {
        return Err(Error::BadKey {
            key: r.key(key),
            problem: "is 0".into(),
        });
    }
    Ok(())
}

fn vocabulary(g: &Gguf, r: &Reader) -> Result<u64, Error> {
    if let Some(a) = g
        .metadata
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
    {
        // a header whose arrays were cut still has the table's second dimension
        let table = g.tensor("token_embd.weight").map_or(a.len, |t| t.ne[1]);
        return Ok(a.len.max(table));
    }
    match r.get("vocab_size")? {
        Some(n) => Ok(n),
        None => g
            .tensor("token_embd.weight")
            .map(|t| t.ne[1])
            .ok_or_else(|| Error::MissingKey(r.key("vocab_size"))),
    }
}

/// A flag for each layer.
fn flags(a: &Array, n: usize, key: impl Fn() -> String) -> Result<Vec<bool>, Error> {
    let flag = |v: &Value| v.as_bool().or_else(|| v.as_u64().map(|n| n != 0));
    let list: Option<Vec<bool>> = a.items.iter().take(n).map(flag).collect();
    list.filter(|l| l.len() == n).ok_or_else(|| Error::BadKey {
        key: key(),
        problem: format!("must have {n} flags"),
    })
}

/// Every `period`-th layer is full, the others slide (`set_swa_pattern`); or a flag for each layer.
fn sliding(h: &mut Hparams, r: &Reader, period: u64) -> Result<(), Error> {
    if h.n_swa == 0 {
        return Ok(());
    }
    let key = "attention.sliding_window_pattern";
    if let Some(a) = r.g.get(key).and_then(Value::as_array) {
        h.swa = flags(a, h.n_layer, || r.key(key))?;
        return Ok(());
    }
    let period = r.get(key)?.unwrap_or(period);
    for (i, s) in h.swa.iter_mut().enumerate() {
        *s = period == 0 || i as u64 % period < period - 1;
    }
    Ok(())
}

fn specific(h: &mut Hparams, r: &Reader) -> Result<(), Error> {
    let window = r.get("attention.sliding_window")?;
    let ssm = |dt_needed: bool| -> Result<Ssm, Error> {
        Ok(Ssm {
            conv: r.need("ssm.conv_kernel")?,
            inner: r.need("ssm.inner_size")?,
            state: r.need("ssm.state_size")?,
            dt_rank: match dt_needed {
                true => r.need("ssm.time_step_rank")?,
                false => r.get("ssm.time_step_rank")?.unwrap_or(0),
            },
            groups: r.get("ssm.group_count")?.unwrap_or(0),
            short_cache: 0,
            dt_b_c_rms: r.g.get("ssm.dt_b_c_rms").and_then(Value::as_bool) == Some(true),
        })
    };
    match h.arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Gpt2 | Arch::Phi3 => {}
        Arch::Qwen3Moe => {}
        Arch::Gemma2 => {
            h.n_swa = window.unwrap_or(4096);
            h.attention_soft_cap = true;
            h.final_soft_cap = true;
            sliding(h, r, 2)?;
        }
        Arch::Gemma3 => {
            h.n_swa = window.unwrap_or(0);
            h.final_soft_cap = r.float("final_logit_softcapping") != 0.0;
            sliding(h, r, 6)?;
        }
        Arch::GptOss => {
            h.n_swa = window.unwrap_or(0);
            h.gating = Gating::SoftmaxWeight;
            sliding(h, r, 2)?;
        }
        Arch::Deepseek2 => {
            h.dense_lead = r.get("leading_dense_block_count")?.unwrap_or(0) as usize;
            h.kv_lora_rank = r.need("attention.kv_lora_rank")?;
            h.expert_norm = r.g.get("expert_weights_norm").and_then(Value::as_bool) == Some(true);
            h.gating = match r.get("expert_gating_func")?.unwrap_or(0) {
                2 => Gating::Sigmoid,
                0 | 1 => Gating::Softmax,
                other => {
                    return Err(Error::Unsupported(format!("expert_gating_func {other}")));
                }
            };
            let k = r.get("attention.key_length_mla")?.unwrap_or(0);
            let v = r.get("attention.value_length_mla")?.unwrap_or(0);
            h.mla = (k != 0 && v != 0).then_some((k, v));
            if r.float("attention.temperature_scale") != 0.0 {
                return Err(Error::Unsupported("attention.temperature_scale".into()));
            }
        }
        Arch::Mamba => {
            h.ssm = ssm(true)?;
            h.ssm.groups = 0;
        }
        Arch::Mamba2 => h.ssm = ssm(true)?,
        Arch::Qwen3Next => {
            h.ssm = ssm(true)?;
            let key = "attention.recurrent_layers";
            if let Some(a) = r.g.get(key).and_then(Value::as_array) {
                h.recurrent = flags(a, h.n_layer, || r.key(key))?;
            } else {
                let interval = r.get("full_attention_interval")?.unwrap_or(4).max(1);
                for (i, x) in h.recurrent.iter_mut().enumerate() {
                    *x = !(i as u64 + 1).is_multiple_of(interval);
                }
            }
        }
        Arch::Lfm2 => {
            h.ssm.short_cache = r.need("shortconv.l_cache")?;
            if window.unwrap_or(0) > 0 {
                return Err(Error::Unsupported("sliding windows of lfm2".into()));
            }
            for (i, x) in h.recurrent.iter_mut().enumerate() {
                *x = h.n_head_kv[i] == 0;
            }
        }
    }
    Ok(())
}

impl Hparams {
    /// Width of a layer's K row in the cache (`n_embd_k_gqa`).
    pub fn k_width(&self, layer: usize) -> u64 {
        self.head_k * self.n_head_kv[layer]
    }
    /// Width of a layer's V row in the cache.
    pub fn v_width(&self, layer: usize) -> u64 {
        self.head_v * self.n_head_kv[layer]
    }
    /// Largest V row (`n_embd_v_gqa_max`).
    pub fn v_width_max(&self) -> u64 {
        (0..self.n_layer)
            .map(|i| self.v_width(i))
            .max()
            .unwrap_or(0)
    }
    /// Values of the convolution's state (`n_embd_r`).
    pub fn conv_state(&self) -> u64 {
        let s = &self.ssm;
        if s.short_cache > 0 {
            return self.n_embd * (s.short_cache - 1);
        }
        s.conv.saturating_sub(1) * (s.inner + 2 * s.groups * s.state)
    }
    /// Values of the recurrent state (`n_embd_s`).
    pub fn scan_state(&self) -> u64 {
        self.ssm.state * self.ssm.inner
    }
}
