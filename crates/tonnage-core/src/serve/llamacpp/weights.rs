//! Where each weight goes (llama.cpp v0.5.0, src/llama-model.cpp `load_tensors`, src/llama-model-loader.cpp `create_tensor`,
//! src/llama-arch.cpp for the operator that a tensor is used with; ggml-cpu/repack.cpp with AVX2).

use super::error::Error;
use super::ggml::{Buft, cuda, pad, vulkan};
use super::hparams::{Arch, Hparams};
use super::settings::{Api, Load, Settings};
use std::collections::{BTreeMap, HashMap};
use tonnage_model::readers::gguf::{Gguf, TensorInfo};
use tonnage_units::GgmlType;

/// Longest dimension and largest tensor of a model: sums and products of them stay within 64 bits.
const MAX_DIM: u64 = 1 << 24;
const MAX_BYTES: u64 = 1 << 44;

/// What a weight is used with first: decides which memory can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    GetRows,
    MulMat,
    MulMatId,
    Elementwise,
    Rope,
    SsmConv,
    SsmScan,
    Scale,
}

/// Which part of the model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Input,
    Output,
    Layer(usize),
    /// One for all layers, with a copy wherever a layer is.
    EveryLayer,
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    Cpu,
    /// With its memory.
    Gpu(u8, Buft),
}

impl Device {
    /// Memory of the device: plain host memory or its own.
    pub fn memory(self) -> Buft {
        match self {
            Device::Cpu => Buft::Cpu,
            Device::Gpu(_, buft) => buft,
        }
    }
}

/// A weight in a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    pub buft: Buft,
    /// In the buffer, padding included.
    pub bytes: u64,
}

/// A weight as the graph sees it.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// Number of the tensor in the file and its place: what makes two the same.
    pub key: (usize, Buft),
    pub ty: GgmlType,
    pub ne: [u64; 4],
}

/// All weights in their places.
#[derive(Clone, Debug)]
pub struct Weights {
    pub stored: Vec<Stored>,
    /// Bytes of the mapped stretch of the file, per part; with what of it is used.
    pub mapped: Option<(u64, u64)>,
    /// Device of each layer, and of the output after the last one.
    pub layers: Vec<Device>,
    pub output: Device,
    /// All layers and the output on devices.
    pub full_offload: bool,
    names: Vec<String>,
    by_name: HashMap<String, (usize, Vec<Buft>)>,
    tensors: Vec<(GgmlType, [u64; 4])>,
}

impl Weights {
    /// The weight of that name; where it has copies, the one with device `near`.
    pub fn get(&self, name: &str, near: Device) -> Option<Weight> {
        let (i, places) = self.by_name.get(name)?;
        let here = |b: &&Buft| match near {
            Device::Gpu(_, buft) => **b == buft,
            Device::Cpu => !b.is_device(),
        };
        let buft = places.iter().find(here).or(places.first())?;
        self.weight(*i, *buft)
    }
    /// The matrix of the logits: the table of tokens where it has none of its own.
    pub fn head(&self) -> Option<Weight> {
        let own = self.by_name.get("output.weight");
        let (i, places) = own.or(self.by_name.get("token_embd.weight"))?;
        self.weight(*i, *places.last()?)
    }
    /// Name of tensor `i` of the file.
    pub fn name(&self, i: usize) -> Option<&str> {
        self.names.get(i).map(String::as_str)
    }
    fn weight(&self, i: usize, buft: Buft) -> Option<Weight> {
        let (ty, ne) = *self.tensors.get(i)?;
        Some(Weight {
            key: (i, buft),
            ty,
            ne,
        })
    }
    /// Sums by kind of buffer, the mapped stretch as the engine prints it.
    pub fn bytes(&self) -> BTreeMap<Buft, u64> {
        let mut out = BTreeMap::new();
        for s in self.stored.iter().filter(|s| s.buft != Buft::CpuMapped) {
            *out.entry(s.buft).or_default() += s.bytes;
        }
        if let Some((span, _)) = self.mapped {
            out.insert(Buft::CpuMapped, span);
        }
        out
    }
}

