//! cuDNN's recurrent layers (the interface of cuDNN 8 and 9, which PyTorch uses since cuDNN 8.9.7).
//!
//! Weights have their real size and places: for each layer and direction the input matrices, then the recurrent ones, of
//! all gates, then the biases of both. How much a layer keeps for its backward pass is not public: it counts here as the
//! least that any backward pass needs, and the report says so (`inferred`). Workspaces are 0, as elsewhere in cuDNN.

use crate::missing::{call, done, handle};
use crate::state::{say, state};
use crate::types::*;
use serde_json::json;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard};

const REFUSED: i32 = 3000;
const LSTM: i32 = 2;
const GRU: i32 = 3;
const TRAINING: i32 = 1;
const PACKED: i32 = 1;

/// What `cudnnSetRNNDescriptor_v8` was told; counts are of elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rnn {
    pub mode: i32,
    pub bias: i32,
    pub directions: u64,
    pub kind: i32,
    pub input: u64,
    pub hidden: u64,
    /// Of an output: the projection's, or the hidden state's.
    pub output: u64,
    pub layers: u64,
}

/// Where a gate's matrix or bias lies, in elements from the start, and its two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: u64,
    pub rows: u64,
    pub columns: u64,
}

impl Rnn {
    fn gates(&self) -> u64 {
        match self.mode {
            LSTM => 4,
            GRU => 3,
            _ => 1,
        }
    }

    fn width(&self) -> u64 {
        match self.kind {
            1 => 8,
            2 | 9 => 2,
            _ => 4,
        }
    }

    fn projects(&self) -> bool {
        self.output != self.hidden
    }

    /// What a layer reads (layers count directions apart).
    fn reads(&self, layer: u64) -> u64 {
        if layer < self.directions {
            self.input
        } else {
            self.output * self.directions
        }
    }

    fn biases(&self) -> u64 {
        match self.bias {
            0 => 0,
            2 => 2,
            _ => 1,
        }
    }

    fn layer_elements(&self, layer: u64) -> u64 {
        let side = self.gates() * self.hidden;
        let project = if self.projects() {
            self.output * self.hidden
        } else {
            0
        };
        side * (self.reads(layer) + self.output + self.biases()) + project
    }

    /// Elements of all weights.
    pub fn elements(&self) -> u64 {
        (0..self.layers * self.directions)
            .map(|l| self.layer_elements(l))
            .sum()
    }

    /// A gate's matrix: `which` counts the input matrices, then the recurrent ones, then the projection.
    pub fn matrix(&self, layer: u64, which: u64) -> Option<Place> {
        let (g, h) = (self.gates(), self.hidden);
        let start: u64 = (0..layer).map(|l| self.layer_elements(l)).sum();
        let of_inputs = g * h * self.reads(layer);
        let place = |at, rows, columns| {
            Some(Place {
                at: start + at,
                rows,
                columns,
            })
        };
        match which {
            w if w < g => place(w * h * self.reads(layer), h, self.reads(layer)),
            w if w < 2 * g => place(of_inputs + (w - g) * h * self.output, h, self.output),
            w if w == 2 * g && self.projects() => {
                place(of_inputs + g * h * self.output, self.output, h)
            }
            _ => None,
        }
    }

    /// A gate's bias, by the same count.
    pub fn bias(&self, layer: u64, which: u64) -> Option<Place> {
        let (g, h) = (self.gates(), self.hidden);
        let biases = g * h * self.biases();
        let start: u64 = (0..=layer).map(|l| self.layer_elements(l)).sum::<u64>() - biases;
        (which < g * self.biases()).then_some(Place {
            at: start + which * h,
            rows: h,
            columns: 1,
        })
    }

