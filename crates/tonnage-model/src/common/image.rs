//! Leaf modules of image models.

use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Tensor};

/// Kernel, stride, padding and groups of a convolution (square, no dilation).
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub kernel: u64,
    pub stride: u64,
    pub padding: u64,
    pub groups: u64,
}

impl Geometry {
    /// A square kernel without padding or groups.
    pub fn new(kernel: u64, stride: u64, padding: u64) -> Geometry {
        Geometry {
            kernel,
            stride,
            padding,
            groups: 1,
        }
    }
}

/// `nn.Conv2d`.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    pub id: ModuleId,
    weight: ParamId,
    bias: Option<ParamId>,
    geometry: Geometry,
}

impl Conv2d {
    pub fn new(
        b: &mut NetBuilder,
        name: &str,
        input: u64,
        output: u64,
        g: Geometry,
        bias: bool,
    ) -> Conv2d {
        b.scope_kind(name, Kind::Conv2d, |b| Conv2d {
            weight: b.param("weight", &[output, input / g.groups, g.kernel, g.kernel]),
            bias: bias.then(|| b.param("bias", &[output])),
            id: b.id(),
            geometry: g,
        })
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let g = &self.geometry;
        m.within(self.id, || {
            let bias = self.bias.map(|p| m.weight(p));
            ops::conv2d(
                &m.cx,
                x,
                m.weight(self.weight),
                bias,
                g.stride,
                g.padding,
                g.groups,
            )
        })
    }
}

/// `nn.BatchNorm2d` with running statistics.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm2d {
    pub id: ModuleId,
    weight: ParamId,
    bias: ParamId,
}

impl BatchNorm2d {
    pub fn new(b: &mut NetBuilder, name: &str, channels: u64) -> BatchNorm2d {
        b.scope_kind(name, Kind::BatchNorm, |b| {
            let weight = b.param("weight", &[channels]);
            let bias = b.param("bias", &[channels]);
            b.buffer("running_mean", &[channels], None);
            b.buffer("running_var", &[channels], None);
            b.buffer("num_batches_tracked", &[], Some(ScalarType::I64));
            BatchNorm2d {
                id: b.id(),
                weight,
                bias,
            }
        })
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let s = &m.buffers[self.id.0 as usize];
            ops::batch_norm(
                &m.cx,
                x,
                m.weight(self.weight),
                m.weight(self.bias),
                [&s[0], &s[1]],
                m.training,
            )
        })
    }
}
