//! bitsandbytes 0.50.2 (bitsandbytes/optim/optimizer.py: `Optimizer8bit.step`, `init_state` of `Optimizer1State`, `Optimizer2State`;
//! optim/ademamix.py). States are made in the first step; a step allocates nothing else.

use super::{Bnb, Optimizer, State, tagged, with_grad};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{self, F32, U8};

/// Tensors with fewer elements keep 32-bit states (`min_8bit_size`).
const MIN_8BIT: u64 = 4096;
/// Paged optimizers keep smaller states in the allocator (`get_state_buffer`).
const MIN_PAGED: u64 = 100_000;
/// Elements that share a scale.
const BLOCK: u64 = 256;

/// States in the allocator or in managed memory; the two maps of codes are shared by all parameters.
pub(super) struct Bnb8 {
    algorithm: Bnb,
    eight_bit: bool,
    paged: bool,
    /// `dynamic` and `udynamic`, on the device from the first 8-bit state on.
    maps: Option<(usize, Vec<Tensor>)>,
    made: Vec<bool>,
    /// Parameters whose states are overridden to 32 bit.
    wide: Vec<bool>,
    states: Vec<(usize, &'static str, Tensor)>,
    managed: u64,
}

impl Bnb8 {
    pub(super) fn new(algorithm: Bnb, eight_bit: bool, paged: bool, n: usize) -> Bnb8 {
        Bnb8 {
            algorithm,
            eight_bit,
            paged,
            maps: None,
            made: vec![false; n],
            wide: vec![false; n],
            states: Vec::new(),
            managed: 0,
        }
    }

    /// `GlobalOptimManager.register_module_override(module, "weight", {"optim_bits": 32})` for the parameters marked in `wide`.
    pub(super) fn keep_wide(mut self, wide: &[bool]) -> Bnb8 {
        self.wide.copy_from_slice(wide);
        self
    }

    fn two_states(&self) -> bool {
        matches!(self.algorithm, Bnb::Adam | Bnb::AdEmaMix)
    }

    fn keep(&mut self, cx: &Cx, i: usize, name: &'static str, t: Tensor) {
        self.states.push((i, name, tagged(cx, t)));
    }

    /// `get_state_buffer` and `_get_state_double_buffer`: `copies` tensors like the parameter, in one block.
    fn buffer(
        &mut self,
        cx: &Cx,
        i: usize,
        name: &'static str,
        p: &Tensor,
        copies: u64,
        dtype: ScalarType,
    ) {
        if self.paged && p.numel() >= MIN_PAGED {
            self.managed += copies * p.numel() * dtype.size();
        } else if copies == 1 {
            self.keep(cx, i, name, cx.empty_like(OpId::ZEROS_LIKE, p, dtype));
        } else {
            self.keep(
                cx,
                i,
                name,
                cx.empty(OpId::ZEROS, Shape::new(&[copies * p.numel()]), dtype),
            );
        }
    }

    fn scales(&mut self, cx: &Cx, i: usize, name: &'static str, p: &Tensor, copies: u64) {
        let n = copies * p.numel().div_ceil(BLOCK);
        self.keep(cx, i, name, cx.empty(OpId::ZEROS, Shape::new(&[n]), F32));
    }

    fn init(&mut self, cx: &Cx, i: usize, p: &Tensor) {
        let eight = self.eight_bit && !self.wide[i] && p.numel() >= MIN_8BIT;
        let dtype = if eight { U8 } else { F32 };
        if eight && self.maps.is_none() {
            let maps = (0..1 + self.two_states() as usize)
                .map(|_| tagged(cx, cx.empty(OpId::TO_COPY, Shape::new(&[256]), F32)));
            self.maps = Some((i, maps.collect()));
        }
        if self.algorithm == Bnb::AdEmaMix {
            if eight {
                self.scales(cx, i, "absmax1", p, 2);
                self.scales(cx, i, "absmax2", p, 1);
            }
            self.buffer(cx, i, "state1", p, 2, dtype);
            self.buffer(cx, i, "state2", p, 1, dtype);
            return;
        }
        self.buffer(cx, i, "state1", p, 1, dtype);
        if self.two_states() {
            self.buffer(cx, i, "state2", p, 1, dtype);
        }
        if eight {
            self.scales(cx, i, "absmax1", p, 1);
            if self.two_states() {
                self.scales(cx, i, "absmax2", p, 1);
            }
        }
    }
}

impl Optimizer for Bnb8 {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        for (i, p, _) in with_grad(params) {
            if !std::mem::replace(&mut self.made[i], true) {
                self.init(cx, i, p);
            }
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        let own = self.states.iter().map(|(parameter, name, tensor)| State {
            parameter: *parameter,
            name,
            tensor,
        });
        let maps = self.maps.iter().flat_map(|(parameter, maps)| {
            maps.iter()
                .zip(["qmap1", "qmap2"])
                .map(|(tensor, name)| State {
                    parameter: *parameter,
                    name,
                    tensor,
                })
        });
        let mut v: Vec<State<'_>> = own.chain(maps).collect();
        v.sort_by_key(|s| s.parameter);
        v
    }

    fn managed_bytes(&self) -> u64 {
        self.managed
    }
}
