//! The key/value cache of a generating model (transformers 5.17 and 4.57.6, src/transformers/cache_utils.py).
//!
//! The driver of a job puts a [`Cache`] on the [`Run`]; attention layers hand their new keys and values to
//! [`Run::cached`] and attend over what it returns.

use crate::net::ModuleId;
use crate::run::Run;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::timeline::Category;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// How a cache holds its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// `DynamicCache`: grows by concatenation; sliding layers keep their window.
    Dynamic,
    /// `StaticCache`: one allocation of this many tokens a layer (sliding layers: at most their window).
    Static { len: u64 },
}

#[derive(Default)]
struct Layer {
    keys: Option<Tensor>,
    values: Option<Tensor>,
    /// The layer's other device tensors (a static layer's token counter, a sliding layer's window size).
    scalar: Option<Tensor>,
    window: Option<u64>,
    seen: u64,
}

/// One cache object: a layer for each attention module, in the order of their first use.
pub struct Cache {
    kind: CacheKind,
    layers: RefCell<Vec<(ModuleId, Layer)>>,
    /// Where the next layer probably is: attention modules come in the same order in each call.
    cursor: Cell<usize>,
}

impl Drop for Cache {
    /// A Python list's elements go last to first; a layer's attributes in the order of their first assignment.
    fn drop(&mut self) {
        let layers = self.layers.get_mut();
        while let Some((_, mut l)) = layers.pop() {
            drop(l.keys.take());
            drop(l.values.take());
            drop(l.scalar.take());
        }
    }
}

impl Cache {
    /// An empty cache; nothing is on the device before the first tokens.
    pub fn new(kind: CacheKind) -> Cache {
        Cache {
            kind,
            layers: RefCell::default(),
            cursor: Cell::new(0),
        }
    }

    /// How it holds its tokens.
    pub fn kind(&self) -> CacheKind {
        self.kind
    }

    /// Tokens that the first layer has seen.
    pub fn seen(&self) -> u64 {
        self.layers.borrow().first().map_or(0, |(_, l)| l.seen)
    }

    /// Bytes of the blocks asked for by keys and values now.
    pub fn bytes(&self) -> u64 {
        let of = |t: &Option<Tensor>| t.as_ref().map_or(0, |t| t.storage.bytes());
        self.layers
            .borrow()
            .iter()
            .map(|(_, l)| of(&l.keys) + of(&l.values))
            .sum()
    }

    fn at(&self, id: ModuleId, window: Option<u64>) -> usize {
        let mut layers = self.layers.borrow_mut();
        let hint = self.cursor.get();
        let i = if layers.get(hint).is_some_and(|l| l.0 == id) {
            hint
        } else {
            layers.iter().position(|l| l.0 == id).unwrap_or_else(|| {
                layers.push((
                    id,
                    Layer {
                        window,
                        ..Layer::default()
                    },
                ));
                layers.len() - 1
            })
        };
        self.cursor.set((i + 1) % layers.len());
        i
    }

    /// `past_key_values.update(k, v, layer_idx)` for k and v [B, heads, tokens, size]: the keys and values to attend over.
    pub fn update(
        &self,
        m: &Run,
        id: ModuleId,
        window: Option<u64>,
        k: &Tensor,
        v: &Tensor,
    ) -> (Tensor, Tensor) {
        let i = self.at(id, window);
        let mut layers = self.layers.borrow_mut();
        let l = &mut layers[i].1;
        match (self.kind, l.window) {
            (CacheKind::Dynamic, None) => l.grow(m, k, v),
            (CacheKind::Dynamic, Some(w)) => l.slide(m, w, k, v),
            (CacheKind::Static { len }, None) => l.fill(m, len, k, v),
            (CacheKind::Static { len }, Some(w)) => l.roll(m, len.min(w), k, v),
        }
    }

    /// What an attention's keys and values are, where it has been updated: cross attention makes them once.
    pub fn kept(&self, id: ModuleId) -> Option<(Tensor, Tensor)> {
        let layers = self.layers.borrow();
        let (_, l) = layers.iter().find(|l| l.0 == id)?;
        Some((l.keys.clone()?, l.values.clone()?))
    }

    /// `reorder_cache(beam_idx)`: every layer's keys, then its values, by `index_select` over the batch.
    pub fn reorder(&self, m: &Run, beams: u64) {
        for (_, l) in self.layers.borrow_mut().iter_mut() {
            for t in [&mut l.keys, &mut l.values] {
                if let Some(old) = t {
                    let new = m.cx.empty(OpId::INDEX, old.shape.with(0, beams), old.dtype);
                    m.cx.tag(&new, Category::KvCache);
                    *t = Some(new);
                }
            }
        }
    }
}

/// `torch.cat([old, new], dim=-2)`; an empty one-dimensional `old` is left out but the result is a new tensor all the same.
fn joined(m: &Run, old: Option<&Tensor>, new: &Tensor) -> Tensor {
    let y = match old {
        Some(old) => ops::cat(&m.cx, &[old, new], -2),
        None => ops::cat(&m.cx, &[new], -2),
    };
    m.cx.tag(&y, Category::KvCache);
    y
}

