//! A model on a simulated device: its tensors, its mode, and the leaf computations that adapters and quantisers change.

use crate::cache::Cache;
use crate::net::{Kind, ModuleId, Net, ParamId};
use crate::stack::Stack;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tonnage_sim::OpId;
use tonnage_sim::checkpoint::Checkpointing;
use tonnage_sim::ops;
use tonnage_sim::timeline::Category;
use tonnage_sim::{Cx, ScalarType, Tensor};

/// How a model computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Sdpa,
    Eager,
    FlashAttention2,
}

/// Which implementation computes the language-model loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// The model library's own: full logits.
    #[default]
    Library,
    /// Liger's fused linear cross entropy (only the loss is replaced, no other Liger kernel).
    Liger,
    /// Logits and cross entropy by chunks of the sequence (torchtune's `CEWithChunkedOutputLoss`).
    Chunked { chunks: u32 },
    /// Apple's cut cross entropy: no logits at all.
    Cut,
    /// Unsloth's fused loss; written from its source, no recorded run.
    Unsloth,
}

/// The choices that a forward pass depends on.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    pub dtype: ScalarType,
    pub attention: Attention,
    pub training: bool,
    pub use_cache: bool,
    /// Layer-wise checkpointing.
    pub checkpoint: Option<Checkpointing>,
    pub loss: Loss,
    pub stack: Stack,
}

/// What replaces a leaf's plain computation (adapters, quantised weights). Implementations live beside the method they model.
pub trait Leaf {
    /// `[..., in] -> [..., out]`
    fn forward(&self, m: &Run, id: ModuleId, x: &Tensor) -> Tensor;
    /// Parameters that the optimizer sees, in registration order, with local names.
    fn trainable(&self) -> Vec<(String, Tensor)>;
    /// Calls `f` on every parameter the leaf itself holds (not those of the module it stands for), in registration order; `f` may
    /// replace the tensor.
    fn parameters(&mut self, f: &mut dyn FnMut(&mut Tensor));
    /// Calls `f` on the adapters among them.
    fn adapters(&mut self, _f: &mut dyn FnMut(&mut Tensor)) {}
    /// The weight as a dense tensor where the leaf keeps it packed (peft's `dequantize_module_weight`); None: the module's own.
    fn dense_weight(&self, _m: &Run) -> Option<Tensor> {
        None
    }
    /// What `copy.deepcopy` of the module makes (packed layers only).
    fn deep_copy(&self, _m: &Run) -> Vec<Tensor> {
        vec![]
    }
    /// The bias, where the leaf keeps it.
    fn bias(&self) -> Option<Tensor> {
        None
    }
}

/// A parameter that wants a gradient.
pub struct Trainable {
    /// Full dotted path.
    pub name: String,
    /// The kind of the module that holds it.
    pub module: Kind,
    pub tensor: Tensor,
}

/// A buffer that a forward replaces.
pub struct Rebound {
    pub tensor: Tensor,
    /// It is still the one that came with the model.
    pub loaded: bool,
}

/// A loaded model.
pub struct Run {
    pub cx: Cx,
    pub net: Net,
    pub training: bool,
    pub options: RunOptions,
    weights: Vec<Option<Tensor>>,
    /// Buffers by module, in order.
    pub buffers: Vec<Vec<Tensor>>,
    /// The buffer of a module that its forward replaces.
    pub rebound: RefCell<HashMap<ModuleId, Rebound>>,
    replaced: Vec<Option<Box<dyn Leaf>>>,
    /// The embedding whose output is made a leaf that wants a gradient (`enable_input_require_grads`).
    input_grads: Option<ModuleId>,
    /// Things a model keeps between calls by itself (caches).
    pub kept: RefCell<Vec<Tensor>>,
    /// `num_items_in_batch` of the call in progress, a [] int64 tensor: losses are then sums divided by it.
    pub items: RefCell<Option<Tensor>>,
    /// `generate` is past the prompt: experts run as `batched_mm` (transformers 5, `_optimize_model_for_decode`).
    pub decoding: Cell<bool>,
    /// The key/value cache that the call in progress was given.
    pub cache: RefCell<Option<Rc<Cache>>>,
}

