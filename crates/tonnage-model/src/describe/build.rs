//! From a description and a configuration to the module tree.

use super::compile::compile;
use super::eval::{Scope, Value};
use super::format::{Class, Description, Entry, Surplus};
use super::plan::Plan;
use super::{registry, unknown_type};
use crate::error::ModelError;
use crate::net::{Kind, ModuleId, Net, NetBuilder, ParamId, ParamSpec};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::rc::Rc;

/// Most modules of one model; the largest published one (93 layers of 896 experts) has 340,000.
pub const MAX_MODULES: usize = 600_000;
/// Most lines registered: blocks within blocks multiply.
const MAX_STEPS: usize = 4_000_000;
/// Most repetitions of one block.
const MAX_EACH: u64 = 100_000;
/// Deepest nesting of blocks.
const MAX_DEPTH: u32 = 24;
/// Most elements of one tensor.
const MAX_ELEMENTS: u64 = 1 << 48;
/// Most elements of all tensors.
const MAX_ALL: u64 = 1 << 56;

/// A module tree with what each parameter is for.
#[derive(Clone, Debug)]
pub struct Described {
    pub net: Net,
    /// By [`ParamId`].
    pub classes: Vec<Class>,
    /// By [`ParamId`]: of `.1` such tensors (or slices of this one) `.0` work for a token.
    pub active: Vec<Option<(u64, u64)>>,
    /// What a checkpoint may hold beside: name and elements.
    pub surplus: Vec<(String, u64)>,
    /// What a published count may leave out.
    pub omitted: Vec<(String, u64)>,
    /// The forward section, resolved against the tree.
    pub plan: Option<Rc<Plan>>,
}

impl Described {
    /// Parameters that work for one token: all but the experts that are not chosen.
    pub fn active_count(&self) -> u64 {
        let mut groups: HashMap<(u64, u64), u64> = HashMap::new();
        for (p, share) in self.net.params.iter().zip(&self.active) {
            *groups.entry(share.unwrap_or((1, 1))).or_default() += p.shape.numel();
        }
        groups
            .into_iter()
            .map(|((of, all), n)| (u128::from(n) * u128::from(of) / u128::from(all.max(1))) as u64)
            .sum()
    }
}

struct State {
    classes: Vec<Class>,
    active: Vec<Option<(u64, u64)>>,
    names: HashMap<String, ParamId>,
    modules: usize,
    /// Elements of all tensors so far.
    elements: u64,
    /// Lines registered so far.
    steps: usize,
    depth: u32,
    class: Class,
    share: Option<(u64, u64)>,
    /// Length of the path at which the description in hand begins, with its dot.
    prefix: String,
    /// Probability of each dropout.
    dropouts: HashMap<ModuleId, f64>,
}

/// Builds the tree of `description` over `config`.
///
/// # Errors
/// A missing or impossible field, or a mistake in the description.
pub fn build(description: &Description, config: &Json) -> Result<Described, ModelError> {
    let scope = Scope::new(description, config);
    let (net, state) = tree(&scope, "root")?;
    if net.params.is_empty() {
        return Err(scope.fault("blocks.root", "describes no parameter"));
    }
    let elements = |parts| -> Result<Vec<(String, u64)>, ModelError> {
        let mut out = Vec::new();
        for part in parts {
            if let Some(n) = beside(&scope, part, &net, &state)? {
                out.push((part.name.clone(), n));
            }
        }
        Ok(out)
    };
    let (surplus, omitted) = (
        elements(&description.surplus)?,
        elements(&description.omitted)?,
    );
    let plan = match &description.forward {
        Some(f) => Some(Rc::new(compile(f, &scope, &net, &state.dropouts)?)),
        None => None,
    };
    Ok(Described {
        plan,
        net,
        classes: state.classes,
        active: state.active,
        surplus,
        omitted,
    })
}

