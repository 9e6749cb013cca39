//! Hugging Face `config.json`.

use super::error::{Format, Position, Problem, ReadError};
use super::json::{Document, Limits, Parser};
use serde_json::Value;

/// Limits of a `config.json`; the largest ones list the labels of a classifier.
pub const LIMITS: Limits = Limits {
    bytes: 8 << 20,
    depth: 32,
    values: 500_000,
};

/// A configuration whose sizes are possible.
#[derive(Clone, Debug)]
pub struct Config {
    document: Document,
}

impl Config {
    /// The fields.
    pub fn value(&self) -> &Value {
        &self.document.value
    }
    /// Where a field's value stands (`text_config.hidden_size`).
    pub fn position(&self, path: &str) -> Option<Position> {
        self.document.places.get(path).copied()
    }
    /// `model_type`.
    ///
    /// # Errors
    /// It is missing, or not a text.
    pub fn model_type(&self) -> Result<&str, ReadError> {
        match self.value().get("model_type") {
            Some(Value::String(s)) => Ok(s),
            Some(v) => Err(self.wrong("model_type", "a text", v)),
            None => Err(ReadError {
                format: Format::Config,
                at: None,
                field: "model_type".into(),
                problem: Problem::Missing,
            }),
        }
    }

    fn error(&self, path: &str, problem: Problem) -> ReadError {
        ReadError {
            format: Format::Config,
            at: self.position(path),
            field: path.to_string(),
            problem,
        }
    }
    fn wrong(&self, path: &str, expected: &'static str, found: &Value) -> ReadError {
        let found = match found {
            Value::Null => "null".to_string(),
            Value::Bool(b) => b.to_string(),
            Value::Number(n) => n.to_string(),
            Value::String(_) => "a text".to_string(),
            Value::Array(_) => "a list".to_string(),
            Value::Object(_) => "an object".to_string(),
        };
        self.error(path, Problem::WrongType { expected, found })
    }
}

/// Reads a `config.json`.
///
/// # Errors
/// A mistake in the JSON, or an impossible size, with line, column and field.
pub fn parse(bytes: &[u8]) -> Result<Config, ReadError> {
    let mut parser = Parser::new(Format::Config, bytes, LIMITS)?;
    let mut document = Document::default();
    document.value = parser.value("", &mut document)?;
    parser.end()?;
    let config = Config { document };
    if !config.value().is_object() {
        return Err(config.wrong("", "an object", config.value()));
    }
    config.sizes("", config.value())?;
    Ok(config)
}

/// Fields that are sizes, with the largest value that any model may have. Absent and null say nothing.
const SIZES: [(&str, u64); 38] = [
    ("vocab_size", 1 << 26),
    ("padded_vocab_size", 1 << 26),
    ("hidden_size", 1 << 20),
    ("d_model", 1 << 20),
    ("n_embd", 1 << 20),
    ("dim", 1 << 20),
    ("embed_dim", 1 << 20),
    ("intermediate_size", 1 << 24),
    ("ffn_hidden_size", 1 << 24),
    ("hidden_dim", 1 << 24),
    ("n_inner", 1 << 24),
    ("d_ff", 1 << 24),
    ("ffn_dim", 1 << 24),
    ("encoder_ffn_dim", 1 << 24),
    ("decoder_ffn_dim", 1 << 24),
    ("moe_intermediate_size", 1 << 24),
    ("num_hidden_layers", 10_000),
    ("num_layers", 10_000),
    ("n_layer", 10_000),
    ("n_layers", 10_000),
    ("encoder_layers", 10_000),
    ("decoder_layers", 10_000),
    ("depth", 10_000),
    ("num_attention_heads", 1 << 16),
    ("num_key_value_heads", 1 << 16),
    ("num_heads", 1 << 16),
    ("n_head", 1 << 16),
    ("n_heads", 1 << 16),
    ("encoder_attention_heads", 1 << 16),
    ("decoder_attention_heads", 1 << 16),
    ("head_dim", 1 << 16),
    ("d_kv", 1 << 16),
    ("num_local_experts", 1 << 16),
    ("n_routed_experts", 1 << 16),
    ("max_position_embeddings", 1 << 32),
    ("n_positions", 1 << 32),
    ("image_size", 1 << 16),
    ("patch_size", 1 << 16),
];

/// Heads, the width they share, and where a width of its own for each head makes that unnecessary.
const HEADS: [(&str, &str, &[&str]); 6] = [
    (
        "num_attention_heads",
        "hidden_size",
        &[
            "head_dim",
            "kv_channels",
            "attention_head_dim",
            "qk_nope_head_dim",
            "block_configs",
        ],
    ),
    ("n_head", "n_embd", &["head_dim"]),
    ("n_head", "hidden_size", &["head_dim"]),
    ("n_heads", "dim", &["head_dim"]),
    ("encoder_attention_heads", "d_model", &["head_dim"]),
    ("decoder_attention_heads", "d_model", &["head_dim"]),
];

impl Config {
    /// Sizes of this object and of the configurations nested in it.
    fn sizes(&self, path: &str, object: &Value) -> Result<(), ReadError> {
        let Value::Object(fields) = object else {
            return Ok(());
        };
        let full = |name: &str| {
            if path.is_empty() {
                name.to_string()
            } else {
                format!("{path}.{name}")
            }
        };
        for (name, most) in SIZES {
            let value = match fields.get(name) {
                None => continue,
                Some(Value::Null) => {
                    if self.document.not_finite.contains(&full(name)) {
                        let value = "a number that is not finite".to_string();
                        let least = 1;
                        return Err(
                            self.error(&full(name), Problem::Impossible { value, least, most })
                        );
                    }
                    continue;
                }
                // image and patch sizes may be given for each side
                Some(Value::Array(sides)) if matches!(name, "image_size" | "patch_size") => {
                    for side in sides {
                        self.size(&full(name), side, most)?;
                    }
                    continue;
                }
                Some(v) => v,
            };
            self.size(&full(name), value, most)?;
        }
        let number = |name: &str| fields.get(name).and_then(Value::as_u64);
        for (heads, width, own) in HEADS {
            if let (Some(h), Some(w)) = (number(heads), number(width))
                && own
                    .iter()
                    .all(|o| fields.get(*o).is_none_or(Value::is_null))
                && w % h != 0
            {
                let problem = format!("{h} heads do not divide {width} {w}");
                return Err(self.error(&full(heads), Problem::Contradiction(problem)));
            }
        }
        if let (Some(h), Some(kv)) = (number("num_attention_heads"), number("num_key_value_heads"))
            && h % kv != 0
        {
            let problem = format!("{kv} do not divide the {h} heads that share them");
            return Err(self.error(
                &full("num_key_value_heads"),
                Problem::Contradiction(problem),
            ));
        }
        for (name, value) in fields {
            if name.ends_with("_config") && value.is_object() {
                self.sizes(&full(name), value)?;
            }
        }
        Ok(())
    }

    fn size(&self, path: &str, value: &Value, most: u64) -> Result<(), ReadError> {
        let impossible = |value: String| Problem::Impossible {
            value,
            least: 1,
            most,
        };
        match value {
            Value::Number(n) => match n.as_u64() {
                Some(u) if (1..=most).contains(&u) => Ok(()),
                _ if n.is_f64() => Err(self.wrong(path, "a whole number", value)),
                _ => Err(self.error(path, impossible(n.to_string()))),
            },
            _ => Err(self.wrong(path, "a whole number", value)),
        }
    }
}
