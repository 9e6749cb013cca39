//! Library versions and the behaviours that change with them. One place: each switch names the case that shows it.

/// A version as (major, minor, patch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Parses "5.17.0", "2.11.0+cu130", "4.57".
    pub fn parse(s: &str) -> Option<Version> {
        let core = s.split(['+', '-', 'r', 'd']).next()?;
        let mut it = core.split('.').map(|p| p.parse::<u32>());
        let major = it.next()?.ok()?;
        let minor = it.next().transpose().ok()?.unwrap_or(0);
        let patch = it.next().transpose().ok()?.unwrap_or(0);
        Some(Version(major, minor, patch))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The versions that a prediction is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    pub torch: Version,
    pub transformers: Version,
    pub peft: Version,
    pub accelerate: Version,
    pub bitsandbytes: Version,
}

impl Default for Stack {
    fn default() -> Stack {
        Stack {
            torch: Version(2, 11, 0),
            transformers: Version(5, 17, 0),
            peft: Version(0, 21, 2),
            accelerate: Version(1, 15, 0),
            bitsandbytes: Version(0, 50, 2),
        }
    }
}

impl Stack {
    /// transformers 5.x as against 4.57: SDPA gets `enable_gqa` instead of repeated heads, fused mask building, grouped experts
    /// (cases `llama-1b-plain-bf16-adamw_foreach-b2-s1024` and its `-tf4.57.6` twin).
    pub fn transformers_5(&self) -> bool {
        self.transformers >= Version(5, 0, 0)
    }

    /// `gradient_checkpointing_enable` of transformers 5 calls `enable_input_require_grads` by itself
    /// (src/transformers/modeling_utils.py; cases `llama-7b-plain-amp_bf16-adamw_foreach-b1-s2048-nf4-lora32all-ckpt` and
    /// `llama-8b-...-nf4-lora32all-ckpt-tf4.57.6`).
    pub fn checkpointing_requires_input_grads(&self) -> bool {
        self.transformers_5()
    }

    /// transformers before 4.48: `Qwen2FlashAttention2` and `MistralFlashAttention2` repeat key and value heads before the kernel, which
    /// would not need it; `LlamaFlashAttention2` does not (published rows `qwen25-sb-*` of 1 input token).
    pub fn flash_repeats_heads(&self) -> bool {
        self.transformers < Version(4, 48, 0)
    }

    /// transformers 4.36 to 4.39: rotary tables in every layer, a cache in training too, fp32 logits in the output
    /// (published rows `fsdpqlora-nb-bnb-13-*`, `ao-galore-*`).
    pub fn llama_2024(&self) -> bool {
        self.transformers < Version(4, 40, 0)
    }
}
