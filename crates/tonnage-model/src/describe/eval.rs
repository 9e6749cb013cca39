//! Evaluation of a description's expressions against a configuration.

use super::expr::{Expr, Node, Op};
use super::format::Description;
use crate::error::ModelError;
use serde_json::Value as Json;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Deepest chain of fields that depend on one another.
const MAX_CHAIN: u32 = 16;
/// Longest list that an expression may walk.
const MAX_LIST: usize = 100_000;

/// What an expression yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    List(Rc<Vec<Value<'a>>>),
    /// A list or an object of the configuration.
    Json(&'a Json),
}

impl<'a> Value<'a> {
    /// A configuration's value; numbers without fraction or exponent are whole.
    pub fn from_json(v: &'a Json) -> Value<'a> {
        match v {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => n
                .as_i64()
                .map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int),
            Json::String(s) => Value::Text(s),
            Json::Array(_) | Json::Object(_) => Value::Json(v),
        }
    }
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a fraction",
            Value::Text(_) => "a text",
            Value::List(_) | Value::Json(Json::Array(_)) => "a list",
            Value::Json(_) => "an object",
        }
    }
    fn items(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Value::List(v) => Some(v.to_vec()),
            Value::Json(Json::Array(v)) if v.len() <= MAX_LIST => {
                Some(v.iter().map(Value::from_json).collect())
            }
            _ => None,
        }
    }
    fn float(&self) -> Option<f64> {
        match self {
            Value::Int(i) => Some(*i as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }
    fn same(&self, other: &Value<'a>) -> bool {
        match (self, other) {
            (Value::Int(_), Value::Float(_)) | (Value::Float(_), Value::Int(_)) => {
                self.float() == other.float()
            }
            (Value::List(_), _) | (_, Value::List(_)) => match (self.items(), other.items()) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
            _ => self == other,
        }
    }
}

/// One description over one configuration: fields, derived names and the locals of the blocks being built.
pub struct Scope<'a> {
    pub description: &'a Description,
    config: &'a Json,
    memo: RefCell<HashMap<&'a str, Value<'a>>>,
    locals: RefCell<Vec<(&'a str, Value<'a>)>>,
    chain: Cell<u32>,
}

