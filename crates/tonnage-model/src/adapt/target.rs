//! Which modules an adapter is put on, by peft's own rules (peft 0.21.2, src/peft/tuners/tuners_utils.py: check_target_module_exists,
//! _maybe_include_all_linear_layers).

use crate::error::ModelError;
use crate::net::{Kind, ModuleId, Net};

/// peft's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// A list: full names, or the last components of a name.
    Names(Vec<String>),
    /// One string: a regular expression that must match the whole name.
    Pattern(String),
    /// `"all-linear"`: every Linear and Conv1D but the output head.
    AllLinear,
}

impl Targets {
    /// peft's reading of a string: `all-linear` in any case, else a regular expression.
    pub fn from_string(s: &str) -> Targets {
        if s.eq_ignore_ascii_case("all-linear") {
            Targets::AllLinear
        } else {
            Targets::Pattern(s.to_string())
        }
    }
}

/// The head that gives vocabulary scores, if the model has one: the last Linear as wide as the first embedding has rows
/// (`get_output_embeddings()` of transformers).
pub fn output_embedding(net: &Net) -> Option<ModuleId> {
    let order = net.preorder();
    let rows = order.iter().find_map(|m| match net.module(*m).kind {
        Kind::Embedding { rows, .. } => Some(rows),
        _ => None,
    })?;
    order
        .into_iter()
        .rev()
        .find(|m| matches!(net.module(*m).kind, Kind::Linear { output, .. } if output == rows))
}

/// The embedding of token ids (`get_input_embeddings()`): the first one.
pub fn input_embedding(net: &Net) -> Option<ModuleId> {
    net.preorder()
        .into_iter()
        .find(|m| matches!(net.module(*m).kind, Kind::Embedding { .. }))
}

/// The classification heads that `all-linear` leaves out by name (peft's SEQ_CLS_HEAD_NAMES).
const CLASSIFIER_HEADS: [&str; 2] = ["score", "classifier"];

fn head(net: &Net, id: ModuleId) -> bool {
    match output_embedding(net) {
        Some(h) => h == id,
        None => CLASSIFIER_HEADS.iter().any(|h| {
            net.module(id).name == *h || net.module(id).name.starts_with(&format!("{h}."))
        }),
    }
}

fn has_suffix(name: &str, target: &str) -> bool {
    name == target
        || name
            .strip_suffix(target)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// The first number that stands between dots after some component: the layer's index.
fn layer_index(name: &str) -> Option<u64> {
    let mut parts: Vec<&str> = name.split('.').collect();
    parts.pop();
    parts
        .iter()
        .skip(2)
        .find_map(|p| p.parse().ok())
        .or_else(|| parts.get(1).and_then(|p| p.parse().ok()))
}

/// The targeted modules in `named_modules()` order. `exclude`: names or suffixes never to be adapted; `layers`: only these layer
/// indices (peft's `layers_to_transform`; not used with a pattern). Nothing found, an invalid pattern, or a target that is neither
/// Linear nor Conv1D is an error.
pub fn select(
    net: &Net,
    targets: &Targets,
    exclude: &[String],
    layers: Option<&[u64]>,
) -> Result<Vec<ModuleId>, ModelError> {
    let pattern = match targets {
        Targets::Pattern(p) => {
            let whole = format!("^(?:{p})$");
            Some(regex_lite::Regex::new(&whole).map_err(|e| {
                ModelError::field(
                    "target_modules",
                    format!("`{p}` is not a regular expression: {e}"),
                )
            })?)
        }
        _ => None,
    };
    let mut out = vec![];
    for id in net.preorder() {
        let m = net.module(id);
        let linear = matches!(m.kind, Kind::Linear { .. } | Kind::Conv1d { .. });
        if m.name.is_empty() || exclude.iter().any(|e| has_suffix(&m.name, e)) {
            continue;
        }
        let named = match targets {
            Targets::AllLinear => linear && !head(net, id),
            Targets::Pattern(_) => pattern.as_ref().is_some_and(|p| p.is_match(&m.name)),
            Targets::Names(names) => names.iter().any(|n| has_suffix(&m.name, n)),
        };
        let layer = match (layers, &pattern) {
            (Some(l), None) => layer_index(&m.name).is_some_and(|i| l.contains(&i)),
            _ => true,
        };
        if !(named && layer) {
            continue;
        }
        if !linear {
            return Err(ModelError::Unsupported(
                format!("an adapter on `{}`", m.name),
                format!("it is a {:?}, not a linear layer", m.kind),
            ));
        }
        out.push(id);
    }
    if out.is_empty() {
        return Err(ModelError::field(
            "target_modules",
            format!(
                "{targets:?} match no module; linear modules are {}",
                linear_names(net)
            ),
        ));
    }
    Ok(out)
}

/// The distinct last components of linear modules' names, for messages.
fn linear_names(net: &Net) -> String {
    let mut names: Vec<&str> = vec![];
    for id in net.preorder() {
        let m = net.module(id);
        if matches!(m.kind, Kind::Linear { .. } | Kind::Conv1d { .. }) {
            let last = m.name.rsplit('.').next().unwrap_or("");
            if !names.contains(&last) {
                names.push(last);
            }
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv1d, Embedding, Linear};
    use crate::net::NetBuilder;

    fn net() -> Net {
        let mut b = NetBuilder::new();
        b.scope("model", |b| {
            Embedding::new(b, "embed", 100, 8);
            b.scope("layers", |b| {
                for i in 0..3 {
                    b.scope(&i.to_string(), |b| {
                        Linear::new(b, "q_proj", 8, 8, false);
                        Conv1d::new(b, "c_fc", 8, 32);
                    });
                }
            });
        });
        Linear::new(&mut b, "lm_head", 8, 100, false);
        b.finish()
    }

    fn names(t: &Targets, layers: Option<&[u64]>) -> Vec<String> {
        let n = net();
        select(&n, t, &[], layers)
            .unwrap()
            .into_iter()
            .map(|i| n.module(i).name.clone())
            .collect()
    }

    #[test]
    fn suffixes_match_whole_components() {
        let q = Targets::Names(vec!["q_proj".into()]);
        assert_eq!(
            names(&q, None),
            [
                "model.layers.0.q_proj",
                "model.layers.1.q_proj",
                "model.layers.2.q_proj"
            ]
        );
        assert_eq!(names(&q, Some(&[1])), ["model.layers.1.q_proj"]);
        assert!(select(&net(), &Targets::Names(vec!["proj".into()]), &[], None).is_err());
    }

    #[test]
    fn a_pattern_matches_the_whole_name() {
        assert_eq!(
            names(&Targets::from_string(r".*\.[02]\.c_fc"), None),
            ["model.layers.0.c_fc", "model.layers.2.c_fc"]
        );
        assert!(select(&net(), &Targets::from_string("c_fc"), &[], None).is_err());
        assert!(select(&net(), &Targets::from_string("("), &[], None).is_err());
    }

    #[test]
    fn all_linear_leaves_the_head_out() {
        let all = names(&Targets::from_string("All-Linear"), None);
        assert_eq!(all.len(), 6);
        assert!(!all.contains(&"lm_head".to_string()));
    }

    #[test]
    fn an_embedding_is_refused_by_name() {
        let e = select(&net(), &Targets::Names(vec!["embed".into()]), &[], None).unwrap_err();
        assert!(e.to_string().contains("model.embed"), "{e}");
    }
}
