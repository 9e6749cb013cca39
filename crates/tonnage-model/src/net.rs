//! The module tree: names, kinds, tensors, in the order in which the framework registers them.
//!
//! Everything countable comes from here: parameters, the tensor inventory, LoRA targets, what a quantiser replaces, the order of
//! loading and of the optimizer's list.

use std::borrow::Cow;
use std::collections::HashSet;
use tonnage_sim::Shape;
use tonnage_units::ScalarType;

/// Index of a module of a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub u32);

/// Index of a parameter (tied parameters are one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);

/// What a module is; leaves that adapters and quantisers look for have their own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Container,
    /// `nn.Linear`: weight [out, in].
    Linear {
        input: u64,
        output: u64,
    },
    /// transformers' `Conv1D`: weight [in, out].
    Conv1d {
        input: u64,
        output: u64,
    },
    Embedding {
        rows: u64,
        width: u64,
    },
    Norm,
    Conv2d,
    BatchNorm,
    Dropout,
    /// A module with bare parameters.
    Other,
}

/// A parameter: full checkpoint name, sizes, dtype where it is not the model's.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    pub name: String,
    pub shape: Shape,
    pub dtype: Option<ScalarType>,
    pub module: ModuleId,
    /// The model itself declares that it wants no gradient.
    pub frozen: bool,
}

