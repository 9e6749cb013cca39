//! Plays a kernel's script of temporaries and results.

use crate::context::Cx;
use crate::kernels::{Step, Steps};
use crate::ops::op::OpId;
use crate::shape::{Shape, Strides};
use crate::tensor::{Storage, Tensor};
use smallvec::SmallVec;
use std::rc::Rc;
use tonnage_units::ScalarType;

impl Cx {
    /// Allocates and frees what `steps` says and returns the results in order of their number; `output(i)` is the layout of
    /// result `i`. A temporary that the script does not free dies at its end, the first allocated first.
    pub fn play(
        &self,
        op: OpId,
        steps: &Steps,
        output: impl Fn(usize) -> (Shape, Strides, ScalarType),
    ) -> SmallVec<[Tensor; 4]> {
        let mut temporaries: SmallVec<[Option<Rc<Storage>>; 16]> = SmallVec::new();
        let mut outputs: SmallVec<[Option<Tensor>; 4]> = SmallVec::new();
        let noted = steps.question().is_some();
        let mut ids: SmallVec<[u32; 8]> = SmallVec::new();
        for step in steps {
            match *step {
                Step::Alloc(slot, bytes) => {
                    let slot = slot as usize;
                    if temporaries.len() <= slot {
                        temporaries.resize(slot + 1, None);
                    }
                    let block = self.raw(op, bytes);
                    if noted {
                        ids.push(block.id);
                    }
                    temporaries[slot] = Some(block);
                }
                Step::Free(slot) => temporaries[slot as usize] = None,
                Step::Output(i) => {
                    let i = i as usize;
                    if outputs.len() <= i {
                        outputs.resize(i + 1, None);
                    }
                    let (shape, strides, dtype) = output(i);
                    outputs[i] = Some(self.empty_strided(op, shape, strides, dtype));
                }
            }
        }
        if noted {
            self.note_played(steps, ids.into_iter());
        }
        outputs.into_iter().flatten().collect()
    }
}