    /// The least that backward needs of `tokens` (time steps times rows), in bytes: the gates' values (the gated recurrent
    /// unit's own recurrent term too), the cells of an LSTM, and the outputs of the layers that no caller sees.
    pub fn reserve(&self, tokens: u64) -> u64 {
        let kept = match self.mode {
            LSTM => 5,
            GRU => 4,
            _ => 0,
        };
        let inner = self.layers.saturating_sub(1) * self.output;
        let projected = if self.projects() {
            self.layers * self.hidden
        } else {
            0
        };
        tokens
            * self.directions
            * (self.layers * kept * self.hidden + inner + projected)
            * self.width()
    }
}

#[derive(Default)]
struct Known {
    layers: HashMap<usize, Rnn>,
    tokens: HashMap<usize, u64>,
    places: HashMap<usize, (Place, i32)>,
}

fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    KNOWN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn rnn(descriptor: usize) -> Option<Rnn> {
    known().layers.get(&descriptor).copied()
}

/// Says once what is inferred.
fn infer() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        let message = "cuDNN's recurrent layers: what they keep for backward is inferred (gates, cells and inner outputs, the least that a backward pass needs); their workspaces and dropout states count as 0, because cuDNN's sizes are not public";
        say(message);
        state()
            .report
            .line("inferred", json!({"what": "cudnn-rnn", "message": message}));
    }
}

fn tell(to: usize, address: &Out<usize>, place: Option<Place>, base: usize, r: &Rnn) {
    if to == 0 {
        return;
    }
    let Some(p) = place else {
        address.set(0);
        return;
    };
    known().places.insert(to, (p, r.kind));
    address.set(base + (p.at * r.width()) as usize);
}