/// A buffer on the device. Non-persistent ones are not in the checkpoint.
#[derive(Clone, Debug)]
pub struct BufferSpec {
    pub name: String,
    pub shape: Shape,
    /// None: the model's dtype.
    pub dtype: Option<ScalarType>,
    /// The forward registers another tensor in its place.
    pub rebound: bool,
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Module {
    /// Full dotted path; empty for the root.
    pub name: String,
    pub kind: Kind,
    pub parent: Option<ModuleId>,
    pub children: Vec<ModuleId>,
    pub params: Vec<(Cow<'static, str>, ParamId)>,
    pub buffers: Vec<BufferSpec>,
    /// A Linear whose forward is spelled out: `x @ weight.T`, then `+ bias`.
    pub spelled_out: bool,
}

/// A model's module tree.
#[derive(Clone, Debug, Default)]
pub struct Net {
    pub modules: Vec<Module>,
    pub params: Vec<ParamSpec>,
}

impl Net {
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }
    pub fn param(&self, id: ParamId) -> &ParamSpec {
        &self.params[id.0 as usize]
    }
    /// Elements of all parameters, ties once.
    pub fn param_count(&self) -> u64 {
        self.params.iter().map(|p| p.shape.numel()).sum()
    }
    /// A parameter of a module by its local name.
    pub fn find(&self, id: ModuleId, local: &str) -> Option<ParamId> {
        self.module(id)
            .params
            .iter()
            .find(|(n, _)| *n == local)
            .map(|(_, p)| *p)
    }
    /// `named_modules()` order: a module, then its children.
    pub fn preorder(&self) -> Vec<ModuleId> {
        let mut out = Vec::with_capacity(self.modules.len());
        let mut stack = vec![ModuleId(0)];
        while let Some(id) = stack.pop() {
            out.push(id);
            stack.extend(self.module(id).children.iter().rev());
        }
        out
    }
    /// `Module.to()` order: children first, then own parameters, then own buffers.
    pub fn postorder(&self) -> Vec<ModuleId> {
        fn walk(n: &Net, id: ModuleId, out: &mut Vec<ModuleId>) {
            for c in &n.module(id).children {
                walk(n, *c, out);
            }
            out.push(id);
        }
        let mut out = Vec::with_capacity(self.modules.len());
        walk(self, ModuleId(0), &mut out);
        out
    }
    /// `parameters()` order, ties once.
    pub fn param_order(&self) -> Vec<ParamId> {
        let mut seen = HashSet::new();
        self.preorder()
            .into_iter()
            .flat_map(|m| self.module(m).params.iter().map(|(_, p)| *p))
            .filter(|p| seen.insert(*p))
            .collect()
    }
}

/// Builds a [`Net`] in registration order.
pub struct NetBuilder {
    net: Net,
    path: Vec<ModuleId>,
}

impl Default for NetBuilder {
    fn default() -> Self {
        NetBuilder::new()
    }
}

impl NetBuilder {
    pub fn new() -> NetBuilder {
        let root = Module {
            name: String::new(),
            kind: Kind::Container,
            parent: None,
            children: vec![],
            params: vec![],
            buffers: vec![],
            spelled_out: false,
        };
        NetBuilder {
            net: Net {
                modules: vec![root],
                params: vec![],
            },
            path: vec![ModuleId(0)],
        }
    }
    pub fn finish(self) -> Net {
        self.net
    }
    fn here(&self) -> ModuleId {
        self.path[self.path.len() - 1]
    }
    fn join(&self, local: &str) -> String {
        let p = &self.net.module(self.here()).name;
        if p.is_empty() {
            local.to_string()
        } else {
            format!("{p}.{local}")
        }
    }
    /// A child module; `f` registers what is inside.
    pub fn scope<R>(&mut self, local: &str, f: impl FnOnce(&mut NetBuilder) -> R) -> R {
        self.scope_kind(local, Kind::Container, f)
    }
    /// A child module of some kind.
    pub fn scope_kind<R>(
        &mut self,
        local: &str,
        kind: Kind,
        f: impl FnOnce(&mut NetBuilder) -> R,
    ) -> R {
        let id = ModuleId(self.net.modules.len() as u32);
        let (name, parent) = (self.join(local), self.here());
        self.net.modules.push(Module {
            name,
            kind,
            parent: Some(parent),
            children: vec![],
            params: vec![],
            buffers: vec![],
            spelled_out: false,
        });
        self.net.modules[parent.0 as usize].children.push(id);
        self.path.push(id);
        let r = f(self);
        self.path.pop();
        r
    }
    /// Full path of the module being built; empty for the root.
    pub fn path(&self) -> String {
        self.net.module(self.here()).name.clone()
    }
    /// The module being built is a Linear that computes `x @ weight.T` and adds its bias.
    pub fn spell_out(&mut self) {
        let m = self.here();
        self.net.modules[m.0 as usize].spelled_out = true;
    }
    /// The module being built.
    pub fn id(&self) -> ModuleId {
        self.here()
    }
    /// A parameter of the module being built.
    pub fn param(&mut self, local: impl Into<Cow<'static, str>>, shape: &[u64]) -> ParamId {
        self.param_dtype(local, shape, None)
    }
    /// A parameter with a dtype of its own.
    pub fn param_dtype(
        &mut self,
        local: impl Into<Cow<'static, str>>,
        shape: &[u64],
        dtype: Option<ScalarType>,
    ) -> ParamId {
        let local = local.into();
        let id = ParamId(self.net.params.len() as u32);
        let (name, module) = (self.join(&local), self.here());
        self.net.params.push(ParamSpec {
            name,
            shape: Shape::new(shape),
            dtype,
            module,
            frozen: false,
        });
        self.net.modules[module.0 as usize].params.push((local, id));
        id
    }
    /// `requires_grad_(False)` in the model's constructor.
    pub fn freeze(&mut self, id: ParamId) {
        self.net.params[id.0 as usize].frozen = true;
    }
    /// A parameter that is another module's (tied weights).
    pub fn tie(&mut self, local: &'static str, id: ParamId) {
        let m = self.here();
        self.net.modules[m.0 as usize]
            .params
            .push((local.into(), id));
    }
    /// A device buffer of the module being built.
    pub fn buffer(&mut self, local: &str, shape: &[u64], dtype: Option<ScalarType>) {
        let (name, m) = (self.join(local), self.here());
        self.net.modules[m.0 as usize].buffers.push(BufferSpec {
            name,
            shape: Shape::new(shape),
            dtype,
            rebound: false,
        });
    }
    /// The last buffer of the module being built is one that its forward registers anew (see `Run::rebound`).
    pub fn rebind_buffer(&mut self) {
        let m = self.here();
        if let Some(b) = self.net.modules[m.0 as usize].buffers.last_mut() {
            b.rebound = true;
        }
    }
}
