//! The file format of a description: TOML, strict, each file optionally on top of another one.

use super::expr::Expr;
use super::forward::Forward;
use super::registry;
use crate::error::ModelError;
use serde::Deserialize;
use std::collections::BTreeMap;
use tonnage_units::ScalarType;

/// A model's modules and tensors over its configuration fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    pub model_type: String,
    /// Where the structure is from: library, version, file.
    pub source: String,
    /// Fields without which nothing can be said.
    pub required: Vec<String>,
    /// Fields whose explicit null has a meaning of its own (everywhere else null is absent).
    pub nullable: Vec<String>,
    /// Other fields with the library's defaults.
    pub fields: BTreeMap<String, Expr>,
    /// Names that follow from fields, whatever the configuration says.
    pub derived: BTreeMap<String, Expr>,
    /// Lists of modules and tensors; `root` is the model.
    pub blocks: BTreeMap<String, Vec<Entry>>,
    /// What a published checkpoint may hold beyond the model's parameters.
    pub surplus: Vec<Surplus>,
    /// What a published count may leave out.
    pub omitted: Vec<Surplus>,
    pub forward: Option<Forward>,
}

/// One line of a block: a module, a repeated block or a bare tensor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The local name. Without one, a block's lines are registered in place.
    pub name: Option<String>,
    /// Only if this holds.
    pub when: Option<Expr>,
    /// Repeated so often, as children 0, 1, ... of `name`.
    pub each: Option<Expr>,
    /// The first child's number.
    pub from: Option<Expr>,
    /// The local that holds the child's number (`i` if not given).
    #[serde(rename = "as")]
    pub index: Option<String>,
    /// Locals of the block.
    #[serde(default)]
    pub with: BTreeMap<String, Expr>,
    /// The component class of everything inside, unless it says otherwise.
    pub class: Option<Class>,
    /// Of `of` (default: the repetitions, or the first size) only so many work for a token.
    pub active: Option<Expr>,
    pub of: Option<Expr>,

    /// The lines of another block.
    pub block: Option<String>,
    /// A block of another description over a nested configuration.
    #[serde(rename = "use")]
    pub other: Option<Use>,
    /// `nn.Linear`: [input, output].
    pub linear: Option<[Expr; 2]>,
    /// transformers' `Conv1D`: [input, output].
    pub conv1d: Option<[Expr; 2]>,
    /// `nn.Embedding`: [rows, width].
    pub embedding: Option<[Expr; 2]>,
    /// A norm over this width.
    pub norm: Option<Expr>,
    /// A convolution's weight: [output, input / groups, kernel...].
    pub conv: Option<Vec<Expr>>,
    /// A bare parameter of the module around it.
    pub param: Option<Vec<Expr>>,
    /// A buffer of the module around it.
    pub buffer: Option<Vec<Expr>>,
    /// `nn.Dropout` with this probability.
    pub dropout: Option<Expr>,

    /// Whether there is a bias (no, if not given; always for `conv1d` and `conv` unless it says no).
    pub bias: Option<Expr>,
    /// Whether a norm has a weight (yes, if not given).
    pub weight: Option<Expr>,
    /// The parameter, by its name from this description's root, that is the weight, if `tied` holds.
    pub tie: Option<String>,
    pub tied: Option<Expr>,
    /// The element type, where it is not the model's.
    pub dtype: Option<Type>,
}

/// Another description in place of a block.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    #[serde(rename = "type")]
    pub model_type: Expr,
    /// The nested configuration (the same one, if not given).
    pub config: Option<Expr>,
    /// `root`, if not given.
    pub block: Option<String>,
}

/// Elements that a published checkpoint may hold beside the parameters.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surplus {
    pub name: String,
    pub when: Option<Expr>,
    /// So many elements ...
    pub elements: Option<Expr>,
    /// ... or those of a block ...
    pub block: Option<String>,
    /// ... or a scale for each block of so many rows and columns of each quantised `nn.Linear`, counted by [`super::build`].
    pub block_scales: Option<[Expr; 2]>,
    /// The classes whose linears are quantised.
    #[serde(default)]
    pub classes: Vec<Class>,
}

/// An element type by its name (`float32`, `bf16`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type(pub ScalarType);

impl<'de> Deserialize<'de> for Type {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Type, D::Error> {
        let s = String::deserialize(d)?;
        s.parse().map(Type).map_err(serde::de::Error::custom)
    }
}

/// What a parameter is for; the lines of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Embedding,
    Attention,
    Mlp,
    Experts,
    Router,
    Ssm,
    Conv,
    Norm,
    Head,
    Vision,
    Audio,
    Projector,
    Other,
}

impl Class {
    pub const ALL: [Class; 13] = [
        Class::Embedding,
        Class::Attention,
        Class::Mlp,
        Class::Experts,
        Class::Router,
        Class::Ssm,
        Class::Conv,
        Class::Norm,
        Class::Head,
        Class::Vision,
        Class::Audio,
        Class::Projector,
        Class::Other,
    ];
    /// The name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Embedding => "embedding",
            Class::Attention => "attention",
            Class::Mlp => "mlp",
            Class::Experts => "experts",
            Class::Router => "router",
            Class::Ssm => "ssm",
            Class::Conv => "conv",
            Class::Norm => "norm",
            Class::Head => "head",
            Class::Vision => "vision",
            Class::Audio => "audio",
            Class::Projector => "projector",
            Class::Other => "other",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model_type: String,
    #[serde(default)]
    source: Option<String>,
    extends: Option<String>,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    nullable: Vec<String>,
    #[serde(default)]
    fields: BTreeMap<String, Expr>,
    #[serde(default, rename = "let")]
    derived: BTreeMap<String, Expr>,
    #[serde(default)]
    blocks: BTreeMap<String, Vec<Entry>>,
    #[serde(default)]
    surplus: Option<Vec<Surplus>>,
    #[serde(default)]
    omitted: Option<Vec<Surplus>>,
    forward: Option<Forward>,
}