/// The elements of something beside the parameters; None where its condition does not hold.
fn beside<'a>(
    scope: &Scope<'a>,
    s: &'a Surplus,
    net: &Net,
    state: &State,
) -> Result<Option<u64>, ModelError> {
    if !s.when.as_ref().map_or(Ok(true), |w| scope.condition(w))? {
        return Ok(None);
    }
    Ok(Some(match (&s.elements, &s.block, &s.block_scales) {
        (Some(e), None, None) => scope.whole(e, 0, MAX_ELEMENTS)?,
        (None, Some(b), None) => tree(scope, b)?.0.param_count(),
        (None, None, Some([rows, columns])) => {
            let (rows, columns) = (scope.size(rows)?, scope.size(columns)?);
            let scales = |(p, class): (&ParamSpec, &Class)| match net.module(p.module).kind {
                Kind::Linear { input, output }
                    if p.shape.ndim() == 2 && s.classes.contains(class) =>
                {
                    output.div_ceil(rows) * input.div_ceil(columns)
                }
                _ => 0,
            };
            net.params.iter().zip(&state.classes).map(scales).sum()
        }
        _ => {
            return Err(scope.fault(
                &s.name,
                "must be exactly one of elements, block, block_scales",
            ));
        }
    }))
}

fn tree(scope: &Scope, block: &str) -> Result<(Net, State), ModelError> {
    let mut b = NetBuilder::new();
    let mut st = State {
        classes: vec![],
        active: vec![],
        names: HashMap::new(),
        modules: 0,
        elements: 0,
        steps: 0,
        depth: 0,
        class: Class::Other,
        share: None,
        prefix: String::new(),
        dropouts: HashMap::new(),
    };
    st.block(&mut b, scope, block)?;
    Ok((b.finish(), st))
}

