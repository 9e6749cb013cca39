//! ConvNeXt of timm 1.0 (timm/models/convnext.py): depthwise convolutions, the feed-forward part on channels-last views, so that
//! every image is channels-last after the stem. Case `timm-convnext-t-plain-fp32-sgd_momentum-b16`.

use super::{Arch, Batch, Built, Output};
use crate::common::image::{Conv2d, Geometry};
use crate::layers::{LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction};
use tonnage_sim::{Shape, Tensor};

/// Depth and width of the four stages.
pub struct Sizes {
    depths: [u64; 4],
    widths: [u64; 4],
}

/// The sizes of a model by its name in timm.
pub fn sizes(name: &str) -> Option<Sizes> {
    let (depth, width) = match name {
        "convnext_tiny" => (9, 96),
        "convnext_small" => (27, 96),
        "convnext_base" => (27, 128),
        "convnext_large" => (27, 192),
        _ => return None,
    };
    Some(Sizes {
        depths: [3, 3, depth, 3],
        widths: [1, 2, 4, 8].map(|k| k * width),
    })
}

struct Block {
    id: ModuleId,
    gamma: ParamId,
    conv: Conv2d,
    norm: LayerNorm,
    mlp: ModuleId,
    fc1: Linear,
    fc2: Linear,
}

struct Stage {
    id: ModuleId,
    downsample: Option<(LayerNorm, Conv2d)>,
    blocks: Vec<Block>,
}

struct ConvNext {
    stem: Conv2d,
    stem_norm: LayerNorm,
    stages: Vec<Stage>,
    head: ModuleId,
    norm: LayerNorm,
    fc: Linear,
}

/// From the sizes of its stages.
pub fn build(s: &Sizes, classes: u64) -> Built {
    let mut b = NetBuilder::new();
    let (stem, stem_norm) = b.scope("stem", |b| {
        let conv = Conv2d::new(b, "0", 3, s.widths[0], Geometry::new(4, 4, 0), true);
        (conv, LayerNorm::new(b, "1", s.widths[0], true, true))
    });
    let stages = b.scope("stages", |b| {
        (0..4)
            .map(|i| b.scope(&i.to_string(), |b| stage(b, s, i)))
            .collect()
    });
    let width = s.widths[3];
    let (head, norm, fc) = b.scope("head", |b| {
        let norm = LayerNorm::new(b, "norm", width, true, true);
        (b.id(), norm, Linear::new(b, "fc", width, classes, true))
    });
    Built {
        net: b.finish(),
        arch: Rc::new(ConvNext {
            stem,
            stem_norm,
            stages,
            head,
            norm,
            fc,
        }),
    }
}

fn stage(b: &mut NetBuilder, s: &Sizes, i: usize) -> Stage {
    let d = s.widths[i];
    let downsample = (i > 0).then(|| {
        b.scope("downsample", |b| {
            let from = s.widths[i - 1];
            let norm = LayerNorm::new(b, "0", from, true, true);
            (
                norm,
                Conv2d::new(b, "1", from, d, Geometry::new(2, 2, 0), true),
            )
        })
    });
    let blocks = b.scope("blocks", |b| {
        (0..s.depths[i])
            .map(|j| b.scope(&j.to_string(), |b| block(b, d)))
            .collect()
    });
    Stage {
        id: b.id(),
        downsample,
        blocks,
    }
}

fn block(b: &mut NetBuilder, d: u64) -> Block {
    let depthwise = Geometry {
        groups: d,
        ..Geometry::new(7, 1, 3)
    };
    let gamma = b.param("gamma", &[d]);
    let conv = Conv2d::new(b, "conv_dw", d, d, depthwise, true);
    let norm = LayerNorm::new(b, "norm", d, true, true);
    let (mlp, fc1, fc2) = b.scope("mlp", |b| {
        let fc1 = Linear::new(b, "fc1", d, 4 * d, true);
        (b.id(), fc1, Linear::new(b, "fc2", 4 * d, d, true))
    });
    Block {
        id: b.id(),
        gamma,
        conv,
        norm,
        mlp,
        fc1,
        fc2,
    }
}

/// `LayerNorm2d`: over the channels of an image.
fn norm2d(m: &Run, norm: &LayerNorm, x: &Tensor) -> Tensor {
    let mut x = ops::permute(&m.cx, x, &[0, 2, 3, 1]);
    x = norm.forward(m, &x);
    ops::permute(&m.cx, &x, &[0, 3, 1, 2])
}

impl Block {
    fn forward(&self, m: &Run, shortcut: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let mut x = self.conv.forward(m, shortcut);
            x = ops::permute(cx, &x, &[0, 2, 3, 1]);
            x = self.norm.forward(m, &x);
            x = m.within(self.mlp, || {
                let mut y = self.fc1.forward(m, &x);
                y = ops::gelu(cx, &y);
                y = self.fc2.forward(m, &y);
                y
            });
            x = ops::permute(cx, &x, &[0, 3, 1, 2]);
            let gamma = m.weight(self.gamma);
            x = {
                let g = ops::view(cx, gamma, Shape::new(&[1, gamma.numel(), 1, 1]));
                ops::mul(cx, &x, &g)
            };
            ops::add(cx, &x, shortcut)
        })
    }
}

impl Arch for ConvNext {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let images = batch
            .features
            .as_ref()
            .expect("an image model's batch has features");
        let mut x = self.stem.forward(m, images);
        x = norm2d(m, &self.stem_norm, &x);
        // each caller holds what it called with: the stem's image until all stages are done, a stage's until its blocks are
        let mut y = x.clone();
        for stage in &self.stages {
            y = m.within(stage.id, || {
                let mut x = y.clone();
                if let Some((norm, conv)) = &stage.downsample {
                    let n = norm2d(m, norm, &x);
                    x = conv.forward(m, &n);
                }
                let mut z = x.clone();
                for block in &stage.blocks {
                    z = block.forward(m, &z);
                }
                z
            });
        }
        x = y;
        x = m.within(self.head, || {
            let mut y = ops::global_avg_pool2d(cx, &x);
            y = norm2d(m, &self.norm, &y);
            y = ops::flatten(cx, &y, 1, -1);
            y = self.fc.forward(m, &y);
            y
        });
        let loss = batch
            .labels
            .as_ref()
            .map(|l| ops::cross_entropy(cx, &x, l, Reduction::Mean));
        Output {
            loss,
            logits: Some(x),
            rest: vec![],
        }
    }
}
