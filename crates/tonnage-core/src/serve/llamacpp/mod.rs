//! llama.cpp v0.5.0: what a model file and settings take, buffer by buffer, as the engine itself allocates it.
//!
//! Weights go to devices ([`weights`]), the context is rounded and its caches and states placed ([`cache`]), the worst-case graph is
//! built node by node ([`build`]), split over backends and allocated by the engine's own rules ([`ggml`]). No size is fitted. Verified by
//! groundtruth/llamacpp-dev.jsonl (tests/llamacpp.rs).

pub mod build;
pub mod cache;
mod error;
pub mod fit;
pub mod ggml;
pub mod hparams;
mod prefill;
mod settings;
pub mod weights;

pub use error::Error;
pub use ggml::Buft;
pub use prefill::{Pool, pools};
pub use settings::{Api, Device, FlashAttention, Load, Settings};

use build::{Batch, Inputs};
use cache::{Context, Memory};
use ggml::{Backend, Backends, Gpu, Plan, cuda, galloc, sched};
use hparams::Hparams;
use tonnage_model::readers::gguf::Gguf;
use weights::Weights;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Weights,
    KvCache,
    RecurrentState,
    /// Activations and copies of the compute graph.
    Compute,
    /// Logits and embeddings on the host.
    Output,
}

/// A part of a buffer. The parts of a buffer sum to its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// A tensor's name, or what a stretch of the graph is for.
    pub name: String,
    /// The layer, where it belongs to one.
    pub layer: Option<usize>,
    pub bytes: u64,
}

/// A buffer that the engine allocates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub buft: Buft,
    pub kind: Kind,
    pub bytes: u64,
    pub items: Vec<Item>,
}

/// What a run takes.
#[derive(Clone, Debug)]
pub struct Estimate {
    pub buffers: Vec<Buffer>,
    /// Rounded context.
    pub context: Context,
    /// Caches and states, layer by layer.
    pub memory: Memory,
    /// Whether flash attention runs.
    pub flash_attention: bool,
    /// Nodes and splits of the worst-case graph.
    pub graph_nodes: usize,
    pub graph_splits: usize,
    /// Copies of each input: 4 with pipeline parallelism.
    pub copies: usize,
    /// cuBLAS workspace of each device once a prefill has run, on top of the buffers; 0 where no node needs cuBLAS.
    pub cublas_workspace_bytes: Vec<u64>,
}

impl Estimate {
    /// Bytes of one kind in one kind of memory.
    pub fn bytes(&self, buft: Buft, kind: Kind) -> u64 {
        self.sum(|b| b.buft == buft && b.kind == kind)
    }
    /// Bytes of all buffers on one device.
    pub fn device_bytes(&self, device: u8) -> u64 {
        self.sum(|b| b.buft.device() == Some(device))
    }
    /// Bytes of all buffers on the host, the mapped stretch of the file as the engine prints it.
    pub fn host_bytes(&self) -> u64 {
        self.sum(|b| !b.buft.is_device())
    }
    fn sum(&self, f: impl Fn(&Buffer) -> bool) -> u64 {
        self.buffers.iter().filter(|b| f(b)).map(|b| b.bytes).sum()
    }
}

/// What `gguf` takes with these settings.
///
/// # Errors
/// What the file lacks, what is not modelled, by name, and what the engine refuses, in its words.
pub fn estimate(gguf: &Gguf, settings: &Settings) -> Result<Estimate, Error> {
    let h = hparams::read(gguf)?;
    let c = cache::context(&h, settings)?;
    let w = weights::place(gguf, &h, settings)?;
    let m = cache::memory(&h, settings, &c, &w)?;
    let b = backends(&h, settings);
    let compute = Compute::of(&h, settings, &w, &c, &m, &b)?;
    let mut buffers = weight_buffers(&w);
    buffers.extend(cache_buffers(&m));
    buffers.extend(compute.plans.into_iter().map(compute_buffer));
    buffers.push(output_buffer(&h, settings, &c, &w));
    Ok(Estimate {
        buffers,
        context: c,
        memory: m,
        flash_attention: compute.flash_attention,
        graph_nodes: compute.nodes,
        graph_splits: compute.splits,
        copies: b.copies,
        cublas_workspace_bytes: compute.cublas,
    })
}

/// Pinned host memory of the build.
fn pinned(s: &Settings) -> Buft {
    match s.vulkan() {
        true => Buft::VulkanHost,
        false => Buft::CudaHost,
    }
}

