//! Mixed precision: which operators cast their inputs, and the cache of cast parameters
//! (torch 2.11, aten/src/ATen/autocast_mode.cpp).

use crate::context::Cx;
use crate::ops;
use crate::tensor::Tensor;
use crate::timeline::Category;
use rustc_hash::FxHashMap;
use tonnage_units::ScalarType;

/// The state of autocast for one thread.
#[derive(Default)]
pub struct Autocast {
    pub(crate) dtype: Option<ScalarType>,
    depth: u32,
    /// storage id of a leaf parameter -> its copy; insertion order is kept for the order in which the copies are dropped
    cache: FxHashMap<u32, usize>,
    copies: Vec<Option<Tensor>>,
    cache_enabled_off: bool,
}

impl Cx {
    /// The low-precision dtype in force, if any.
    #[inline]
    pub fn autocast_dtype(&self) -> Option<ScalarType> {
        self.0.autocast.borrow().dtype
    }

    /// Runs `f` under `torch.autocast("cuda", dtype)`; `None` is `enabled=False`. The cache goes when the outermost region ends.
    pub fn autocast<R>(&self, dtype: Option<ScalarType>, f: impl FnOnce() -> R) -> R {
        let old = self.enter_autocast(dtype);
        let r = f();
        self.exit_autocast(old);
        r
    }

    /// The start of a region; hand the result to [`Cx::exit_autocast`].
    pub fn enter_autocast(&self, dtype: Option<ScalarType>) -> Option<ScalarType> {
        let mut a = self.0.autocast.borrow_mut();
        a.depth += 1;
        std::mem::replace(&mut a.dtype, dtype)
    }

    /// The end of a region.
    pub fn exit_autocast(&self, old: Option<ScalarType>) {
        let dead = {
            let mut a = self.0.autocast.borrow_mut();
            a.dtype = old;
            a.depth -= 1;
            if a.depth == 0 {
                a.cache.clear();
                std::mem::take(&mut a.copies)
            } else {
                Vec::new()
            }
        };
        drop(dead);
    }

    /// Casts an input of an operator on the low-precision list: floating point tensors only, and the copy of an fp32 leaf that
    /// wants a gradient is cached (autocast_mode.cpp, cached_cast).
    #[inline]
    pub fn lower(&self, x: &Tensor) -> Tensor {
        match self.autocast_dtype() {
            Some(d) => self.cached_cast(d, x),
            None => x.clone(),
        }
    }

    /// Casts an input of an operator on the fp32 list.
    #[inline]
    pub fn raise(&self, x: &Tensor) -> Tensor {
        match self.autocast_dtype() {
            Some(_) => self.cached_cast(ScalarType::F32, x),
            None => x.clone(),
        }
    }

    fn cached_cast(&self, to: ScalarType, x: &Tensor) -> Tensor {
        if !x.dtype.is_float() || x.dtype == to || x.dtype == ScalarType::F64 {
            return x.clone();
        }
        let cacheable = x.dtype == ScalarType::F32 && x.leaf && x.requires_grad() && !x.view;
        if !cacheable || self.0.autocast.borrow().cache_enabled_off {
            return ops::to_dtype(self, x, to);
        }
        if let Some(i) = self.0.autocast.borrow().cache.get(&x.storage.id)
            && let Some(t) = &self.0.autocast.borrow().copies[*i]
        {
            return t.clone();
        }
        let t = ops::to_dtype(self, x, to);
        self.tag(&t, Category::AutocastCopy);
        let mut a = self.0.autocast.borrow_mut();
        let i = a.copies.len();
        a.copies.push(Some(t.clone()));
        a.cache.insert(x.storage.id, i);
        t
    }
}