impl<'a> Scope<'a> {
    pub fn new(description: &'a Description, config: &'a Json) -> Scope<'a> {
        Scope {
            description,
            config,
            memo: RefCell::default(),
            locals: RefCell::default(),
            chain: Cell::new(0),
        }
    }
    /// The configuration.
    pub fn config(&self) -> &'a Json {
        self.config
    }
    /// Number of locals, to [`Scope::pop`] to.
    pub fn mark(&self) -> usize {
        self.locals.borrow().len()
    }
    pub fn push(&self, name: &'a str, value: Value<'a>) {
        self.locals.borrow_mut().push((name, value));
    }
    pub fn pop(&self, mark: usize) {
        self.locals.borrow_mut().truncate(mark);
    }
    /// The value of an expression.
    ///
    /// # Errors
    /// A missing field, or what is wrong in the expression, with its text.
    pub fn value(&self, e: &'a Expr) -> Result<Value<'a>, ModelError> {
        self.node(&e.node).map_err(|why| match why {
            Stop::Model(e) => e,
            Stop::Words(w) => self.fault(&e.text, &w),
        })
    }
    /// An error in this description's expression or entry.
    pub fn fault(&self, place: &str, problem: &str) -> ModelError {
        ModelError::Description {
            model_type: self.description.model_type.clone(),
            place: place.to_string(),
            problem: problem.to_string(),
        }
    }
    /// A condition; null is false.
    pub fn condition(&self, e: &'a Expr) -> Result<bool, ModelError> {
        match self.value(e)? {
            Value::Bool(b) => Ok(b),
            Value::Null => Ok(false),
            other => Err(self.fault(
                &e.text,
                &format!("must be true or false, is {}", other.kind()),
            )),
        }
    }
    /// A whole number within limits.
    pub fn whole(&self, e: &'a Expr, least: u64, most: u64) -> Result<u64, ModelError> {
        match self.value(e)? {
            Value::Int(i) if i >= least as i64 && i as u64 <= most => Ok(i as u64),
            Value::Int(i) => Err(ModelError::field(
                &e.text,
                format!("{i} is impossible here (it must be from {least} to {most})"),
            )),
            other => Err(ModelError::field(
                &e.text,
                format!("must be a whole number, is {}", other.kind()),
            )),
        }
    }
    /// A probability; null is 0.
    pub fn probability(&self, e: &'a Expr) -> Result<f64, ModelError> {
        let v = self.value(e)?;
        match v.float() {
            Some(p) if (0.0..=1.0).contains(&p) => Ok(p),
            Some(p) => Err(ModelError::field(
                &e.text,
                format!("{p} is not a probability (0 to 1)"),
            )),
            None if v == Value::Null => Ok(0.0),
            None => Err(ModelError::field(
                &e.text,
                format!("must be a number, is {}", v.kind()),
            )),
        }
    }
    /// A size of a tensor.
    pub fn size(&self, e: &'a Expr) -> Result<u64, ModelError> {
        self.whole(e, 1, u64::from(u32::MAX))
    }
    /// An object of the configuration (a nested `text_config`).
    pub fn object(&self, e: &'a Expr) -> Result<&'a Json, ModelError> {
        match self.value(e)? {
            Value::Json(v @ Json::Object(_)) => Ok(v),
            other => Err(ModelError::field(
                &e.text,
                format!("must be an object, is {}", other.kind()),
            )),
        }
    }

    fn name(&self, name: &'a str) -> Result<Value<'a>, Stop> {
        if let Some((_, v)) = self.locals.borrow().iter().rev().find(|(n, _)| *n == name) {
            return Ok(v.clone());
        }
        if let Some(v) = self.memo.borrow().get(name) {
            return Ok(v.clone());
        }
        if name == "config" {
            return Ok(Value::Json(self.config));
        }
        let d = self.description;
        let value = if let Some(e) = d.derived.get(name) {
            self.outside_locals(name, &e.node)?
        } else if let Some(default) = d.fields.get(name) {
            match self.config.get(name) {
                Some(Json::Null) if d.nullable.iter().any(|n| n == name) => Value::Null,
                None | Some(Json::Null) => self.outside_locals(name, &default.node)?,
                Some(v) => Value::from_json(v),
            }
        } else if d.required.iter().any(|n| n == name) {
            match self.config.get(name) {
                None | Some(Json::Null) => {
                    return Err(Stop::Model(ModelError::field(
                        name,
                        format!("is missing (model_type `{}` needs it)", d.model_type),
                    )));
                }
                Some(v) => Value::from_json(v),
            }
        } else {
            return Err(format!("`{name}` is neither a field nor a derived name").into());
        };
        self.memo.borrow_mut().insert(name, value.clone());
        Ok(value)
    }

    /// Defaults and derived names see the configuration only, not the locals of whoever asks.
    fn outside_locals(&self, name: &str, node: &'a Node) -> Result<Value<'a>, Stop> {
        if self.chain.get() >= MAX_CHAIN {
            return Err(format!("`{name}` depends on itself").into());
        }
        self.chain.set(self.chain.get() + 1);
        let locals = self.locals.take();
        let value = self.node(node);
        self.locals.replace(locals);
        self.chain.set(self.chain.get() - 1);
        value
    }

    fn node(&self, n: &'a Node) -> Result<Value<'a>, Stop> {
        Ok(match n {
            Node::Null => Value::Null,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(i) => Value::Int(*i),
            Node::Float(x) => Value::Float(*x),
            Node::Text(s) => Value::Text(s),
            Node::List(items) => {
                let items = items
                    .iter()
                    .map(|i| self.node(i))
                    .collect::<Result<Vec<_>, _>>()?;
                // comparing lists of lists of lists multiplies
                if items.iter().any(|i| i.items().is_some()) {
                    return Err("a list holds single values".to_string().into());
                }
                Value::List(Rc::new(items))
            }
            Node::Name(name) => self.name(name)?,
            Node::Member(of, field) => match self.node(of)? {
                Value::Json(Json::Object(o)) => o.get(field).map_or(Value::Null, Value::from_json),
                Value::Null => Value::Null,
                other => return Err(format!("{} has no field `{field}`", other.kind()).into()),
            },
            Node::Index(of, i) => match (self.node(of)?, self.node(i)?) {
                (Value::Null, _) => Value::Null,
                (list, Value::Int(i)) => {
                    let at = |n: usize| {
                        usize::try_from(i)
                            .ok()
                            .filter(|i| *i < n)
                            .ok_or_else(|| Stop::Words(format!("there is no element {i} of {n}")))
                    };
                    match &list {
                        Value::List(v) => v[at(v.len())?].clone(),
                        Value::Json(Json::Array(v)) => Value::from_json(&v[at(v.len())?]),
                        _ => return Err(format!("{} has no elements", list.kind()).into()),
                    }
                }
                (Value::Json(Json::Object(o)), Value::Text(k)) => {
                    o.get(k).map_or(Value::Null, Value::from_json)
                }
                (_, i) => return Err(format!("{} is not an index", i.kind()).into()),
            },
            Node::Call(f, args) => {
                let args = args
                    .iter()
                    .map(|a| self.node(a))
                    .collect::<Result<Vec<_>, _>>()?;
                call(f, &args)?
            }
            Node::Not(x) => match self.node(x)? {
                Value::Bool(b) => Value::Bool(!b),
                Value::Null => Value::Bool(true),
                other => return Err(format!("`not` of {}", other.kind()).into()),
            },
            Node::Neg(x) => arithmetic(Op::Sub, &Value::Int(0), &self.node(x)?)?,
            Node::If(c, yes, no) => {
                if self.truth(c)? {
                    self.node(yes)?
                } else {
                    self.node(no)?
                }
            }
            Node::Binary(op, a, b) => match op {
                Op::And => Value::Bool(self.truth(a)? && self.truth(b)?),
                Op::Or => Value::Bool(self.truth(a)? || self.truth(b)?),
                Op::Else => match self.node(a)? {
                    Value::Null => self.node(b)?,
                    v => v,
                },
                Op::Eq => Value::Bool(self.node(a)?.same(&self.node(b)?)),
                Op::Ne => Value::Bool(!self.node(a)?.same(&self.node(b)?)),
                Op::In => {
                    let (x, list) = (self.node(a)?, self.node(b)?);
                    match list.items() {
                        Some(items) => Value::Bool(items.iter().any(|i| i.same(&x))),
                        None => {
                            return Err(format!(
                                "`in` looks into a list, not into {}",
                                list.kind()
                            )
                            .into());
                        }
                    }
                }
                Op::Lt | Op::Le | Op::Gt | Op::Ge => {
                    let (a, b) = (self.node(a)?, self.node(b)?);
                    let (Some(x), Some(y)) = (a.float(), b.float()) else {
                        return Err(format!("{} and {} have no order", a.kind(), b.kind()).into());
                    };
                    Value::Bool(match op {
                        Op::Lt => x < y,
                        Op::Le => x <= y,
                        Op::Gt => x > y,
                        _ => x >= y,
                    })
                }
                _ => arithmetic(*op, &self.node(a)?, &self.node(b)?)?,
            },
        })
    }

    fn truth(&self, n: &'a Node) -> Result<bool, Stop> {
        match self.node(n)? {
            Value::Bool(b) => Ok(b),
            Value::Null => Ok(false),
            other => Err(format!("a condition must be true or false, not {}", other.kind()).into()),
        }
    }
}

/// Why an evaluation stopped.
enum Stop {
    Model(ModelError),
    Words(String),
}

impl From<String> for Stop {
    fn from(s: String) -> Stop {
        Stop::Words(s)
    }
}

fn arithmetic<'a>(op: Op, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>, String> {
    if let (Value::Int(x), Value::Int(y)) = (a, b) {
        let value = match op {
            Op::Add => x.checked_add(*y),
            Op::Sub => x.checked_sub(*y),
            Op::Mul => x.checked_mul(*y),
            Op::Div | Op::FloorDiv | Op::Rem if *y == 0 => {
                return Err(format!("{x} is divided by zero"));
            }
            Op::Div if x.checked_rem(*y) != Some(0) => {
                return Err(format!("{x} is not divisible by {y}"));
            }
            Op::Div => x.checked_div(*y),
            Op::FloorDiv => x.checked_div_euclid(*y),
            Op::Rem => x.checked_rem_euclid(*y),
            _ => None,
        };
        return value
            .map(Value::Int)
            .ok_or_else(|| "the number is too large".to_string());
    }
    let (Some(x), Some(y)) = (a.float(), b.float()) else {
        return Err(format!("arithmetic with {} and {}", a.kind(), b.kind()));
    };
    let value = match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        Op::Div => x / y,
        Op::FloorDiv => (x / y).floor(),
        Op::Rem => x.rem_euclid(y),
        _ => f64::NAN,
    };
    if value.is_finite() {
        Ok(Value::Float(value))
    } else {
        Err("the result is not a finite number".into())
    }
}

fn rounded<'a>(x: &Value<'a>, f: fn(f64) -> f64) -> Result<Value<'a>, String> {
    match x {
        Value::Int(i) => Ok(Value::Int(*i)),
        Value::Float(x) if x.abs() < 9e15 => Ok(Value::Int(f(*x) as i64)),
        other => Err(format!("{} cannot be rounded", other.kind())),
    }
}

