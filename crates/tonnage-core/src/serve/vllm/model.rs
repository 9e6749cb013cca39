//! What vLLM reads of a model's `config.json`, and what each layer of it caches (vLLM 0.33.0, `model_executor/models/*.py`,
//! `model_executor/layers/attention`, `transformers_utils/model_arch_config_convertor.py`).

use crate::error::CoreError;
use serde_json::{Value, json};

/// Architectures whose cache is planned; `Family::runs` says for which the start-up run is simulated too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma2,
    Gemma3,
    Gemma4,
    Granite,
    Cohere,
    Gpt2,
    Opt,
    Bloom,
    GptNeox,
    Falcon,
    StableLm,
    SmolLm3,
    Mixtral,
    Qwen3Moe,
    DeepSeek,
    MiniMaxM2,
    Llama4,
    GptOss,
    Mamba,
    NemotronH,
}

/// Mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct Moe {
    pub experts: u64,
    pub top_k: u64,
    /// Width of one expert.
    pub width: u64,
    /// Width of all shared experts together; 0: none.
    pub shared: u64,
    /// The first layers that are dense, and of the others only each `step`-th is a mixture.
    pub dense: u64,
    pub step: u64,
}

/// How linear layers keep their weights. Embeddings, the head and routers stay in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Half,
    /// GPTQ or AWQ, repacked for Marlin or Machete after loading: packed integers, 16-bit scales of each group, packed zero points.
    Packed {
        bits: u64,
        group: u64,
        zeros: bool,
    },
    /// fp8 made while loading: one scale for a tensor, activations quantised for each token.
    Fp8,
    /// fp8 with one fp32 scale for each square of 128 by 128; activations quantised by rows of 128.
    BlockFp8,
    /// Experts in mxfp4 (gpt-oss); the rest stays in 16 bits.
    Mxfp4,
}

/// Multi-head latent attention.
#[derive(Clone, Copy, Debug)]
pub struct Latent {
    pub kv_lora_rank: u64,
    pub rope: u64,
    /// Rank of the query's latent; none: the query is projected at once.
    pub q_lora_rank: Option<u64>,
    /// Widths of a head: the part without rotation, and the value.
    pub nope: u64,
    pub value: u64,
}

/// A state-space mixer.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// Rows and width of the convolution's state.
    pub conv: (u64, u64),
    /// Elements of the recurrent state and bytes of one.
    pub ssm: (u64, u64),
    pub layers: u64,
    /// Width of the inner projection, rank of the time step, state size (Mamba 1).
    pub inner: u64,
    pub dt_rank: u64,
    pub state: u64,
}

/// A model as vLLM sees it; counts are of the whole model, not of a rank.
#[derive(Clone, Debug)]
pub struct Model {
    pub family: Family,
    pub hidden: u64,
    pub layers: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub intermediate: u64,
    pub vocab: u64,
    pub tied: bool,
    pub max_position: u64,
    /// Width of the rotated part of a head.
    pub rotary: u64,
    /// Longest position of the RoPE cache.
    pub rope_positions: u64,
    pub window: Option<u64>,
    /// For each attention layer: does it see everything (true) or a window or chunk (false).
    pub global: Vec<bool>,
    pub chunk: Option<u64>,
    /// Head size and KV heads of the global layers, where they differ (Gemma 4).
    pub global_heads: Option<(u64, u64)>,
    pub moe: Option<Moe>,
    pub latent: Option<Latent>,
    pub state: Option<State>,
    pub weights: Result<Weights, String>,
    config: Value,
}

/// Reads one configuration; the text part of a multi-modal one.
pub fn read(config: &Value) -> Result<Model, CoreError> {
    let c = config
        .get("text_config")
        .filter(|t| t.is_object())
        .unwrap_or(config);
    let family = match word(c) {
        "" => return Err(invalid("model_type", "is missing")),
        "llama" | "mistral" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "phi3" => Family::Phi3,
        "gemma2" => Family::Gemma2,
        "gemma3" | "gemma3_text" => Family::Gemma3,
        "gemma4" | "gemma4_text" => Family::Gemma4,
        "granite" => Family::Granite,
        "cohere" => Family::Cohere,
        "gpt2" => Family::Gpt2,
        "opt" => Family::Opt,
        "bloom" => Family::Bloom,
        "gpt_neox" => Family::GptNeox,
        "falcon" | "RefinedWebModel" | "RefinedWeb" => Family::Falcon,
        "stablelm" => Family::StableLm,
        "smollm3" => Family::SmolLm3,
        "mixtral" => Family::Mixtral,
        "qwen3_moe" => Family::Qwen3Moe,
        "deepseek_v2" | "deepseek_v3" | "kimi_k2" => Family::DeepSeek,
        "minimax_m2" => Family::MiniMaxM2,
        "llama4_text" => Family::Llama4,
        "gpt_oss" => Family::GptOss,
        "mamba" => Family::Mamba,
        "nemotron_h" => Family::NemotronH,
        other => {
            return Err(CoreError::Unsupported(format!(
                "vLLM's memory for model type `{other}`"
            )));
        }
    };
    build(family, c, config)
}

