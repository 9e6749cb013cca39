//! The embedded descriptions: one file per `model_type`, found by name, parsed only when asked for.

/// `(model_type, text)`, sorted by name.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/architectures.rs"));

/// The text of a description.
pub fn text(model_type: &str) -> Option<&'static str> {
    FILES
        .binary_search_by(|(name, _)| (*name).cmp(model_type))
        .ok()
        .map(|i| FILES[i].1)
}

/// Every described `model_type`, sorted. Bases that only others extend begin with `_` and are not models.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FILES
        .iter()
        .map(|(name, _)| *name)
        .filter(|n| !n.starts_with('_'))
}
