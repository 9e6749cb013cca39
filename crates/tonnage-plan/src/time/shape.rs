//! A model's size as far as time depends on it.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use tonnage_model::count;

static OWN: &str = include_str!("../../data/models.csv");

/// Layers, widths and parameters of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    pub layers: f64,
    pub hidden: f64,
    /// Heads times head size.
    pub query: f64,
    /// Elements of a layer's keys (or values) of one token.
    pub kv: f64,
    pub vocab: f64,
    pub params: f64,
    /// Parameters that work for one token.
    pub active: f64,
    /// Where the figures are from.
    pub source: String,
}

impl ModelShape {
    /// Is only a part of the parameters used for a token?
    pub fn is_sparse(&self) -> bool {
        self.active < 0.9 * self.params
    }

    /// Parameters in products for a token: all that are active but the input embedding.
    pub fn products(&self, tied: bool) -> f64 {
        let table = if tied { 0.0 } else { self.vocab * self.hidden };
        (self.active - table).max(0.3 * self.active)
    }

    /// The model of a published row: by the program's own table, then by the catalog's configurations, then from its parameter count
    /// alone (marked so).
    pub fn find(name: &str, params_b: Option<f64>, active_b: Option<f64>) -> Option<ModelShape> {
        let key = plain(name);
        let mut s = own(&key)
            .or_else(|| from_catalog(&key))
            .or_else(|| from_size(params_b?))?;
        if let Some(p) = params_b {
            if s.source.starts_with("inferred") || (s.params / (p * 1e9) - 1.0).abs() > 0.03 {
                s.active *= p * 1e9 / s.params;
            }
            s.params = p * 1e9;
        }
        if let Some(a) = active_b {
            s.active = a * 1e9;
        }
        s.active = s.active.min(s.params);
        Some(s)
    }
}

/// Letters and digits only.
fn plain(name: &str) -> String {
    let name = name.to_lowercase();
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

fn own(key: &str) -> Option<ModelShape> {
    OWN.lines().skip(1).find_map(|l| {
        let f: Vec<&str> = l.splitn(9, ',').collect();
        let n = |i: usize| f.get(i)?.parse::<f64>().ok();
        let &[name, _, _, _, _, _, _, _, source] = &f[..] else {
            return None;
        };
        (plain(name) == *key).then_some(())?;
        let params = n(6)? * 1e9;
        Some(ModelShape {
            layers: n(1)?,
            hidden: n(2)?,
            query: n(3)?,
            kv: n(4)?,
            vocab: n(5)?,
            params,
            active: n(7).map_or(params, |a| a * 1e9),
            source: source.into(),
        })
    })
}

/// What names of one model differ in.
const ENDINGS: &[&str] = &[
    "hf", "instruct", "it", "base", "chatv10", "v01", "v02", "v03", "bf16",
];

fn same(id: &str, key: &str) -> bool {
    let tail = plain(id.rsplit('/').next().unwrap_or(id));
    let tail = tail.strip_prefix("meta").unwrap_or(&tail);
    tail == key
        || tail
            .strip_prefix(key)
            .is_some_and(|rest| ENDINGS.contains(&rest))
}

fn from_catalog(key: &str) -> Option<ModelShape> {
    static SEEN: OnceLock<Mutex<HashMap<String, Option<ModelShape>>>> = OnceLock::new();
    let seen = SEEN.get_or_init(Mutex::default);
    if let Some(known) = seen.lock().ok()?.get(key) {
        return known.clone();
    }
    let found = tonnage_catalog::models()
        .iter()
        .find(|m| same(m.id, key))
        .and_then(|m| {
            let config = serde_json::from_str(m.config()).ok()?;
            let mut s = from_config(&config)?;
            s.source = format!("configuration of {}", m.id);
            Some(s)
        });
    seen.lock().ok()?.insert(key.into(), found.clone());
    found
}

/// The shape that a Hugging Face configuration describes.
pub fn from_config(config: &serde_json::Value) -> Option<ModelShape> {
    let text = config.get("text_config").unwrap_or(config);
    let n = |keys: &[&str]| keys.iter().find_map(|k| text.get(*k)?.as_f64());
    let layers = n(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"])?;
    let hidden = n(&["hidden_size", "n_embd", "d_model", "dim"])?;
    let heads = n(&["num_attention_heads", "n_head", "n_heads", "num_heads"])?;
    let kv_heads = n(&["num_key_value_heads", "n_kv_heads"]).unwrap_or(heads);
    let head = n(&["head_dim"]).unwrap_or(hidden / heads);
    // latent attention: scores over position and content parts, values of their own size; the cache holds the latent
    let (query, kv) = match (
        n(&["qk_nope_head_dim"]),
        n(&["qk_rope_head_dim"]),
        n(&["v_head_dim"]),
    ) {
        (Some(a), Some(b), Some(v)) => (
            heads * (a + b + v) / 2.0,
            (n(&["kv_lora_rank"]).unwrap_or(512.0) + b) / 2.0,
        ),
        _ => (heads * head, kv_heads * head),
    };
    let counted = count::count(config).ok()?;
    Some(ModelShape {
        layers,
        hidden,
        query,
        kv,
        vocab: n(&["vocab_size"])?,
        params: counted.total as f64,
        active: counted.active as f64,
        source: String::new(),
    })
}

/// A decoder of `params_b` billion parameters as they are usually built: 12 L d^2 parameters, depth growing with the 0.4th power.
fn from_size(params_b: f64) -> Option<ModelShape> {
    let params = params_b * 1e9;
    (params > 1e6).then_some(())?;
    let layers = (32.0 * (params_b / 7.0).powf(0.4))
        .round()
        .clamp(6.0, 130.0);
    let hidden = ((params / (12.0 * layers)).sqrt() / 64.0).round().max(1.0) * 64.0;
    Some(ModelShape {
        layers,
        hidden,
        query: hidden,
        kv: if params_b > 30.0 { 1024.0 } else { hidden },
        vocab: 50_000.0,
        params,
        active: params,
        source: "inferred from the number of parameters".into(),
    })
}