fn call<'a>(f: &str, args: &[Value<'a>]) -> Result<Value<'a>, String> {
    match (f, args) {
        ("floor", [x]) => rounded(x, f64::floor),
        ("ceil", [x]) => rounded(x, f64::ceil),
        ("min", [Value::Int(a), Value::Int(b)]) => Ok(Value::Int(*a.min(b))),
        ("max", [Value::Int(a), Value::Int(b)]) => Ok(Value::Int(*a.max(b))),
        ("ceil_div", [Value::Int(a), Value::Int(b)]) if *b > 0 => a
            .checked_add(b - 1)
            .map(|n| Value::Int(n.div_euclid(*b)))
            .ok_or_else(|| "the number is too large".into()),
        ("round_up", [Value::Int(a), Value::Int(m)]) if *m > 0 => a
            .checked_add(m - 1)
            .and_then(|n| n.div_euclid(*m).checked_mul(*m))
            .map(Value::Int)
            .ok_or_else(|| "the number is too large".into()),
        ("len", [Value::Text(s)]) => Ok(Value::Int(s.chars().count() as i64)),
        ("len", [Value::Json(Json::Object(o))]) => Ok(Value::Int(o.len() as i64)),
        ("len", [x]) => x
            .items()
            .map(|v| Value::Int(v.len() as i64))
            .ok_or_else(|| format!("{} has no length", x.kind())),
        ("is_list", [x]) => Ok(Value::Bool(matches!(
            x,
            Value::List(_) | Value::Json(Json::Array(_))
        ))),
        // the n-th character of a pattern such as "M-M*"
        ("char", [Value::Text(s), Value::Int(i)]) => {
            let s: &'a str = s;
            usize::try_from(*i)
                .ok()
                .and_then(|i| s.get(i..i + 1))
                .map(Value::Text)
                .ok_or_else(|| format!("there is no character {i}"))
        }
        ("starts_with", [Value::Text(s), Value::Text(p)]) => Ok(Value::Bool(s.starts_with(p))),
        ("ends_with", [Value::Text(s), Value::Text(p)]) => Ok(Value::Bool(s.ends_with(p))),
        _ => {
            let kinds: Vec<&str> = args.iter().map(Value::kind).collect();
            Err(format!("there is no function {f}({})", kinds.join(", ")))
        }
    }
}