/// The largest batch that is computed at once (`sched_reserve`, `graph_reserve`).
fn worst_batch(c: &Context) -> Batch {
    let n_tokens = c.n_ctx.min(c.n_ubatch);
    Batch {
        n_tokens: ggml::pad(n_tokens, c.n_seq),
        n_seqs: c.n_seq,
        n_outputs: n_tokens.min(c.n_outputs_max),
    }
}

/// The worst-case graph that the engine reserves, before it is split; flash attention as [`estimate`] finds it.
///
/// # Errors
/// As [`estimate`].
pub fn graph(gguf: &Gguf, settings: &Settings) -> Result<ggml::Graph, Error> {
    let flash_attention = estimate(gguf, settings)?.flash_attention;
    let h = hparams::read(gguf)?;
    let c = cache::context(&h, settings)?;
    let w = weights::place(gguf, &h, settings)?;
    let m = cache::memory(&h, settings, &c, &w)?;
    let inputs = Inputs {
        h: &h,
        s: settings,
        w: &w,
        c: &c,
        m: &m,
        b: &backends(&h, settings),
        flash_attention,
    };
    Ok(build::build(inputs, worst_batch(&c))?.graph)
}

/// The backends of a build: every device, then the CPU, whose compute tensors stand in pinned memory where there is a device.
fn backends(h: &Hparams, s: &Settings) -> Backends {
    let mut list: Vec<Backend> = s
        .devices
        .iter()
        .enumerate()
        .map(|(i, d)| Backend {
            buft: weights::memory(i as u8, s),
            device: Some(match d.api {
                Api::Cuda {
                    compute_capability, ..
                } => Gpu::Cuda(i as u8, compute_capability),
                Api::Vulkan { max_binding } => Gpu::Vulkan(max_binding),
            }),
        })
        .collect();
    let host = match list.is_empty() {
        true => Buft::Cpu,
        false => pinned(s),
    };
    list.push(Backend {
        buft: host,
        device: None,
    });
    // only where nothing is left on the host
    let pipeline =
        s.devices.len() > 1 && s.gpu_layers > h.n_layer as u64 && s.offload_kqv && !s.cpu_moe;
    Backends {
        list,
        op_offload: s.op_offload,
        copies: if pipeline { 4 } else { 1 },
    }
}

/// The worst-case graph in its buffers.
struct Compute {
    plans: Vec<Plan>,
    flash_attention: bool,
    nodes: usize,
    splits: usize,
    cublas: Vec<u64>,
}

impl Compute {
    fn of(
        h: &Hparams,
        s: &Settings,
        w: &Weights,
        c: &Context,
        m: &Memory,
        b: &Backends,
    ) -> Result<Compute, Error> {
        let inputs = |flash_attention| Inputs {
            h,
            s,
            w,
            c,
            m,
            b,
            flash_attention,
        };
        let mut flash_attention = c.flash_attention;
        if c.probe {
            // one token a sequence: does each layer's attention run where the layer is?
            let batch = Batch {
                n_tokens: c.n_seq,
                n_seqs: c.n_seq,
                n_outputs: c.n_seq,
            };
            let mut built = build::build(inputs(true), batch)?;
            let placed = sched::split(&mut built.graph, b);
            flash_attention = built.attention.iter().all(|(id, layer)| {
                let at = placed.backend_of[*id as usize];
                let home = match w.layers[*layer] {
                    weights::Device::Gpu(i, _) => usize::from(i),
                    weights::Device::Cpu => b.list.len() - 1,
                };
                at == Some(home)
            });
        }
        let batch = worst_batch(c);
        let mut built = build::build(inputs(flash_attention), batch)?;
        if s.load == Load::DryRun {
            // `ggml_backend_sched_reserve_size` resets the scheduler after the graph was built
            built.graph.wished.clear();
        }
        let nodes = built.graph.nodes.len();
        let placed = sched::split(&mut built.graph, b);
        Ok(Compute {
            plans: galloc::plan(&built.graph, &placed, b),
            flash_attention,
            nodes,
            splits: placed.splits.len(),
            cublas: cublas(&built.graph, &placed, b),
        })
    }
}