impl Run {
    /// An empty device holding nothing of `net` yet.
    pub fn new(cx: &Cx, net: Net, options: RunOptions) -> Run {
        let (np, nm) = (net.params.len(), net.modules.len());
        cx.set_recompute(options.checkpoint.unwrap_or_default().how);
        Run {
            cx: cx.clone(),
            net,
            training: options.training,
            options,
            weights: vec![None; np],
            buffers: (0..nm).map(|_| vec![]).collect(),
            rebound: RefCell::default(),
            replaced: (0..nm).map(|_| None).collect(),
            input_grads: None,
            kept: RefCell::default(),
            items: RefCell::default(),
            decoding: Cell::new(false),
            cache: RefCell::default(),
        }
    }

    /// Is layer `i` of the model checkpointed?
    #[inline]
    pub fn checkpoints(&self, i: usize) -> bool {
        let every = |c: Checkpointing| i.is_multiple_of(c.every.max(1) as usize);
        self.training && self.options.checkpoint.is_some_and(every)
    }

    /// `model.to("cuda")`: children first, then own parameters, then buffers; parameters want gradients.
    pub fn load(cx: &Cx, net: Net, options: RunOptions) -> Run {
        let mut m = Run::new(cx, net, options);
        m.load_all();
        m
    }

    /// As [`Run::load`], on a device that already exists.
    pub fn load_all(&mut self) {
        for id in self.net.postorder() {
            self.load_module(id);
        }
    }

    /// Puts one module's own tensors on the device.
    pub fn load_module(&mut self, id: ModuleId) {
        let old = self.cx.set_module(id.0);
        for (_, p) in self.net.module(id).params.clone() {
            if self.weights[p.0 as usize].is_none() {
                let spec = self.net.param(p);
                let t = self.cx.empty(
                    OpId::LOAD,
                    spec.shape,
                    spec.dtype.unwrap_or(self.options.dtype),
                );
                self.cx.tag(&t, Category::Parameters);
                let frozen = spec.frozen;
                self.weights[p.0 as usize] = Some(if frozen { t } else { self.cx.require_grad(t) });
            }
        }
        for b in self.net.module(id).buffers.clone() {
            let t = self
                .cx
                .empty(OpId::LOAD, b.shape, b.dtype.unwrap_or(self.options.dtype));
            self.cx.tag(&t, Category::Buffers);
            if b.rebound {
                self.rebound.borrow_mut().insert(
                    id,
                    Rebound {
                        tensor: t,
                        loaded: true,
                    },
                );
            } else {
                self.buffers[id.0 as usize].push(t);
            }
        }
        self.cx.set_module(old);
    }

    /// A loaded parameter.
    #[inline]
    pub fn weight(&self, p: ParamId) -> &Tensor {
        self.weights[p.0 as usize]
            .as_ref()
            .expect("parameter is loaded")
    }

    /// Replaces a parameter's tensor (None: it lives elsewhere, e.g. packed in a quantised leaf).
    pub fn set_weight(&mut self, p: ParamId, t: Option<Tensor>) {
        self.weights[p.0 as usize] = t;
    }

    /// Is there a tensor for this parameter?
    pub fn has_weight(&self, p: ParamId) -> bool {
        self.weights[p.0 as usize].is_some()
    }

    /// `p.requires_grad_(False)` for every parameter that is loaded now.
    pub fn freeze_all(&mut self) {
        for t in self.weights.iter_mut().flatten() {
            *t = t.detach();
        }
    }

    /// `requires_grad_(False)` on a module's own parameters.
    pub fn freeze_module(&mut self, id: ModuleId) {
        for (_, p) in &self.net.module(id).params {
            if let Some(t) = &mut self.weights[p.0 as usize] {
                *t = t.detach();
            }
        }
    }

    /// `model.enable_input_require_grads()` for the embedding module `id`.
    pub fn require_input_grads(&mut self, id: Option<ModuleId>) {
        self.input_grads = id;
    }