/// Places all weights.
///
/// # Errors
/// A tensor whose name says a layer that does not exist.
pub fn place(g: &Gguf, h: &Hparams, s: &Settings) -> Result<Weights, Error> {
    let (layers, output) = devices(h.n_layer, s)?;
    let mut w = Weights {
        stored: Vec::new(),
        mapped: None,
        full_offload: s.gpu_layers > h.n_layer as u64 && !s.devices.is_empty(),
        layers,
        output,
        names: g.tensors.iter().map(|t| t.name.clone()).collect(),
        by_name: HashMap::new(),
        tensors: g.tensors.iter().map(|t| (t.ggml_type, t.ne)).collect(),
    };
    let tied = g.tensor("output.weight").is_none();
    // the stretch of each part of the file that holds mapped tensors
    let mut spans: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for (i, t) in g.tensors.iter().enumerate() {
        let sane = t.ne.iter().all(|n| (1..=MAX_DIM).contains(n)) && t.bytes <= MAX_BYTES;
        if !sane {
            return Err(Error::WrongShape {
                name: t.name.clone(),
                problem: format!("{:?}", t.ne),
            });
        }
        let (part, how) = role(&t.name, h)?;
        let mut at: Vec<Buft> = match part {
            Part::Input => vec![buft(t, how, Device::Cpu, h, s)],
            Part::Output => vec![buft(t, how, w.output, h, s)],
            Part::Layer(l) => {
                let device = match s.cpu_moe && is_expert(&t.name) {
                    true => Device::Cpu,
                    false => w.layers[l],
                };
                vec![buft(t, how, device, h, s)]
            }
            Part::EveryLayer => {
                let mut list: Vec<Buft> = Vec::new();
                for &d in &w.layers {
                    let b = buft(t, how, d, h, s);
                    if !list.contains(&b) {
                        list.push(b);
                    }
                }
                list
            }
        };
        if tied && t.name == "token_embd.weight" {
            let b = buft(t, Use::MulMat, w.output, h, s);
            if !at.contains(&b) {
                at.push(b);
            }
        }
        for &b in &at {
            let bytes = match b {
                Buft::Cuda(_) => t.bytes + cuda::row_padding(t.ggml_type, t.ne[0]),
                _ => t.bytes,
            };
            if b == Buft::CpuMapped {
                let span = spans.entry(t.part).or_insert((t.offset, t.offset));
                *span = (span.0.min(t.offset), span.1.max(t.offset + t.bytes));
            }
            w.stored.push(Stored {
                name: t.name.clone(),
                buft: b,
                bytes: match b {
                    Buft::CpuMapped => bytes,
                    _ => pad(bytes, b.alignment()),
                },
            });
        }
        w.by_name.insert(t.name.clone(), (i, at));
    }
    if !spans.is_empty() {
        let used = w.stored.iter().filter(|x| x.buft == Buft::CpuMapped);
        let used = used.map(|x| x.bytes).sum();
        w.mapped = Some((spans.values().map(|x| x.1 - x.0).sum(), used));
    }
    Ok(w)
}

/// `--cpu-moe`: `ffn_(up|down|gate)_exps`.
fn is_expert(name: &str) -> bool {
    ["ffn_up_exps", "ffn_down_exps", "ffn_gate_exps"]
        .iter()
        .any(|x| name.contains(x))
}

/// Devices of the layers and of the output.
fn devices(n: usize, s: &Settings) -> Result<(Vec<Device>, Device), Error> {
    let count = s.devices.len();
    let vulkan = |d: &super::settings::Device| matches!(d.api, Api::Vulkan { .. });
    if count > 64 || s.devices.iter().any(|d| vulkan(d) != s.vulkan()) {
        let problem = "at most 64, and all of one kind".to_string();
        return Err(Error::Setting {
            field: "devices",
            problem,
        });
    }
    let weights: Vec<f32> = match &s.tensor_split {
        Some(list) if list.iter().any(|x| *x != 0.0) => {
            let valid =
                list.len() <= count.max(1) && list.iter().all(|x| x.is_finite() && *x >= 0.0);
            if !valid {
                return Err(Error::Setting {
                    field: "tensor_split",
                    problem: format!("needs at most {count} proportions, none negative"),
                });
            }
            let mut w = list.clone();
            w.resize(count, 0.0);
            w
        }
        _ => s.devices.iter().map(|d| d.free_bytes as f32).collect(),
    };
    let mut ends = Vec::with_capacity(count);
    let mut sum = 0f32;
    for w in weights {
        sum += w;
        ends.push(sum);
    }
    for e in &mut ends {
        *e /= sum;
    }
    let first = (n as u64 + 1).saturating_sub(s.gpu_layers) as usize;
    let on_gpu = s.gpu_layers.min(n as u64 + 1) as usize;
    let device = |il: usize| {
        if count == 0 || il < first || il - first >= on_gpu {
            return Device::Cpu;
        }
        let at = (il - first) as f32 / on_gpu as f32;
        let i = ends.partition_point(|e| *e <= at).min(count - 1);
        Device::Gpu(i as u8, memory(i as u8, s))
    };
    Ok(((0..n).map(device).collect(), device(n)))
}

/// Memory of device `i`.
pub fn memory(i: u8, s: &Settings) -> Buft {
    match s.vulkan() {
        true => Buft::Vulkan(i),
        false => Buft::Cuda(i),
    }
}

