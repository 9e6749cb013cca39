//! The KV planner: layers to groups, bytes to blocks, tokens and concurrency, or a refusal (vLLM 0.33.0, `v1/core/kv_cache_planning.py`,
//! `v1/kv_cache_interface.py`). Checked on every record of `groundtruth/vllm-dev.jsonl`.

use serde::Serialize;

/// What one layer keeps for a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cache {
    /// Keys and values of every token.
    Full,
    /// Keys and values of the last `window` tokens.
    Sliding { window: u64 },
    /// Keys and values inside a chunk of `chunk` tokens (Llama 4).
    Chunked { chunk: u64 },
    /// One latent row for every token (`MLAAttentionSpec`); not divided among tensor-parallel ranks.
    Latent,
    /// A state of fixed size (Mamba, linear attention), `blocks` of them for a request.
    State { blocks: u64 },
}

/// One layer's cache on one rank.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Layer {
    pub cache: Cache,
    /// Tokens of a block.
    pub block_size: u64,
    /// Bytes of one block of this layer.
    pub page: u64,
}

/// Layers that share a table of blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub layer: Layer,
    pub layers: u64,
}

/// What the planner reads besides the layers.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub max_model_len: u64,
    /// Tokens that may be in flight: `max_num_batched_tokens * (pp + 1)` with asynchronous scheduling.
    pub in_flight: u64,
}

/// The pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    pub bytes_per_block: u64,
    pub num_gpu_blocks: u64,
    pub kv_tokens: u64,
    pub max_concurrency: f64,
}

/// Why vLLM does not start.
#[derive(Clone, Debug, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    #[error(
        "No available memory for the cache blocks: weights, profile run and graphs take more than the requested {requested} bytes"
    )]
    NoMemory { requested: u64 },
    #[error(
        "one request of {max_model_len} tokens needs {needed} bytes of KV cache, {available} are available; the longest that fits is {longest} tokens"
    )]
    TooLong {
        max_model_len: u64,
        needed: u64,
        available: u64,
        /// Estimated maximum model length; 0: not one token.
        longest: u64,
    },
    #[error(
        "{free} bytes are free on the device at start-up, less than the {requested} that gpu_memory_utilization asks for"
    )]
    NotFree { free: u64, requested: u64 },
    #[error(
        "the model does not fit: {needed} bytes are needed before any KV cache, the device has {free}"
    )]
    OutOfMemory { needed: u64, free: u64 },
}

impl Layer {
    /// Blocks that one request of `max_model_len` tokens needs (`max_memory_usage_bytes` over the page).
    fn blocks(&self, r: &Request) -> u64 {
        let len = r.max_model_len;
        match self.cache {
            Cache::Full | Cache::Latent => len.div_ceil(self.block_size),
            Cache::Sliding { window } => {
                (window.saturating_sub(1).saturating_add(r.in_flight))
                    .min(len)
                    .div_ceil(self.block_size)
                    + 1
            }
            Cache::Chunked { chunk } => chunk
                .saturating_add(r.in_flight)
                .min(len)
                .div_ceil(self.block_size),
            Cache::State { blocks } => blocks,
        }
    }
}

/// `unify_kv_cache_spec_page_size`: every layer gets the widest page, attention by longer blocks where that divides, else by padding.
fn unify(layers: &[Layer]) -> Vec<Layer> {
    let widest = layers.iter().map(|l| l.page).max().unwrap_or(0);
    layers
        .iter()
        .map(|l| {
            let mut l = l.clone();
            let state = matches!(l.cache, Cache::State { .. });
            if !state && l.page > 0 && widest.is_multiple_of(l.page) {
                l.block_size *= widest / l.page;
            }
            l.page = widest;
            l
        })
        .collect()
}

/// `get_kv_cache_groups`: one group where all layers agree; otherwise groups of equal size by kind, the last ones padded.
pub fn groups(layers: &[Layer]) -> Vec<Group> {
    let Some(first) = layers.first() else {
        return vec![];
    };
    if layers.iter().all(|l| l == first) {
        return vec![Group {
            layer: first.clone(),
            layers: layers.len() as u64,
        }];
    }
    let mut kinds: Vec<(Layer, u64)> = vec![];
    for l in unify(layers) {
        match kinds.iter_mut().find(|(k, _)| *k == l) {
            Some((_, n)) => *n += 1,
            None => kinds.push((l, 1)),
        }
    }
    let least = kinds.iter().map(|(_, n)| *n).min().unwrap_or(1);
    let most = kinds.iter().map(|(_, n)| *n).max().unwrap_or(1);
    // 1.5: a model whose kinds are nearly balanced gets padded groups instead of many small ones
    let size = if 2 * most < 3 * least { most } else { least };
    let mut out = vec![];
    for (layer, n) in kinds {
        let parts = n.div_ceil(size);
        for i in 0..parts {
            // dealt round-robin
            out.push(Group {
                layer: layer.clone(),
                layers: n / parts + u64::from(i < n % parts),
            });
        }
    }
    out
}

/// Bytes of one block of the pool: every group's layers lie over the same tensors, the largest group decides.
pub fn bytes_per_block(groups: &[Group]) -> u64 {
    groups
        .iter()
        .map(|g| g.layers * g.layer.page)
        .max()
        .unwrap_or(0)
}

fn blocks_for_one(groups: &[Group], r: &Request) -> u64 {
    groups.iter().map(|g| g.layer.blocks(r)).sum()
}

/// Divides `available` bytes into blocks, or says why it cannot. One block (the null block) is set aside in the check only.
pub fn plan(
    groups: &[Group],
    available: i64,
    requested: u64,
    r: &Request,
) -> Result<Pool, Refusal> {
    let block = bytes_per_block(groups);
    if block == 0 {
        return Ok(Pool {
            bytes_per_block: 0,
            num_gpu_blocks: 1,
            kv_tokens: 0,
            max_concurrency: 0.0,
        });
    }
    let check = available - block as i64;
    if check <= 0 {
        return Err(Refusal::NoMemory { requested });
    }
    let (available, check) = (available as u64, check as u64);
    let one = blocks_for_one(groups, r);
    let needed = one.saturating_mul(block);
    if needed > check {
        return Err(Refusal::TooLong {
            max_model_len: r.max_model_len,
            needed,
            available: check,
            longest: longest(groups, check, r),
        });
    }
    let num_gpu_blocks = available / block;
    let max_concurrency = num_gpu_blocks as f64 / one as f64;
    Ok(Pool {
        bytes_per_block: block,
        num_gpu_blocks,
        kv_tokens: (max_concurrency * r.max_model_len as f64) as u64,
        max_concurrency,
    })
}

/// The longest request that `available` bytes hold; 0 if not one token does.
pub fn longest(groups: &[Group], available: u64, r: &Request) -> u64 {
    let block = bytes_per_block(groups);
    let fits = |len: u64| {
        let r = Request {
            max_model_len: len,
            ..*r
        };
        blocks_for_one(groups, &r).saturating_mul(block) <= available
    };
    let (mut low, mut high) = (0, r.max_model_len);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if fits(mid) {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    low
}
