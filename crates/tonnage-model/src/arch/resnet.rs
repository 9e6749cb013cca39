//! ResNets of torchvision 0.26 (torchvision/models/resnet.py): cases `resnet18-plain-fp32-sgd_momentum-b16`,
//! `resnet50-plain-amp_fp16-adamw_foreach-b32`.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::image::{BatchNorm2d, Conv2d, Geometry};
use crate::error::ModelError;
use crate::layers::Linear;
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::Tensor;
use tonnage_sim::ops::{self, Reduction};

/// The constructor's arguments.
#[derive(Deserialize, Clone, Debug)]
pub struct Config {
    /// `resnet18`, ...: a function of `torchvision.models`.
    pub name: String,
    #[serde(default = "classes")]
    pub num_classes: u64,
}

fn classes() -> u64 {
    1000
}

struct Block {
    id: ModuleId,
    /// Convolution and norm pairs on the main path; an activation follows each but the last.
    path: Vec<(Conv2d, BatchNorm2d)>,
    downsample: Option<(ModuleId, Conv2d, BatchNorm2d)>,
}

struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    layers: Vec<(ModuleId, Vec<Block>)>,
    fc: Linear,
}

/// From the constructor's arguments.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (bottleneck, depths) = match c.name.as_str() {
        "resnet18" => (false, [2, 2, 2, 2]),
        "resnet34" => (false, [3, 4, 6, 3]),
        "resnet50" => (true, [3, 4, 6, 3]),
        "resnet101" => (true, [3, 4, 23, 3]),
        "resnet152" => (true, [3, 8, 36, 3]),
        n => {
            let known = "resnet18, resnet34, resnet50, resnet101, resnet152";
            return Err(ModelError::field(
                "name",
                format!("unknown ResNet `{n}`; known: {known}"),
            ));
        }
    };
    let mut b = NetBuilder::new();
    let conv1 = Conv2d::new(&mut b, "conv1", 3, 64, Geometry::new(7, 2, 3), false);
    let bn1 = BatchNorm2d::new(&mut b, "bn1", 64);
    let mut input = 64;
    let mut layers = vec![];
    for (i, depth) in depths.into_iter().enumerate() {
        let planes = 64 << i;
        layers.push(b.scope(&format!("layer{}", i + 1), |b| {
            let blocks = (0..depth)
                .map(|j| {
                    let stride = if i > 0 && j == 0 { 2 } else { 1 };
                    block(b, &j.to_string(), &mut input, planes, stride, bottleneck)
                })
                .collect();
            (b.id(), blocks)
        }));
    }
    let fc = Linear::new(&mut b, "fc", input, c.num_classes, true);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(ResNet {
            conv1,
            bn1,
            layers,
            fc,
        }),
    })
}

fn block(
    b: &mut NetBuilder,
    name: &str,
    input: &mut u64,
    planes: u64,
    stride: u64,
    bottleneck: bool,
) -> Block {
    let one = |stride| Geometry::new(1, stride, 0);
    let three = |stride| Geometry::new(3, stride, 1);
    let (out, convs) = if bottleneck {
        let out = planes * 4;
        let convs = vec![
            (*input, planes, one(1)),
            (planes, planes, three(stride)),
            (planes, out, one(1)),
        ];
        (out, convs)
    } else {
        let convs = vec![(*input, planes, three(stride)), (planes, planes, three(1))];
        (planes, convs)
    };
    b.scope(name, |b| {
        let path = convs
            .into_iter()
            .enumerate()
            .map(|(i, (from, to, g))| {
                let conv = Conv2d::new(b, &format!("conv{}", i + 1), from, to, g, false);
                (conv, BatchNorm2d::new(b, &format!("bn{}", i + 1), to))
            })
            .collect();
        let downsample = (stride != 1 || *input != out).then(|| {
            b.scope("downsample", |b| {
                let conv = Conv2d::new(b, "0", *input, out, one(stride), false);
                (b.id(), conv, BatchNorm2d::new(b, "1", out))
            })
        });
        *input = out;
        Block {
            id: b.id(),
            path,
            downsample,
        }
    })
}

impl Block {
    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let mut identity = x.clone();
            let mut out = x.clone();
            for (i, (conv, bn)) in self.path.iter().enumerate() {
                out = conv.forward(m, &out);
                out = bn.forward(m, &out);
                if i + 1 < self.path.len() {
                    out = ops::relu_(cx, out);
                }
            }
            if let Some((id, conv, bn)) = &self.downsample {
                identity = m.within(*id, || {
                    let mut y = conv.forward(m, x);
                    y = bn.forward(m, &y);
                    y
                });
            }
            out = ops::add_(cx, out, &identity);
            out = ops::relu_(cx, out);
            drop(identity);
            out
        })
    }
}

impl Arch for ResNet {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let images = batch
            .features
            .as_ref()
            .expect("an image model's batch has features");
        let mut x = self.conv1.forward(m, images);
        x = self.bn1.forward(m, &x);
        x = ops::relu_(cx, x);
        x = ops::max_pool2d(cx, &x, 3, 2, 1);
        for (id, blocks) in &self.layers {
            x = m.within(*id, || {
                let mut y = x.clone();
                for block in blocks {
                    y = block.forward(m, &y);
                }
                y
            });
        }
        x = ops::global_avg_pool2d(cx, &x);
        x = ops::flatten(cx, &x, 1, -1);
        x = self.fc.forward(m, &x);
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