fn invalid(field: &str, problem: &str) -> CoreError {
    CoreError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

/// Numbers above this are not sizes of a model.
const LIMIT: u64 = 1 << 32;

fn number(c: &Value, names: &[&str]) -> Result<Option<u64>, CoreError> {
    for n in names {
        match c.get(*n) {
            None | Some(Value::Null) => continue,
            Some(v) => {
                return match v.as_u64() {
                    Some(x) if x <= LIMIT => Ok(Some(x)),
                    _ => Err(invalid(n, &format!("{v} is not a size"))),
                };
            }
        }
    }
    Ok(None)
}

fn need(c: &Value, names: &[&str]) -> Result<u64, CoreError> {
    match number(c, names)? {
        Some(0) => Err(invalid(names[0], "is zero")),
        Some(n) => Ok(n),
        None => Err(invalid(names[0], "is missing")),
    }
}

fn word(c: &Value) -> &str {
    c.get("model_type").and_then(Value::as_str).unwrap_or("")
}

fn flag(c: &Value, name: &str) -> Option<bool> {
    c.get(name).and_then(Value::as_bool)
}

fn build(family: Family, c: &Value, whole: &Value) -> Result<Model, CoreError> {
    use Family::*;
    let hidden = need(c, &["hidden_size", "n_embd", "word_embed_proj_dim"])?;
    let layers = need(c, &["num_hidden_layers", "n_layer"])?;
    if layers > 4096 {
        return Err(invalid("num_hidden_layers", "more than 4096 layers"));
    }
    let attention_free = family == Mamba;
    let heads = if attention_free {
        1
    } else {
        need(c, &["num_attention_heads", "n_head"])?
    };
    let kv_heads = match family {
        Falcon if flag(c, "new_decoder_architecture") == Some(true) => {
            number(c, &["num_kv_heads"])?.unwrap_or(heads)
        }
        Falcon if flag(c, "multi_query").unwrap_or(true) => 1,
        _ => number(c, &["num_key_value_heads"])?.unwrap_or(heads),
    }
    .max(1);
    let head_dim = number(c, &["head_dim", "attention_head_dim"])?
        .unwrap_or(hidden / heads)
        .max(1);
    let intermediate = match family {
        Gpt2 | Bloom | Falcon => number(c, &["n_inner", "ffn_hidden_size"])?.unwrap_or(4 * hidden),
        Opt => need(c, &["ffn_dim"])?,
        _ => number(c, &["intermediate_size"])?.unwrap_or(0),
    };
    let max_position =
        number(c, &["max_position_embeddings", "n_positions", "seq_length"])?.unwrap_or(2048);
    let part = c
        .get("partial_rotary_factor")
        .or_else(|| c.pointer("/rope_parameters/partial_rotary_factor"))
        .or_else(|| c.get("rotary_pct"))
        .and_then(Value::as_f64)
        .unwrap_or(if family == GptNeox { 0.25 } else { 1.0 });
    let rotary = number(c, &["rotary_dim"])?.unwrap_or((head_dim as f64 * part) as u64);
    // the classes of transformers 5.20 that tie where the file is silent
    let tied = flag(c, "tie_word_embeddings").or_else(|| flag(whole, "tie_word_embeddings"));
    let tied = tied.unwrap_or(matches!(
        family,
        Gemma2 | Gemma3 | Gemma4 | Gpt2 | Opt | Bloom | Falcon | Cohere
    ));
    let window = match family {
        Qwen2 | Qwen3 | Qwen3Moe if flag(c, "use_sliding_window") != Some(true) => None,
        // MistralConfig's default where the key is absent; null means none
        _ if word(c) == "mistral" && c.get("sliding_window").is_none() => Some(4096),
        _ => number(c, &["sliding_window"])?.filter(|w| *w > 0),
    };
    let quantization = c
        .get("quantization_config")
        .or(whole.get("quantization_config"))
        .filter(|q| q.is_object());
    let weights = match quantization {
        None => Ok(Weights::Half),
        Some(q) => {
            let n = |k: &str| q.get(k).and_then(Value::as_u64);
            let (bits, group) = (n("bits").unwrap_or(4), n("group_size").unwrap_or(128));
            let packed = matches!(bits, 4 | 8) && (1..=4096).contains(&group);
            match q.get("quant_method").and_then(Value::as_str) {
                Some("gptq") if packed && flag(q, "desc_act") != Some(true) => {
                    Ok(Weights::Packed {
                        bits,
                        group,
                        zeros: false,
                    })
                }
                Some("awq") if packed => Ok(Weights::Packed {
                    bits,
                    group,
                    zeros: true,
                }),
                Some("fp8") if q.get("weight_block_size").is_none_or(Value::is_null) => {
                    Ok(Weights::Fp8)
                }
                Some("fp8") if q.get("weight_block_size") == Some(&json!([128, 128])) => {
                    Ok(Weights::BlockFp8)
                }
                Some("mxfp4") if family == GptOss => Ok(Weights::Mxfp4),
                other => Err(format!(
                    "{} weights as configured",
                    other.unwrap_or("quantised")
                )),
            }
        }
    };
    let mut m = Model {
        family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate,
        vocab: need(c, &["vocab_size"])?,
        tied,
        max_position,
        rotary,
        rope_positions: max_position,
        window,
        global: vec![],
        chunk: None,
        global_heads: None,
        moe: None,
        latent: None,
        state: None,
        weights,
        config: c.clone(),
    };
    kinds(&mut m, c)?;
    m.rope_positions = rope_positions(&m);
    Ok(m)
}

/// Positions of the RoPE table (`rotary_embedding/{deepseek_scaling_rope,yarn_scaling_rope,linear_scaling_rope}.py`): YaRN stretches the
/// original length, linear scaling the maximum.
fn rope_positions(m: &Model) -> u64 {
    let scaling = m.field("rope_scaling");
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    let factor = scaling["factor"]
        .as_f64()
        .filter(|f| (1.0..=1e6).contains(f));
    let original = scaling["original_max_position_embeddings"].as_u64();
    match (kind, factor) {
        (Some("yarn"), Some(f)) => {
            (original.unwrap_or(m.max_position).min(LIMIT) as f64 * f) as u64
        }
        (Some("linear"), Some(f)) => (m.max_position as f64 * f) as u64,
        // Phi's table holds the short and the long factors
        (Some("longrope" | "su"), _) => {
            let original = m.number("original_max_position_embeddings");
            m.max_position + original.unwrap_or(m.max_position)
        }
        _ => m.max_position,
    }
}

/// Experts, latents, states and which layers see everything.
fn kinds(m: &mut Model, c: &Value) -> Result<(), CoreError> {
    use Family::*;
    let n = m.layers;
    let typed = |full: &[&str]| -> Option<Vec<bool>> {
        let l = c.get("layer_types")?.as_array()?;
        Some(
            l.iter()
                .map(|t| t.as_str().is_some_and(|t| full.contains(&t)))
                .collect(),
        )
    };
    m.global = match m.family {
        Gemma2 => {
            typed(&["full_attention"]).unwrap_or_else(|| (0..n).map(|i| i % 2 == 1).collect())
        }
        Gemma3 | Gemma4 => {
            let every = number(c, &["sliding_window_pattern", "_sliding_window_pattern"])?
                .unwrap_or(6)
                .max(1);
            typed(&["full_attention"])
                .unwrap_or_else(|| (0..n).map(|i| (i + 1) % every == 0).collect())
        }
        GptOss => {
            typed(&["full_attention"]).unwrap_or_else(|| (0..n).map(|i| i % 2 == 1).collect())
        }
        Llama4 => {
            m.chunk = Some(number(c, &["attention_chunk_size"])?.unwrap_or(8192));
            m.window = None;
            match c.get("no_rope_layers").and_then(Value::as_array) {
                // 0: a layer without rotation, which sees everything
                Some(l) if !l.is_empty() => l.iter().map(|v| v.as_u64() == Some(0)).collect(),
                _ => (0..n).map(|i| (i + 1) % 4 == 0).collect(),
            }
        }
        _ => vec![m.window.is_none(); n as usize],
    };
    if m.global.len() as u64 != n {
        return Err(invalid("layer_types", "has not one entry for each layer"));
    }
    if m.family == Gemma4 {
        let head = number(c, &["global_head_dim"])?.unwrap_or(m.head_dim);
        let kv = number(c, &["num_global_key_value_heads"])?.unwrap_or(m.kv_heads);
        m.global_heads = Some((head, kv));
    }
    if m.family == DeepSeek {
        m.latent = Some(Latent {
            kv_lora_rank: need(c, &["kv_lora_rank"])?,
            rope: need(c, &["qk_rope_head_dim"])?,
            // the configuration class's default where the key is absent; null means none
            q_lora_rank: match c.get("q_lora_rank") {
                None => Some(1536),
                Some(_) => number(c, &["q_lora_rank"])?.filter(|r| *r > 0),
            },
            nope: number(c, &["qk_nope_head_dim"])?.unwrap_or(128),
            value: number(c, &["v_head_dim"])?.unwrap_or(128),
        });
    }
    let experts = number(c, &["num_local_experts", "num_experts", "n_routed_experts"])?;
    if let Some(experts) = experts.filter(|e| *e > 0) {
        m.moe = Some(Moe {
            experts,
            top_k: number(c, &["num_experts_per_tok", "top_k_experts"])?.unwrap_or(1),
            width: number(c, &["moe_intermediate_size"])?.unwrap_or(m.intermediate),
            shared: match m.family {
                DeepSeek => {
                    number(c, &["n_shared_experts"])?.unwrap_or(0)
                        * number(c, &["moe_intermediate_size"])?.unwrap_or(0)
                }
                Llama4 => m.intermediate,
                NemotronH => number(c, &["moe_shared_expert_intermediate_size"])?.unwrap_or(0),
                _ => 0,
            },
            dense: number(c, &["first_k_dense_replace"])?.unwrap_or(0),
            step: match m.family {
                Llama4 => number(c, &["interleave_moe_layer_step"])?.unwrap_or(1),
                DeepSeek => number(c, &["moe_layer_freq"])?.unwrap_or(1),
                _ => 1,
            }
            .max(1),
        });
    }
    match m.family {
        Mamba => {
            let inner = number(c, &["intermediate_size"])?
                .unwrap_or(m.hidden * number(c, &["expand"])?.unwrap_or(2));
            let state = number(c, &["state_size"])?.unwrap_or(16);
            let kernel = number(c, &["conv_kernel"])?.unwrap_or(4).max(1);
            m.state = Some(State {
                conv: (kernel - 1, inner),
                ssm: (inner * state, 2),
                layers: n,
                inner,
                dt_rank: number(c, &["time_step_rank"])?.unwrap_or(m.hidden.div_ceil(16)),
                state,
            });
            m.global = vec![];
        }
        NemotronH => {
            let pattern = c
                .get("hybrid_override_pattern")
                .and_then(Value::as_str)
                .ok_or_else(|| invalid("hybrid_override_pattern", "is missing"))?;
            let count = |k: char| pattern.chars().filter(|c| *c == k).count() as u64;
            let (heads, width) = (
                need(c, &["mamba_num_heads"])?,
                need(c, &["mamba_head_dim"])?,
            );
            let state = need(c, &["ssm_state_size"])?;
            let groups = number(c, &["n_groups"])?.unwrap_or(1);
            let kernel = number(c, &["conv_kernel"])?.unwrap_or(4).max(1);
            let inner = heads * width;
            m.state = Some(State {
                conv: (kernel - 1, inner + 2 * groups * state),
                // `mamba_ssm_cache_dtype` of this family is fp32
                ssm: (inner * state, 4),
                layers: count('M'),
                inner,
                dt_rank: heads,
                state,
            });
            m.global = vec![true; count('*') as usize];
        }
        _ => {}
    }
    Ok(())
}

impl Model {
    /// A field of the configuration.
    pub fn field(&self, name: &str) -> &Value {
        self.config.get(name).unwrap_or(&Value::Null)
    }

    /// A whole number of the configuration.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name).as_u64().filter(|n| *n <= LIMIT)
    }
}