api! {
    fn cudnnCreateRNNDescriptor(d: Out<usize>) -> i32 { d.set(handle()); OK }
    fn cudnnCreateRNNDataDescriptor(d: Out<usize>) -> i32 { d.set(handle()); OK }
    fn cudnnDestroyRNNDescriptor(d: usize) -> i32 { known().layers.remove(&d); OK }
    fn cudnnDestroyRNNDataDescriptor(d: usize) -> i32 { known().tokens.remove(&d); OK }
    fn cudnnDestroyTensorDescriptor(d: usize) -> i32 { known().places.remove(&d); OK }
    fn cudnnSetRNNDescriptor_v8(d: usize, _algorithm: i32, mode: i32, bias: i32, direction: i32, _input_mode: i32, kind: i32, _math: i32, _math_type: i32, input: i32, hidden: i32, projection: i32, layers: i32, _dropout: usize, _flags: u32) -> i32 {
        let count = |n: i32| n.max(0) as u64;
        let output = if mode == LSTM && projection > 0 { projection } else { hidden };
        let r = Rnn { mode, bias, directions: 1 + count(direction).min(1), kind, input: count(input), hidden: count(hidden), output: count(output), layers: count(layers) };
        known().layers.insert(d, r);
        OK
    }
    fn cudnnSetRNNDataDescriptor(d: usize, _kind: i32, layout: i32, longest: i32, rows: i32, _vector: i32, lengths: Out<i32>, _fill: usize) -> i32 {
        let rows = rows.max(0) as u64;
        let tokens = if layout == PACKED {
            (0..rows as usize).filter_map(|i| lengths.get_at(i)).map(|n| n.max(0) as u64).sum()
        } else {
            longest.max(0) as u64 * rows
        };
        known().tokens.insert(d, tokens);
        OK
    }
    fn cudnnGetRNNWeightSpaceSize(_h: usize, d: usize, n: Out<usize>) -> i32 {
        let Some(r) = rnn(d) else { return call("cudnnGetRNNWeightSpaceSize", REFUSED) };
        n.set((r.elements() * r.width()) as usize);
        OK
    }
    fn cudnnGetRNNWeightParams(_h: usize, d: usize, layer: i32, _n: usize, weights: usize, which: i32, m: usize, m_at: Out<usize>, b: usize, b_at: Out<usize>) -> i32 {
        let (Some(r), Ok(layer), Ok(which)) = (rnn(d), u64::try_from(layer), u64::try_from(which)) else {
            return call("cudnnGetRNNWeightParams", REFUSED);
        };
        tell(m, &m_at, r.matrix(layer, which), weights, &r);
        tell(b, &b_at, r.bias(layer, which), weights, &r);
        OK
    }
    fn cudnnGetTensorNdDescriptor(d: usize, asked: i32, kind: Out<i32>, n: Out<i32>, sides: Out<i32>, strides: Out<i32>) -> i32 {
        let Some((p, k)) = known().places.get(&d).copied() else {
            return call("cudnnGetTensorNdDescriptor", REFUSED);
        };
        kind.set(k);
        n.set(3);
        let all = [(1, p.rows * p.columns), (p.rows, p.columns), (p.columns, 1)];
        for (i, (side, stride)) in all.into_iter().take(asked.max(0) as usize).enumerate() {
            sides.set_at(i, side as i32);
            strides.set_at(i, stride as i32);
        }
        OK
    }
    fn cudnnGetRNNTempSpaceSizes(_h: usize, d: usize, mode: i32, x: usize, work: Out<usize>, reserve: Out<usize>) -> i32 {
        let tokens = known().tokens.get(&x).copied();
        let (Some(r), Some(tokens)) = (rnn(d), tokens) else {
            return call("cudnnGetRNNTempSpaceSizes", REFUSED);
        };
        infer();
        work.set(0);
        reserve.set(if mode == TRAINING { r.reserve(tokens) as usize } else { 0 });
        OK
    }
    fn cudnnDropoutGetStatesSize(_h: usize, n: Out<usize>) -> i32 { n.set(0); OK }
    fn cudnnRNNForward() -> i32 { done() }
    fn cudnnRNNBackwardData_v8() -> i32 { done() }
    fn cudnnRNNBackwardWeights_v8() -> i32 { done() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lstm() -> Rnn {
        Rnn {
            mode: LSTM,
            bias: 2,
            directions: 2,
            kind: 0,
            input: 128,
            hidden: 256,
            output: 256,
            layers: 2,
        }
    }

    #[test]
    fn weights_are_those_of_the_layers() {
        // torch.nn.LSTM(128, 256, num_layers=2, bidirectional=True) has this many
        let of = |i: u64| 4 * 256 * (i + 256 + 2);
        assert_eq!(lstm().elements(), 2 * of(128) + 2 * of(512));
        // torch.nn.LSTM(128, 256, proj_size=64): weight_hr too
        let p = Rnn {
            output: 64,
            directions: 1,
            layers: 1,
            ..lstm()
        };
        assert_eq!(p.elements(), 4 * 256 * (128 + 64 + 2) + 64 * 256);
        assert_eq!(
            p.matrix(0, 8),
            Some(Place {
                at: 4 * 256 * (128 + 64),
                rows: 64,
                columns: 256
            })
        );
    }

    #[test]
    fn places_follow_one_another_and_fill_the_space() {
        for r in [
            lstm(),
            Rnn {
                mode: GRU,
                output: 256,
                ..lstm()
            },
            Rnn {
                mode: 1,
                directions: 1,
                ..lstm()
            },
        ] {
            let mut at = 0;
            for layer in 0..r.layers * r.directions {
                for place in (0..2 * r.gates())
                    .map(|w| r.matrix(layer, w))
                    .chain((0..2 * r.gates()).map(|w| r.bias(layer, w)))
                {
                    let p = place.unwrap();
                    assert_eq!(p.at, at);
                    at += p.rows * p.columns;
                }
                assert_eq!(r.matrix(layer, 2 * r.gates()), None);
            }
            assert_eq!(at, r.elements());
        }
    }

    #[test]
    fn what_backward_needs() {
        let r = Rnn {
            directions: 1,
            layers: 1,
            ..lstm()
        };
        // four gates and a cell of each of ten tokens
        assert_eq!(r.reserve(10), 10 * 5 * 256 * 4);
        assert_eq!(
            Rnn { layers: 2, ..r }.reserve(10),
            10 * (2 * 5 + 1) * 256 * 4
        );
    }
}
