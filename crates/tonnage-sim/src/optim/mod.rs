//! temporary
use crate::{Cx, OpId, Tensor};
#[derive(Clone, Copy)]
pub struct OptimizerKind;
impl std::str::FromStr for OptimizerKind { type Err = (); fn from_str(s: &str) -> Result<Self, ()> { if s == "adamw_foreach" { Ok(OptimizerKind) } else { Err(()) } } }
pub struct Opt { st: Vec<(Tensor, Tensor)> }
pub fn create(_: OptimizerKind, _: &Cx, _: &[Tensor]) -> Box<Opt> { Box::new(Opt { st: vec![] }) }
impl Opt {
    pub fn step(&mut self, cx: &Cx, ps: &[Tensor]) {
        if self.st.is_empty() { for p in ps { let a = cx.empty(OpId::ZEROS_LIKE, p.shape, p.dtype); let b = cx.empty(OpId::ZEROS_LIKE, p.shape, p.dtype); self.st.push((a, b)); } }
        let mut t: Vec<Tensor> = ps.iter().map(|p| cx.empty(OpId::SQRT, p.shape, p.dtype)).collect();
        while let Some(x) = t.pop() { drop(x) }
    }
    pub fn managed_bytes(&self) -> u64 { 0 }
}
pub struct GradScaler;
impl GradScaler { pub fn new(_: &Cx) -> Self { GradScaler } pub fn scale(&mut self, _: &Cx, l: &Tensor) -> Tensor { l.clone() } pub fn unscale(&mut self, _: &Cx, _: &[Tensor]) {} pub fn step(&mut self, _: &Cx, _: &mut Opt, _: &[Tensor]) {} pub fn update(&mut self, _: &Cx) {} }
pub fn clip_grad_norm(_: &Cx, _: &[Tensor]) {}
pub fn zero_grad(_: &Cx, ps: &[Tensor], none: bool) { if none { for p in ps { p.take_grad(); } } }