    /// What a forward hook on an input embedding does with its output: under `enable_input_require_grads` it becomes a leaf that
    /// wants a gradient (transformers, modeling_utils.py).
    #[inline]
    pub fn embedded(&self, id: ModuleId, y: Tensor) -> Tensor {
        let wanted = self.input_grads == Some(id) && self.cx.grad_enabled() && !y.requires_grad();
        if wanted {
            self.cx.require_grad_kept(y)
        } else {
            y
        }
    }

    /// Calls `f` on every parameter in `parameters()` order, ties once; `f` may replace the tensor.
    pub fn map_parameters(&mut self, mut f: impl FnMut(&mut Tensor)) {
        let mut seen = std::collections::HashSet::new();
        for id in self.net.preorder() {
            let old = self.cx.set_module(id.0);
            for (_, p) in &self.net.module(id).params {
                if let Some(t) = self.weights[p.0 as usize]
                    .as_mut()
                    .filter(|_| seen.insert(*p))
                {
                    f(t);
                }
            }
            if let Some(l) = &mut self.replaced[id.0 as usize] {
                l.parameters(&mut f);
            }
            self.cx.set_module(old);
        }
    }

    /// Puts `leaf` in the place of module `id`'s computation.
    pub fn replace(&mut self, id: ModuleId, leaf: Box<dyn Leaf>) -> Option<Box<dyn Leaf>> {
        self.replaced[id.0 as usize].replace(leaf)
    }

    /// Does something stand in the place of module `id`'s computation?
    pub fn is_replaced(&self, id: ModuleId) -> bool {
        self.replaced[id.0 as usize].is_some()
    }

    /// Takes the replacement of a module away (to wrap it).
    pub fn take_replaced(&mut self, id: ModuleId) -> Option<Box<dyn Leaf>> {
        self.replaced[id.0 as usize].take()
    }

    /// Parameters that want gradients, in `parameters()` order.
    pub fn trainable(&self) -> Vec<Tensor> {
        self.trainable_named()
            .into_iter()
            .map(|p| p.tensor)
            .collect()
    }

    /// The same with names and modules, as `named_parameters()` has them.
    pub fn trainable_named(&self) -> Vec<Trainable> {
        let mut seen = std::collections::HashSet::new();
        let mut out = vec![];
        for id in self.net.preorder() {
            let module = self.net.module(id);
            let path = |local: &str| {
                if module.name.is_empty() {
                    local.to_string()
                } else {
                    format!("{}.{local}", module.name)
                }
            };
            for (local, p) in &module.params {
                if let Some(t) = &self.weights[p.0 as usize]
                    && t.requires_grad()
                    && seen.insert(t.storage.id())
                {
                    out.push(Trainable {
                        name: path(local),
                        module: module.kind,
                        tensor: t.clone(),
                    });
                }
            }
            if let Some(l) = &self.replaced[id.0 as usize] {
                out.extend(l.trainable().into_iter().map(|(n, tensor)| Trainable {
                    name: path(&n),
                    module: Kind::Other,
                    tensor,
                }));
            }
        }
        out
    }

    /// Runs `f` with allocations attributed to module `id`.
    #[inline]
    pub fn within<R>(&self, id: ModuleId, f: impl FnOnce() -> R) -> R {
        let old = self.cx.set_module(id.0);
        let r = f();
        self.cx.set_module(old);
        r
    }

    /// The computation of a Linear or Conv1D module.
    pub fn linear(&self, id: ModuleId, x: &Tensor) -> Tensor {
        match &self.replaced[id.0 as usize] {
            Some(l) => l.forward(self, id, x),
            None => self.plain_linear(id, x),
        }
    }

    /// The module's own weight and bias, without replacements.
    pub fn plain_linear(&self, id: ModuleId, x: &Tensor) -> Tensor {
        let md = self.net.module(id);
        let w = self.weight(md.params[0].1);
        let b = md.params.get(1).map(|(_, p)| self.weight(*p));
        if md.spelled_out {
            let y = ops::matmul(&self.cx, x, &ops::transpose(&self.cx, w, 0, 1));
            return b.map_or_else(|| y.clone(), |b| ops::add(&self.cx, &y, b));
        }
        match (md.kind, b) {
            (Kind::Conv1d { .. }, Some(b)) => ops::addmm(&self.cx, b, x, w),
            _ => ops::linear(&self.cx, x, w, b),
        }
    }
}
