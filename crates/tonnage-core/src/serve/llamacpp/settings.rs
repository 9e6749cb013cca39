//! What a run of llama.cpp is asked for. Names and defaults are those of llama-server v0.5.0 (common/common.h, `common_params`;
//! include/llama.h, `llama_context_default_params`) where nothing else is said.

use tonnage_units::GgmlType;

/// Whether flash attention is used (`-fa`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where every layer's device has a kernel for it.
    #[default]
    Auto,
    On,
    Off,
}

/// How the weights get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// The file mapped: host weights are pages of the file.
    #[default]
    Mmap,
    /// Read into buffers (`--no-mmap`).
    Read,
    /// The engine's own estimate, which allocates nothing (`no_alloc`). Same buffers as [`Load::Read`].
    DryRun,
}

/// How a device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// 890 for compute capability 8.9. The multiprocessors lay out kernels and so the temporary pool; None where they are not known.
    Cuda {
        compute_capability: u32,
        multiprocessors: Option<u32>,
    },
    /// `maxStorageBufferRange`: no tensor of a node may be larger.
    Vulkan { max_binding: u64 },
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    pub api: Api,
    /// Free memory in bytes: what several devices are weighed by without a tensor split.
    pub free_bytes: u64,
}

impl Default for Device {
    fn default() -> Device {
        Device {
            api: Api::Cuda {
                compute_capability: 890,
                multiprocessors: Some(128),
            },
            free_bytes: 24 << 30,
        }
    }
}

/// The settings of a model and its context.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tokens of context in all (`-c`); 0: as many as the model was trained for.
    pub context_len: u64,
    /// Largest batch that is submitted at once (`-b`).
    pub n_batch: u64,
    /// Largest batch that is computed at once (`-ub`).
    pub n_ubatch: u64,
    /// Sequences or server slots (`-np`).
    pub n_seq: u64,
    /// One cache for all sequences (`-kvu`).
    pub kv_unified: bool,
    /// Full caches for sliding-window layers (`--swa-full`).
    pub swa_full: bool,
    /// Rows of logits in a batch; 0: as many as `n_batch`. llama-server: `n_seq`.
    pub n_outputs_max: u64,
    /// Embeddings are kept next to the logits.
    pub embeddings: bool,
    /// The cache stands with the layer (`-nkvo` turns it off).
    pub offload_kqv: bool,
    /// Large products run on the device although their weights are on the host (`--no-op-offload`).
    pub op_offload: bool,
    /// The experts' weights stay on the host (`--cpu-moe`).
    pub cpu_moe: bool,
    /// The CPU backend lays weights out anew (`--no-repack`).
    pub repack: bool,
    pub flash_attention: FlashAttention,
    /// Types of the cache (`-ctk`, `-ctv`).
    pub type_k: GgmlType,
    pub type_v: GgmlType,
    /// Layers on devices (`-ngl`); 999: all.
    pub gpu_layers: u64,
    /// Devices, all of one kind; none: the CPU alone.
    pub devices: Vec<Device>,
    /// Proportions of the devices (`-ts`).
    pub tensor_split: Option<Vec<f32>>,
    pub load: Load,
}

impl Settings {
    /// A build for Vulkan rather than CUDA.
    pub fn vulkan(&self) -> bool {
        let first = self.devices.first();
        first.is_some_and(|d| matches!(d.api, Api::Vulkan { .. }))
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            context_len: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_seq: 1,
            kv_unified: false,
            swa_full: false,
            n_outputs_max: 0,
            embeddings: false,
            offload_kqv: true,
            op_offload: true,
            cpu_moe: false,
            repack: true,
            flash_attention: FlashAttention::Auto,
            type_k: GgmlType::F16,
            type_v: GgmlType::F16,
            gpu_layers: 999,
            devices: vec![Device::default()],
            tensor_split: None,
            load: Load::Mmap,
        }
    }
}
