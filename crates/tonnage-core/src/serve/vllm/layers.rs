//! What each layer of a model caches, and of which models the start-up run is simulated (vLLM 0.33.0, `model_executor/layers/attention`,
//! `v1/kv_cache_interface.py`).

use super::kv::{Cache, Layer};
use super::model::{Family, Model, Weights};
use crate::error::CoreError;

impl Model {
    /// Each layer's cache on one rank. `kv_bytes`: of one element; `block`: `--block-size` or vLLM's 16; `prefix`: prefix caching.
    pub fn caches(&self, tp: u64, kv_bytes: u64, block: Option<u64>, s: &Scheduling) -> Vec<Layer> {
        if let Some(l) = &self.latent {
            // FlashMLA on compute capability 9 with an fp8 cache wants blocks of 64
            let size = block.unwrap_or(if kv_bytes == 1 && s.hopper { 64 } else { 16 });
            let page = size * (l.kv_lora_rank + l.rope) * kv_bytes;
            let one = Layer {
                cache: Cache::Latent,
                block_size: size,
                page,
            };
            return vec![one; self.layers as usize];
        }
        // Falcon's attention takes no cache configuration and keeps the model's type (records vllm-155)
        let kv_bytes = if self.family == Family::Falcon {
            2
        } else {
            kv_bytes
        };
        let page =
            |size: u64, head: u64, heads: u64| 2 * size * (heads / tp).max(1) * head * kv_bytes;
        let mut size = block.unwrap_or(16);
        let mut out = vec![];
        if let Some(state) = &self.state {
            let bytes = (state.conv.0 * state.conv.1 * 2 + state.ssm.0 * state.ssm.1) / tp;
            let hybrid = !self.global.is_empty();
            let align = hybrid && s.prefix_caching;
            if hybrid && block.is_none() {
                // blocks as long as the state needs, so that one page size serves both
                let token = page(1, self.head_dim, self.kv_heads);
                size = 16 * bytes.div_ceil(16 * token);
            }
            let state_page = if hybrid {
                page(size, self.head_dim, self.kv_heads)
            } else {
                bytes
            };
            let one = Layer {
                cache: Cache::State {
                    blocks: if align { 3 } else { 1 },
                },
                block_size: if hybrid { size } else { s.max_model_len },
                page: state_page.max(bytes),
            };
            out.extend(vec![one; state.layers as usize]);
        }
        for full in &self.global {
            let (head, heads) = match (full, self.global_heads) {
                (true, Some(h)) => h,
                _ => (self.head_dim, self.kv_heads),
            };
            let cache = match (full, self.chunk, self.window) {
                (true, ..) => Cache::Full,
                (false, Some(chunk), _) => Cache::Chunked { chunk },
                (false, None, Some(window)) => Cache::Sliding { window },
                (false, None, None) => Cache::Full,
            };
            out.push(Layer {
                cache,
                block_size: size,
                page: page(size, head, heads),
            });
        }
        out
    }

    /// Whether the start-up run is simulated.
    ///
    /// # Errors
    /// The family or format that is not, by name.
    pub fn runs(&self) -> Result<(), CoreError> {
        use Family::*;
        let no = |what: String| Err(CoreError::Unsupported(what));
        match &self.weights {
            Err(why) => return no(format!("vLLM's start-up with {why}")),
            Ok(Weights::Half) => {}
            Ok(w) => {
                let known = match w {
                    Weights::Mxfp4 => self.family == GptOss,
                    _ => {
                        matches!(
                            self.family,
                            Llama
                                | Phi3
                                | Qwen2
                                | Qwen3
                                | Qwen3Moe
                                | Mixtral
                                | Gemma2
                                | Granite
                                | Cohere
                                | Falcon
                                | StableLm
                                | Gpt2
                                | Opt
                                | Bloom
                        ) || *w == Weights::BlockFp8 && matches!(self.family, DeepSeek | MiniMaxM2)
                    }
                };
                if !known {
                    return no(format!(
                        "vLLM's start-up of {:?} models with {w:?} weights",
                        self.family
                    ));
                }
            }
        }
        match self.family {
            GptOss if self.weights == Ok(Weights::Half) => {
                no("vLLM's start-up of gpt-oss with 16-bit experts".into())
            }
            Gemma4
                if self.moe.is_none()
                    || self.field("hidden_size_per_layer_input").as_u64() > Some(0)
                    || self.field("num_kv_shared_layers").as_u64() > Some(0) =>
            {
                no("vLLM's start-up of Gemma 4 without experts".into())
            }
            Opt if self
                .number("word_embed_proj_dim")
                .is_some_and(|w| w != self.hidden) =>
            {
                no("vLLM's start-up of OPT with projected embeddings".into())
            }
            MiniMaxM2 if self.weights != Ok(Weights::BlockFp8) => {
                no("vLLM's start-up of MiniMax-M2 other than in block-wise fp8".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether layer `i` is a mixture of experts.
    pub fn sparse(&self, i: u64) -> bool {
        self.moe
            .is_some_and(|e| i >= e.dense && (i + 1).is_multiple_of(e.step))
    }

    /// One rank's widths of query and keys, and the size of a head, in a global or a windowed layer.
    pub fn heads_of(&self, full: bool, tp: u64) -> (u64, u64, u64) {
        let (head, kv) = match self.global_heads {
            Some(h) if full => h,
            _ => (self.head_dim, self.kv_heads),
        };
        (self.heads / tp * head, (kv / tp).max(1) * head, head)
    }

    /// Falcon's newer decoder normalises for attention and feed-forward apart.
    pub fn two_norms(&self) -> bool {
        self.family == Family::Falcon
            && self.field("new_decoder_architecture").as_bool() == Some(true)
            && self.number("num_ln_in_parallel_attn").unwrap_or(2) == 2
    }
}

/// What a layer's cache depends on besides the model.
#[derive(Clone, Copy, Debug)]
pub struct Scheduling {
    pub max_model_len: u64,
    pub prefix_caching: bool,
    pub hopper: bool,
}
