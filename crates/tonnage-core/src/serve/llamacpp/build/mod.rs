//! The graph that the engine reserves for the worst case, node by node (llama.cpp v0.5.0, src/llama-graph.cpp and src/models/*.cpp;
//! functions have the engine's names).

mod attn;
mod delta;
mod ffn;
mod models;
mod recurrent;

use super::cache::{Context, Memory};
use super::error::Error;
use super::ggml::Buft;
use super::ggml::{Backends, Graph, Id};
use super::hparams::{Arch, Hparams};
use super::settings::Settings;
use super::weights::{Device, Weight, Weights};
use std::collections::HashMap;
use tonnage_units::GgmlType::{F32, I32};

/// What is built for: tokens of all sequences together, rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub n_tokens: u64,
    pub n_seqs: u64,
    pub n_outputs: u64,
}

/// A graph and its flash-attention nodes with their layers.
#[derive(Clone, Debug)]
pub struct Built {
    pub graph: Graph,
    pub attention: Vec<(Id, usize)>,
}

/// Everything that a graph is built from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub h: &'a Hparams,
    pub s: &'a Settings,
    pub w: &'a Weights,
    pub c: &'a Context,
    pub m: &'a Memory,
    pub b: &'a Backends,
    /// Flash attention as it turned out.
    pub flash_attention: bool,
}

/// Builds the graph.
///
/// # Errors
/// A tensor is missing, or the file has something that the graph does not know.
pub fn build(x: Inputs, batch: Batch) -> Result<Built, Error> {
    let mut b = Builder {
        x,
        batch,
        g: Graph::default(),
        weights: HashMap::new(),
        stored: HashMap::new(),
        attention: Vec::new(),
        wrong: None,
    };
    models::model(&mut b)?;
    if let Some(e) = b.wrong {
        return Err(e);
    }
    Ok(Built {
        graph: b.g,
        attention: b.attention,
    })
}

/// Which tensor of a cache or state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kept {
    K,
    V,
    Conv,
    Scan,
}

struct Builder<'a> {
    x: Inputs<'a>,
    batch: Batch,
    g: Graph,
    weights: HashMap<(usize, Buft), Id>,
    stored: HashMap<(usize, Kept), Id>,
    attention: Vec<(Id, usize)>,
    /// The first tensor that does not fit.
    wrong: Option<Error>,
}

