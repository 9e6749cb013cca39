//! Image models of timm 1.0 by name: plain vision transformers (timm/models/vision_transformer.py) here, ConvNeXt in its own file.
//! Case `timm-vit-s-plain-fp32-sgd_momentum-b16`.

use super::{Arch, Batch, Built, Head, Output, convnext, fields};
use crate::common::image::{Conv2d, Geometry};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction, SdpaArgs};
use tonnage_sim::{Shape, Tensor};

/// `timm.create_model(name, num_classes=...)`.
#[derive(Deserialize, Clone, Debug)]
pub struct Config {
    pub name: String,
    #[serde(default = "classes")]
    pub num_classes: u64,
}

fn classes() -> u64 {
    1000
}

/// A vision transformer's sizes.
struct Vit {
    image: u64,
    patch: u64,
    width: u64,
    depth: u64,
    heads: u64,
}

fn vit(name: &str) -> Option<Vit> {
    let mut parts = name.strip_prefix("vit_")?.split('_');
    let (width, depth, heads) = match parts.next()? {
        "tiny" => (192, 12, 3),
        "small" => (384, 12, 6),
        "base" => (768, 12, 12),
        "large" => (1024, 24, 16),
        _ => return None,
    };
    let patch = parts.next()?.strip_prefix("patch")?.parse().ok()?;
    let image = parts.next()?.parse().ok()?;
    let known = [(16, 224), (16, 384), (32, 224), (32, 384)].contains(&(patch, image));
    (known && parts.next().is_none()).then_some(Vit {
        image,
        patch,
        width,
        depth,
        heads,
    })
}

/// From the model's name.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if let Some(sizes) = convnext::sizes(&c.name) {
        return Ok(convnext::build(&sizes, c.num_classes));
    }
    let Some(v) = vit(&c.name) else {
        let known =
            "vit_{tiny,small,base,large}_patch{16,32}_{224,384}, convnext_{tiny,small,base,large}";
        return Err(ModelError::field(
            "name",
            format!("unknown timm model `{}`; known: {known}", c.name),
        ));
    };
    Ok(build_vit(&v, c.num_classes))
}

struct Block {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: u64,
}

struct VisionTransformer {
    patch: Conv2d,
    class_token: ParamId,
    positions: ParamId,
    blocks_id: ModuleId,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

fn build_vit(v: &Vit, classes: u64) -> Built {
    let d = v.width;
    let mut b = NetBuilder::new();
    let tokens = (v.image / v.patch).pow(2) + 1;
    let class_token = b.param("cls_token", &[1, 1, d]);
    let positions = b.param("pos_embed", &[1, tokens, d]);
    let patch = b.scope("patch_embed", |b| {
        Conv2d::new(b, "proj", 3, d, Geometry::new(v.patch, v.patch, 0), true)
    });
    let (blocks_id, blocks) = b.scope("blocks", |b| {
        let blocks = (0..v.depth)
            .map(|i| b.scope(&i.to_string(), |b| block(b, d, v.heads)))
            .collect();
        (b.id(), blocks)
    });
    let norm = LayerNorm::new(&mut b, "norm", d, true, true);
    let head = Linear::new(&mut b, "head", d, classes, true);
    Built {
        net: b.finish(),
        arch: Rc::new(VisionTransformer {
            patch,
            class_token,
            positions,
            blocks_id,
            blocks,
            norm,
            head,
        }),
    }
}

fn block(b: &mut NetBuilder, d: u64, heads: u64) -> Block {
    let id = b.id();
    let norm1 = LayerNorm::new(b, "norm1", d, true, true);
    let (attn, qkv, proj) = b.scope("attn", |b| {
        let qkv = Linear::new(b, "qkv", d, 3 * d, true);
        (b.id(), qkv, Linear::new(b, "proj", d, d, true))
    });
    let norm2 = LayerNorm::new(b, "norm2", d, true, true);
    let (mlp, fc1, fc2) = b.scope("mlp", |b| {
        let fc1 = Linear::new(b, "fc1", d, 4 * d, true);
        (b.id(), fc1, Linear::new(b, "fc2", 4 * d, d, true))
    });
    Block {
        id,
        attn,
        mlp,
        norm1,
        qkv,
        proj,
        norm2,
        fc1,
        fc2,
        heads,
    }
}

impl Block {
    fn attention(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let (b, n, c) = (x.size(0), x.size(1), x.size(2));
        let qkv = {
            let y = self.qkv.forward(m, x);
            let y = ops::reshape(cx, &y, Shape::new(&[b, n, 3, self.heads, c / self.heads]));
            ops::permute(cx, &y, &[2, 0, 3, 1, 4])
        };
        let parts = ops::unbind(cx, &qkv, 0);
        let mut x = ops::sdpa(cx, &parts[0], &parts[1], &parts[2], &SdpaArgs::default());
        x = ops::transpose(cx, &x, 1, 2);
        x = ops::reshape(cx, &x, Shape::new(&[b, n, c]));
        x = self.proj.forward(m, &x);
        drop(qkv);
        parts.into_iter().for_each(drop);
        x
    }

    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let x = {
                let h = self.norm1.forward(m, x);
                let a = m.within(self.attn, || self.attention(m, &h));
                drop(h);
                ops::add(cx, x, &a)
            };
            let h = self.norm2.forward(m, &x);
            let f = m.within(self.mlp, || {
                let mut y = self.fc1.forward(m, &h);
                y = ops::gelu(cx, &y);
                y = self.fc2.forward(m, &y);
                y
            });
            drop(h);
            ops::add(cx, &x, &f)
        })
    }
}

impl Arch for VisionTransformer {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let images = batch
            .features
            .as_ref()
            .expect("an image model's batch has features");
        let mut x = self.patch.forward(m, images);
        x = ops::flatten(cx, &x, 2, -1);
        x = ops::transpose(cx, &x, 1, 2);
        let token = {
            let t = m.weight(self.class_token);
            ops::expand(cx, t, t.shape.with(0, x.size(0)))
        };
        // the caller of `_pos_embed` holds the patches until it returns
        x = {
            let joined = ops::cat(cx, &[&token, &x], 1);
            ops::add(cx, &joined, m.weight(self.positions))
        };
        drop(token);
        x = m.within(self.blocks_id, || {
            let mut y = x.clone();
            for block in &self.blocks {
                y = block.forward(m, &y);
            }
            y
        });
        x = self.norm.forward(m, &x);
        x = ops::select(cx, &x, 1);
        x = self.head.forward(m, &x);
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