/// The part and the use of a tensor, by its name.
fn role(name: &str, h: &Hparams) -> Result<(Part, Use), Error> {
    let bias = name.ends_with(".bias");
    let stem = name
        .strip_suffix(".weight")
        .or(name.strip_suffix(".bias"))
        .unwrap_or(name);
    let Some(rest) = stem.strip_prefix("blk.") else {
        return Ok(match stem {
            "token_embd" | "position_embd" | "token_types" => (Part::Input, Use::GetRows),
            "rope_freqs" | "rope_factors_long" | "rope_factors_short" => {
                (Part::EveryLayer, Use::Rope)
            }
            "output" if !bias => (Part::Output, Use::MulMat),
            "output" | "output_norm" => (Part::Output, Use::Elementwise),
            "token_embd_norm" if h.arch == Arch::Lfm2 => (Part::Output, Use::Elementwise),
            _ => return Err(Error::Unsupported(format!("tensor `{name}`"))),
        });
    };
    let layer = rest.split_once('.').and_then(|(l, k)| {
        let l: usize = l.parse().ok()?;
        (l < h.n_layer).then_some((l, k))
    });
    let Some((layer, kind)) = layer else {
        let problem = format!("no layer of that number ({} layers)", h.n_layer);
        let key = name.to_string();
        return Err(Error::BadKey { key, problem });
    };
    let how = match kind {
        _ if bias => Use::Elementwise,
        "ssm_conv1d" | "shortconv.conv" => Use::SsmConv,
        // the delta net multiplies with it, a scan takes it whole
        "ssm_a" if h.arch == Arch::Qwen3Next => Use::Elementwise,
        "ssm_a" => Use::SsmScan,
        "ssm_d" | "exp_probs_b" => Use::Elementwise,
        "attn_sinks" => Use::Scale,
        "rope_freqs" => Use::Rope,
        k if k.ends_with("_norm") => Use::Elementwise,
        k if k.ends_with("_exps") => Use::MulMatId,
        _ => Use::MulMat,
    };
    Ok((Part::Layer(layer), how))
}

/// Whether a CUDA device runs the use with this weight (`weight_buft_supported`).
fn on_cuda(t: &TensorInfo, how: Use, h: &Hparams) -> bool {
    let ty = t.ggml_type;
    match how {
        Use::MulMat | Use::MulMatId => cuda::matmul_type(ty),
        Use::GetRows => cuda::rows_type(ty, t.ne[0]),
        Use::Elementwise => matches!(ty, GgmlType::F32 | GgmlType::F16),
        Use::Scale => matches!(ty, GgmlType::F32 | GgmlType::Bf16),
        Use::Rope => true,
        Use::SsmConv => t.ne[1].is_multiple_of(128),
        Use::SsmScan => {
            let heads = t.ne[1].max(1);
            let width = h.ssm.inner / heads;
            match t.ne[0] {
                1 => matches!(h.ssm.state, 96 | 128 | 256) && width.is_multiple_of(16),
                n => n == 16 && width == 1 && heads.is_multiple_of(128) && h.ssm.groups <= 1,
            }
        }
    }
}

/// Whether a Vulkan device runs the use with this weight: the test has 512 rows, and nothing in it may be larger than a binding.
fn on_vulkan(t: &TensorInfo, how: Use, max_binding: u64) -> bool {
    let result = match how {
        Use::MulMat | Use::MulMatId => 4 * 512 * t.ne[0].max(t.ne[1]),
        Use::GetRows => 4 * 512 * t.ne[0],
        _ => t.bytes,
    };
    let ty = match how {
        Use::MulMat | Use::MulMatId | Use::GetRows => vulkan::matmul_type(t.ggml_type),
        _ => matches!(t.ggml_type, GgmlType::F32 | GgmlType::F16),
    };
    ty && t.bytes.max(result) <= max_binding
}

/// Whether the CPU backend lays the weight out anew (AVX2).
fn repacked(t: &TensorInfo, how: Use) -> bool {
    let dims = t.ne.iter().rposition(|n| *n > 1).map_or(1, |i| i + 1);
    let shape = match how {
        Use::MulMat => dims == 2,
        Use::MulMatId => dims == 3,
        _ => false,
    };
    let ty = matches!(
        t.ggml_type,
        GgmlType::Q4_0 | GgmlType::Q4K | GgmlType::Iq4Nl | GgmlType::Mxfp4
    );
    shape && ty && t.ne[1].is_multiple_of(8)
}

fn buft(t: &TensorInfo, how: Use, device: Device, h: &Hparams, s: &Settings) -> Buft {
    let host = match s.load {
        Load::Mmap => Buft::CpuMapped,
        _ => Buft::Cpu,
    };
    let gpu = match s.devices.first().map(|d| d.api) {
        Some(Api::Cuda { .. }) => on_cuda(t, how, h),
        Some(Api::Vulkan { max_binding }) => on_vulkan(t, how, max_binding),
        None => false,
    };
    match device {
        Device::Gpu(_, memory) if gpu => return memory,
        _ => {}
    }
    if gpu {
        return match s.load {
            Load::Mmap => Buft::CpuMapped,
            _ if s.vulkan() => Buft::VulkanHost,
            _ => Buft::CudaHost,
        };
    }
    match s.repack && repacked(t, how) {
        true => Buft::CpuRepack,
        false => host,
    }
}