impl Builder<'_> {
    fn n(&self) -> u64 {
        self.batch.n_tokens
    }
    fn device(&self, layer: usize) -> Device {
        self.x.w.layers[layer]
    }
    /// Number of the backend of a device.
    fn backend(&self, d: Device) -> usize {
        match d {
            Device::Gpu(i, _) => usize::from(i),
            Device::Cpu => self.x.b.list.len() - 1,
        }
    }
    fn leaf(&mut self, w: Weight) -> Id {
        if let Some(id) = self.weights.get(&w.key) {
            return *id;
        }
        let id = self.g.external(w.ty, w.ne, w.key.1, true);
        self.weights.insert(w.key, id);
        id
    }
    fn optional(&mut self, name: &str, near: Device) -> Option<Id> {
        let w = self.x.w.get(name, near)?;
        Some(self.leaf(w))
    }
    /// A weight of a layer, where it is there. `name` without `blk.N.`.
    fn layer_opt(&mut self, l: usize, name: &str) -> Option<Id> {
        let d = self.device(l);
        self.optional(&format!("blk.{l}.{name}"), d)
    }
    /// A weight of a layer.
    fn layer(&mut self, l: usize, name: &str) -> Result<Id, Error> {
        self.layer_opt(l, name)
            .ok_or_else(|| Error::MissingTensor(format!("blk.{l}.{name}")))
    }
    fn global(&mut self, name: &str) -> Result<Id, Error> {
        let d = self.x.w.output;
        self.optional(name, d)
            .ok_or_else(|| Error::MissingTensor(name.into()))
    }

    /// `build_inp_embd`.
    fn inp_embd(&mut self) -> Result<Id, Error> {
        let (n, e) = (self.n(), self.x.h.n_embd);
        let tokens = self.g.input("token ids", I32, [n, 1, 1, 1]);
        let embd = self.g.input("input embeddings", F32, [e, n, 1, 1]);
        let table = self
            .optional("token_embd.weight", Device::Cpu)
            .ok_or_else(|| Error::MissingTensor("token_embd.weight".into()))?;
        self.g.label("embeddings", -1);
        let cur = self.g.get_rows(table, tokens);
        self.g.expand(cur);
        self.g.expand(embd);
        Ok(cur)
    }
    fn inp_pos(&mut self) -> Id {
        let n = self.n();
        self.g.input("positions", I32, [n, 1, 1, 1])
    }
    fn inp_out_ids(&mut self) -> Id {
        let n = self.batch.n_outputs;
        self.g.input("output ids", I32, [n, 1, 1, 1])
    }

    /// `build_norm` and what its callback asks for: with full offload, the norm stays with its layer.
    fn norm(&mut self, cur: Id, w: Option<Id>, bias: Option<Id>, rms: bool, layer: i32) -> Id {
        let mut cur = match rms {
            true => self.g.rms_norm(cur),
            false => self.g.norm(cur),
        };
        if w.is_some() || bias.is_some() {
            self.stay(cur, layer);
        }
        let n = self.g.get(cur).ne[0];
        if let Some(w) = w {
            self.rows(w, n);
            cur = self.g.mul(cur, w);
        }
        if let Some(b) = bias {
            self.rows(b, n);
            cur = self.g.add(cur, b);
        }
        cur
    }
    fn stay(&mut self, cur: Id, layer: i32) {
        let asked = self.n() < 32 || self.x.w.full_offload;
        let Ok(layer) = usize::try_from(layer) else {
            return;
        };
        if asked {
            let at = self.backend(self.device(layer));
            if self.x.b.list[at].supports(&self.g, cur) {
                self.g.wished.push((cur, at));
            }
        }
    }
    /// RMS norm with a weight of the layer.
    fn rms(&mut self, cur: Id, l: usize, name: &str) -> Result<Id, Error> {
        let w = self.layer(l, name)?;
        Ok(self.norm(cur, Some(w), None, true, l as i32))
    }
    /// Notes a weight whose rows are not as long as what they meet.
    fn rows(&mut self, w: Id, n: u64) {
        let found = self.g.get(w).ne[0];
        if found == n || self.wrong.is_some() {
            return;
        }
        let key = self.weights.iter().find(|x| *x.1 == w).map(|x| x.0.0);
        let name = key.and_then(|i| self.x.w.name(i)).unwrap_or_default();
        self.wrong = Some(Error::WrongShape {
            name: name.to_string(),
            problem: format!("rows of {found}, expected {n}"),
        });
    }

    /// `build_lora_mm` without adapters.
    fn mm(&mut self, w: Id, cur: Id) -> Id {
        let n = self.g.get(cur).ne[0];
        self.rows(w, n);
        self.g.mul_mat(w, cur)
    }

    /// The last layer's rows that have logits.
    fn pick(&mut self, l: usize, cur: Id, other: Id, ids: Id) -> (Id, Id) {
        if l + 1 != self.x.h.n_layer {
            return (cur, other);
        }
        (self.g.get_rows(cur, ids), self.g.get_rows(other, ids))
    }

    /// The head: norm, logits, and what follows them.
    fn head(&mut self, cur: Id, rms: bool, capped: bool) -> Result<(), Error> {
        let normed = self.output_norm(cur, rms)?;
        self.logits(normed, capped)
    }

    /// The head where all rows are normed, kept as a result, and picked only then.
    fn head_picked(&mut self, cur: Id, ids: Id) -> Result<(), Error> {
        let all = self.output_norm(cur, true)?;
        self.g.get_mut(all).output = true;
        let normed = self.g.get_rows(all, ids);
        self.logits(normed, false)
    }

    fn output_norm(&mut self, cur: Id, rms: bool) -> Result<Id, Error> {
        self.g.label("output norm", -1);
        let name = match self.x.h.arch {
            Arch::Lfm2 => "token_embd_norm",
            _ => "output_norm",
        };
        let w = self.global(&format!("{name}.weight"))?;
        let b = self.optional(&format!("{name}.bias"), self.x.w.output);
        Ok(self.norm(cur, Some(w), b, rms, -1))
    }

    fn logits(&mut self, normed: Id, capped: bool) -> Result<(), Error> {
        if self.x.s.embeddings && self.x.h.arch == Arch::Lfm2 {
            // this architecture makes no logits then
            self.g.expand(normed);
            self.g.get_mut(normed).output = true;
            return Ok(());
        }
        self.g.label("logits", -1);
        let head = self
            .x
            .w
            .head()
            .ok_or_else(|| Error::MissingTensor("output.weight".into()))?;
        let head = self.leaf(head);
        let mut cur = self.mm(head, normed);
        if let Some(b) = self.optional("output.bias", self.x.w.output) {
            cur = self.g.add(cur, b);
        }
        if capped {
            cur = self.g.scale(cur);
            cur = self.g.unary(super::ggml::Unary::Tanh, cur);
            cur = self.g.scale(cur);
        }
        self.g.expand(cur);
        // the embeddings and the logits are results
        self.g.get_mut(normed).output = true;
        self.g.get_mut(cur).output = true;
        Ok(())
    }
}