impl State {
    fn block<'a>(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope<'a>,
        name: &str,
    ) -> Result<(), ModelError> {
        let Some(entries) = scope.description.blocks.get(name) else {
            return Err(scope.fault(name, "there is no such block"));
        };
        if self.depth >= MAX_DEPTH {
            return Err(scope.fault(name, "blocks are nested too deeply"));
        }
        self.depth += 1;
        for e in entries {
            self.entry(b, scope, e)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn entry<'a>(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope<'a>,
        e: &'a Entry,
    ) -> Result<(), ModelError> {
        if !e.when.as_ref().map_or(Ok(true), |w| scope.condition(w))? {
            return Ok(());
        }
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(scope.fault("blocks", "too many lines: a block repeats itself"));
        }
        let outer = (self.class, self.share);
        self.class = match e.class {
            Some(c) => c,
            None if matches!(self.class, Class::Vision | Class::Audio) => self.class,
            None if e.norm.is_some() => Class::Norm,
            None if e.embedding.is_some() => Class::Embedding,
            None => self.class,
        };
        let mark = scope.mark();
        match (&e.each, &e.name) {
            (Some(each), Some(name)) => self.repeat(b, scope, e, each, name)?,
            _ => {
                if let Some(active) = &e.active {
                    self.share = self.share_of(scope, e, active, None)?;
                }
                self.once(b, scope, e, e.name.as_deref())?;
            }
        }
        scope.pop(mark);
        (self.class, self.share) = outer;
        Ok(())
    }

    fn share_of<'a>(
        &self,
        scope: &Scope<'a>,
        e: &'a Entry,
        active: &'a super::Expr,
        each: Option<u64>,
    ) -> Result<Option<(u64, u64)>, ModelError> {
        let all = match (&e.of, each, &e.param) {
            (Some(of), ..) => scope.whole(of, 1, MAX_EACH)?,
            (None, Some(n), _) => n,
            (None, None, Some(sizes)) if !sizes.is_empty() => scope.size(&sizes[0])?,
            _ => {
                return Err(scope.fault(
                    e.name.as_deref().unwrap_or("a block"),
                    "`active` needs `of`",
                ));
            }
        };
        Ok(Some((scope.whole(active, 0, all)?, all)))
    }

    fn repeat<'a>(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope<'a>,
        e: &'a Entry,
        each: &'a super::Expr,
        name: &str,
    ) -> Result<(), ModelError> {
        let count = scope.whole(each, 0, MAX_EACH)?;
        let from = e
            .from
            .as_ref()
            .map_or(Ok(0), |f| scope.whole(f, 0, MAX_EACH))?;
        if count == 0 {
            return Ok(());
        }
        if let Some(active) = &e.active {
            self.share = self.share_of(scope, e, active, Some(count))?;
        }
        self.module(scope)?;
        b.scope(name, |b| {
            for i in from..from + count {
                let mark = scope.mark();
                scope.push(e.index.as_deref().unwrap_or("i"), Value::Int(i as i64));
                self.once(b, scope, e, Some(&i.to_string()))?;
                scope.pop(mark);
            }
            Ok(())
        })
    }

    /// Counts a module.
    fn module(&mut self, scope: &Scope) -> Result<(), ModelError> {
        self.modules += 1;
        if self.modules > MAX_MODULES {
            return Err(scope.fault(
                "blocks",
                &format!("the configuration asks for more than {MAX_MODULES} modules"),
            ));
        }
        Ok(())
    }

    fn once<'a>(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope<'a>,
        e: &'a Entry,
        name: Option<&str>,
    ) -> Result<(), ModelError> {
        let with = e
            .with
            .iter()
            .map(|(n, x)| Ok((n.as_str(), scope.value(x)?)))
            .collect::<Result<Vec<_>, ModelError>>()?;
        for (n, v) in with {
            scope.push(n, v);
        }
        if let Some(sizes) = &e.param {
            let sizes = self.sizes(scope, sizes)?;
            self.param(b, scope, e, name.unwrap_or_default(), &sizes)?;
            return Ok(());
        }
        if let Some(sizes) = &e.buffer {
            let sizes = self.sizes(scope, sizes)?;
            self.room(&b.path(), &sizes)?;
            b.buffer(name.unwrap_or_default(), &sizes, e.dtype.map(|t| t.0));
            return Ok(());
        }
        let Some(name) = name else {
            return self.inside(b, scope, e);
        };
        self.module(scope)?;
        let kind = match (&e.linear, &e.conv1d, &e.embedding) {
            (Some([input, output]), ..) => Kind::Linear {
                input: scope.size(input)?,
                output: scope.size(output)?,
            },
            (_, Some([input, output]), _) => Kind::Conv1d {
                input: scope.size(input)?,
                output: scope.size(output)?,
            },
            (.., Some([rows, width])) => Kind::Embedding {
                rows: scope.size(rows)?,
                width: scope.size(width)?,
            },
            _ if e.norm.is_some() => Kind::Norm,
            _ if e.conv.is_some() => Kind::Conv2d,
            _ if e.dropout.is_some() => Kind::Dropout,
            _ => Kind::Container,
        };
        let p = match &e.dropout {
            Some(p) => Some(scope.probability(p)?),
            None => None,
        };
        b.scope_kind(name, kind, |b| {
            if let Some(p) = p {
                self.dropouts.insert(b.id(), p);
            }
            self.inside(b, scope, e)
        })
    }

    /// What is inside the module that has just been opened (or in place, for a block without a name).
    fn inside<'a>(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope<'a>,
        e: &'a Entry,
    ) -> Result<(), ModelError> {
        if let Some(block) = &e.block {
            return self.block(b, scope, block);
        }
        if let Some(other) = &e.other {
            let Value::Text(model_type) = scope.value(&other.model_type)? else {
                return Err(
                    scope.fault(&other.model_type.text, "must be the name of a description")
                );
            };
            let text = registry::text(model_type).ok_or_else(|| unknown_type(model_type))?;
            let description = Description::parse(text)?;
            let config = match &other.config {
                Some(c) => scope.object(c)?,
                None => scope.config(),
            };
            let inner = Scope::new(&description, config);
            let path = b.path();
            let outer = std::mem::replace(
                &mut self.prefix,
                if path.is_empty() {
                    path
                } else {
                    format!("{path}.")
                },
            );
            self.block(b, &inner, other.block.as_deref().unwrap_or("root"))?;
            self.prefix = outer;
            return Ok(());
        }
        let has_bias = |default: bool| e.bias.as_ref().map_or(Ok(default), |x| scope.condition(x));
        let (weight, bias, width) = match (&e.linear, &e.conv1d, &e.embedding, &e.norm, &e.conv) {
            (Some([i, o]), ..) => {
                let (i, o) = (scope.size(i)?, scope.size(o)?);
                (vec![o, i], has_bias(false)?, o)
            }
            (_, Some([i, o]), ..) => {
                let (i, o) = (scope.size(i)?, scope.size(o)?);
                (vec![i, o], has_bias(true)?, o)
            }
            (_, _, Some([r, w]), ..) => (vec![scope.size(r)?, scope.size(w)?], false, 1),
            (_, _, _, Some(w), _) => {
                let w = scope.size(w)?;
                let weight = e.weight.as_ref().map_or(Ok(true), |x| scope.condition(x))?;
                (if weight { vec![w] } else { vec![] }, has_bias(false)?, w)
            }
            (.., Some(sizes)) => {
                let sizes = self.sizes(scope, sizes)?;
                let out = sizes.first().copied().unwrap_or(1);
                (sizes, has_bias(true)?, out)
            }
            _ => return Ok(()),
        };
        let tied = e.tied.as_ref().map_or(Ok(true), |t| scope.condition(t))?;
        match e.tie.as_ref().filter(|_| tied) {
            Some(target) => {
                let full = format!("{}{target}", self.prefix);
                let id = *self.names.get(&full).ok_or_else(|| {
                    scope.fault("tie", &format!("there is no parameter `{full}` before it"))
                })?;
                b.tie("weight", id);
            }
            None if weight.is_empty() => {}
            None => self.param(b, scope, e, "weight", &weight)?,
        }
        if bias {
            self.param(b, scope, e, "bias", &[width])?;
        }
        Ok(())
    }

    fn sizes<'a>(
        &self,
        scope: &Scope<'a>,
        sizes: &'a [super::Expr],
    ) -> Result<Vec<u64>, ModelError> {
        sizes.iter().map(|s| scope.size(s)).collect()
    }

    /// Counts a tensor's elements.
    fn room(&mut self, path: &str, sizes: &[u64]) -> Result<(), ModelError> {
        let elements = sizes
            .iter()
            .try_fold(1u64, |n, s| n.checked_mul(*s))
            .filter(|n| *n <= MAX_ELEMENTS);
        let Some(elements) = elements else {
            return Err(ModelError::field(
                path,
                format!("a tensor of {sizes:?} elements is impossible"),
            ));
        };
        self.elements += elements;
        if self.elements > MAX_ALL {
            return Err(ModelError::field(
                path,
                "with this tensor the model has more than 2^56 elements, which is impossible",
            ));
        }
        Ok(())
    }

    fn param(
        &mut self,
        b: &mut NetBuilder,
        scope: &Scope,
        e: &Entry,
        local: &str,
        sizes: &[u64],
    ) -> Result<(), ModelError> {
        self.room(&b.path(), sizes)?;
        if self.classes.len() >= MAX_MODULES * 2 {
            return Err(scope.fault("blocks", "too many tensors"));
        }
        let id = b.param_dtype(local.to_string(), sizes, e.dtype.map(|t| t.0));
        self.classes.push(self.class);
        self.active.push(self.share);
        // only embeddings and linears outside of experts are ever tied to
        if self.share.is_none() {
            let path = b.path();
            self.names.insert(
                if path.is_empty() {
                    local.to_string()
                } else {
                    format!("{path}.{local}")
                },
                id,
            );
        }
        Ok(())
    }
}