/// Longest chain of descriptions on top of one another.
const MAX_EXTENDS: u32 = 8;
/// Largest description, in bytes.
const MAX_FILE: usize = 256 * 1024;

impl Description {
    /// Reads a description; what it extends comes from the embedded ones.
    ///
    /// # Errors
    /// [`ModelError::Description`] with line and column.
    pub fn parse(text: &str) -> Result<Description, ModelError> {
        Description::parse_at(text, 0)
    }

    fn parse_at(text: &str, depth: u32) -> Result<Description, ModelError> {
        let fault = |model_type: &str, place: &str, problem: String| ModelError::Description {
            model_type: model_type.to_string(),
            place: place.to_string(),
            problem,
        };
        if text.len() > MAX_FILE {
            return Err(fault(
                "?",
                "file",
                format!(
                    "{} bytes are too many for a description (at most {MAX_FILE})",
                    text.len()
                ),
            ));
        }
        let file: File = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start.min(text.len()));
            let before = text.get(..at).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
            fault(
                "?",
                &format!("line {line}, column {column}"),
                hinted(e.message()),
            )
        })?;
        let mut d = match &file.extends {
            None => Description::default(),
            Some(_) if depth >= MAX_EXTENDS => {
                return Err(fault(
                    &file.model_type,
                    "extends",
                    "too many descriptions on top of one another".into(),
                ));
            }
            Some(base) => {
                let text = registry::text(base).ok_or_else(|| {
                    fault(
                        &file.model_type,
                        "extends",
                        format!("there is no description `{base}`"),
                    )
                })?;
                Description::parse_at(text, depth + 1)?
            }
        };
        for name in file.required.iter().chain(file.fields.keys()) {
            d.derived.remove(name);
            d.required.retain(|r| r != name);
            d.fields.remove(name);
        }
        for name in file.derived.keys() {
            d.required.retain(|r| r != name);
        }
        d.model_type = file.model_type;
        if let Some(source) = file.source {
            d.source = source;
        }
        d.required.extend(file.required);
        d.nullable.extend(file.nullable);
        d.fields.extend(file.fields);
        d.derived.extend(file.derived);
        d.blocks.extend(file.blocks);
        if let Some(s) = file.surplus {
            d.surplus = s;
        }
        if let Some(s) = file.omitted {
            d.omitted = s;
        }
        if file.forward.is_some() {
            d.forward = file.forward;
        }
        for (name, entries) in &d.blocks {
            for (n, e) in entries.iter().enumerate() {
                e.check().map_err(|problem| {
                    fault(&d.model_type, &format!("blocks.{name}[{n}]"), problem)
                })?;
            }
        }
        Ok(d)
    }
}

/// A reader's complaint about an unknown name, with the nearest of those that it lists.
fn hinted(message: &str) -> String {
    let mut parts = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    match (unknown, parts.next()) {
        (true, Some(found)) => match tonnage_units::nearest(found, parts) {
            Some(n) => format!("{message}; did you mean `{n}`?"),
            None => message.to_string(),
        },
        _ => message.to_string(),
    }
}

impl Entry {
    /// Whether the line says exactly one thing that it can say.
    fn check(&self) -> Result<(), String> {
        let said = [
            self.block.is_some(),
            self.other.is_some(),
            self.linear.is_some(),
            self.conv1d.is_some(),
            self.embedding.is_some(),
            self.norm.is_some(),
            self.conv.is_some(),
            self.param.is_some(),
            self.buffer.is_some(),
            self.dropout.is_some(),
        ];
        if said.iter().filter(|s| **s).count() != 1 {
            return Err("must be exactly one of block, use, linear, conv1d, embedding, norm, conv, param, buffer, dropout".into());
        }
        let leaf = self.block.is_none() && self.other.is_none();
        if self.name.is_none() && leaf {
            return Err("a name is missing".into());
        }
        if self.each.is_some() && self.name.is_none() {
            return Err("a repeated block needs a name".into());
        }
        if self
            .name
            .as_ref()
            .is_some_and(|n| n.is_empty() || n.contains('.'))
        {
            return Err("a name is one part of a path: not empty, no dots".into());
        }
        let sized = [&self.conv, &self.param, &self.buffer];
        if sized.iter().any(|s| {
            s.as_ref()
                .is_some_and(|d| d.len() > tonnage_sim::shape::MAX_DIMS)
        }) {
            return Err(format!("at most {} sizes", tonnage_sim::shape::MAX_DIMS));
        }
        if !leaf
            && (self.bias.is_some()
                || self.tie.is_some()
                || self.dtype.is_some()
                || self.weight.is_some())
        {
            return Err(
                "bias, weight, tie and dtype belong to a module or tensor, not to a block".into(),
            );
        }
        if self.tie.is_some() && self.linear.is_none() && self.embedding.is_none() {
            return Err("only a linear or an embedding can be tied".into());
        }
        if self.from.is_some() && self.each.is_none() {
            return Err("`from` without `each`".into());
        }
        Ok(())
    }
}