/// The workspace of each device.
fn cublas(g: &ggml::Graph, placed: &sched::Placed, b: &Backends) -> Vec<u64> {
    let devices = b
        .list
        .iter()
        .enumerate()
        .filter_map(|(i, x)| match x.device {
            Some(Gpu::Cuda(_, cc)) => Some((i, cc)),
            _ => None,
        });
    let used = |i: usize, cc: u32| {
        g.nodes.iter().any(|id| {
            placed.backend_of[*id as usize] == Some(i) && cuda::uses_cublas(g, g.get(*id), cc)
        })
    };
    devices
        .map(|(i, cc)| match used(i, cc) {
            true => cuda::cublas_workspace(cc),
            false => 0,
        })
        .collect()
}

fn weight_buffers(w: &Weights) -> Vec<Buffer> {
    let buffers = w.bytes().into_iter().map(|(buft, bytes)| {
        let mut items: Vec<Item> = w
            .stored
            .iter()
            .filter(|s| s.buft == buft)
            .map(|s| Item {
                name: s.name.clone(),
                layer: layer_of(&s.name),
                bytes: s.bytes,
            })
            .collect();
        let used: u64 = items.iter().map(|i| i.bytes).sum();
        if bytes > used {
            items.push(Item {
                name: "file between the tensors".into(),
                layer: None,
                bytes: bytes - used,
            });
        }
        Buffer {
            buft,
            kind: Kind::Weights,
            bytes,
            items,
        }
    });
    buffers.collect()
}

/// The layer in `blk.N.name`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Buffers of one kind of memory each, in the order in which they are met.
fn grouped(kind: Kind, items: impl Iterator<Item = (Buft, Item)>) -> Vec<Buffer> {
    let mut out: Vec<Buffer> = Vec::new();
    for (buft, item) in items {
        let i = match out.iter().position(|b| b.buft == buft) {
            Some(i) => i,
            None => {
                out.push(Buffer {
                    buft,
                    kind,
                    bytes: 0,
                    items: Vec::new(),
                });
                out.len() - 1
            }
        };
        out[i].bytes += item.bytes;
        out[i].items.push(item);
    }
    out
}

fn cache_buffers(m: &Memory) -> Vec<Buffer> {
    let item = |buft, name: &str, layer, bytes| {
        let name = name.to_string();
        let layer = Some(layer);
        (buft, Item { name, layer, bytes })
    };
    let kv = m.caches.iter().flat_map(|c| &c.layers).flat_map(|l| {
        let k = item(l.buft, "K cache", l.layer, l.k_bytes);
        let v = item(l.buft, "V cache", l.layer, l.v_bytes);
        [k, v].into_iter().filter(|x| x.1.bytes > 0)
    });
    let mut out = grouped(Kind::KvCache, kv);
    let states = m.states.iter().flat_map(|s| {
        let conv = item(s.buft, "convolution state", s.layer, s.conv_bytes);
        let scan = item(s.buft, "recurrent state", s.layer, s.scan_bytes);
        [conv, scan].into_iter().filter(|x| x.1.bytes > 0)
    });
    out.extend(grouped(Kind::RecurrentState, states));
    out
}

fn compute_buffer(p: Plan) -> Buffer {
    let mut items: Vec<Item> = p
        .held
        .iter()
        .map(|h| Item {
            name: h.label.to_string(),
            layer: usize::try_from(h.layer).ok(),
            bytes: h.bytes,
        })
        .collect();
    if p.holes > 0 {
        items.push(Item {
            name: "holes of the graph allocator".into(),
            layer: None,
            bytes: p.holes,
        });
    }
    Buffer {
        buft: p.buft,
        kind: Kind::Compute,
        bytes: p.bytes,
        items,
    }
}

/// The first output buffer (`output_reserve`): it grows when a batch asks for more logits at once.
fn output_buffer(h: &Hparams, s: &Settings, c: &Context, w: &Weights) -> Buffer {
    let logits = 4 * c.n_seq * h.n_vocab;
    let mut items = vec![Item {
        name: "logits".into(),
        layer: None,
        bytes: logits,
    }];
    if s.embeddings {
        items.push(Item {
            name: "embeddings".into(),
            layer: None,
            bytes: 4 * c.n_seq * h.n_embd,
        });
    }
    Buffer {
        // pinned where the head's device has such memory
        buft: match w.output {
            weights::Device::Cpu => Buft::Cpu,
            weights::Device::Gpu(..) => pinned(s),
        },
        kind: Kind::Output,
        bytes: items.iter().map(|i| i.bytes).sum(),
        items,
    }
}