impl Layer {
    /// `DynamicLayer.update`.
    fn grow(&mut self, m: &Run, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        self.seen += k.size(2);
        let keys = joined(m, self.keys.as_ref(), k);
        self.keys = Some(keys.clone());
        let values = joined(m, self.values.as_ref(), v);
        self.values = Some(values.clone());
        (keys, values)
    }

    /// `DynamicSlidingWindowLayer.update`: attends over everything, keeps views of the last `window - 1` tokens.
    fn slide(&mut self, m: &Run, window: u64, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        if self.scalar.is_none() && m.options.stack.transformers_5() {
            let t = m.cx.empty(OpId::TO_COPY, Shape::new(&[]), ScalarType::I64);
            self.scalar = Some(t);
        }
        self.seen += k.size(2);
        let keys = joined(m, self.keys.as_ref(), k);
        let values = joined(m, self.values.as_ref(), v);
        let kept = |t: &Tensor| {
            let len = t.size(2);
            let n = len.min(window.saturating_sub(1));
            ops::slice(&m.cx, t, 2, len - n, n)
        };
        self.keys = Some(kept(&keys));
        self.values = Some(kept(&values));
        (keys, values)
    }

    /// Zeros of the full length at the first call, and 5.x's counter.
    fn allocate(&mut self, m: &Run, len: u64, k: &Tensor, v: &Tensor) {
        if self.keys.is_some() {
            return;
        }
        for (slot, like) in [(&mut self.keys, k), (&mut self.values, v)] {
            let t = m.cx.empty(OpId::ZEROS, like.shape.with(2, len), like.dtype);
            m.cx.tag(&t, Category::KvCache);
            *slot = Some(t);
        }
        self.scalar = five(m).then(|| m.cx.empty(OpId::TO_COPY, Shape::new(&[]), ScalarType::I64));
    }

    /// The layer's own keys and values, after `index_copy_` at the places of `tokens` new ones (4.57 is told the places).
    fn copied(&self, m: &Run, tokens: u64, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        if five(m) {
            let i64s = |op| m.cx.empty(op, Shape::new(&[tokens]), ScalarType::I64);
            let range = i64s(OpId::ARANGE);
            let position = i64s(OpId::ADD);
            drop(range);
            drop(position);
        }
        self.held(k, v)
    }

    fn held(&self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        match (&self.keys, &self.values) {
            (Some(k), Some(v)) => (k.clone(), v.clone()),
            _ => (k.clone(), v.clone()),
        }
    }

    /// `StaticLayer.update`: copies in place.
    fn fill(&mut self, m: &Run, len: u64, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        self.allocate(m, len, k, v);
        self.seen += k.size(2);
        self.copied(m, k.size(2), k, v)
    }

    /// `StaticSlidingWindowLayer.update` with room for `len` tokens: in place while there is room; attends over everything in the
    /// call that runs over; rolls by one token from then on (case `mistral-tiny-generate-bf16-static-window`).
    fn roll(&mut self, m: &Run, len: u64, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let cx = &m.cx;
        self.allocate(m, len, k, v);
        let (had, new) = (self.seen, k.size(2));
        self.seen += new;
        if had + new <= len {
            return self.copied(m, new, k, v);
        }
        if had >= len && new == 1 {
            let rolled = [k, v].map(|t| cx.empty(OpId::ROLL, t.shape.with(2, len), t.dtype));
            let index = cx.empty(OpId::TO_COPY, Shape::new(&[1]), ScalarType::I64);
            rolled.into_iter().for_each(drop);
            drop(index);
            return self.held(k, v);
        }
        if had == 0 {
            return (k.clone(), v.clone());
        }
        let kept = if had >= len { len - 1 } else { had };
        let (old_k, old_v) = self.held(k, v);
        let all = |old: &Tensor, new: &Tensor| {
            let old = ops::slice(cx, old, 2, len - kept, kept);
            ops::cat(cx, &[&old, new], -2)
        };
        (all(&old_k, k), all(&old_v, v))
    }
}

fn five(m: &Run) -> bool {
    m.options.stack.transformers_5()
}

impl Run {
    /// The cache of the call in progress.
    pub fn cache(&self) -> Option<Rc<Cache>> {
        self.cache.borrow().clone()
    }

    /// Tokens before this call's.
    pub fn past(&self) -> u64 {
        self.cache.borrow().as_ref().map_or(0, |c| c.seen())
    }

    /// New keys and values of attention module `id` through the cache, if there is one: what to attend over. `window`: the layer
    /// only looks back this far.
    pub fn cached(
        &self,
        id: ModuleId,
        window: Option<u64>,
        k: Tensor,
        v: Tensor,
    ) -> (Tensor, Tensor) {
        let Some(c) = self.cache() else {
            return (k, v);
        };
        let out = c.update(self, id, window, &k, &v);
        // `key_states, value_states = past_key_values.update(...)`
        drop(k);
        drop(v);
        out
    }
}
