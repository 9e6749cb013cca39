//! JSON: the footprint as it is, versioned (`docs/schema/footprint-1.json`), with the same totals as every other form.

use tonnage_core::footprint::Footprint;

/// A footprint as JSON.
pub fn footprint(f: &Footprint) -> String {
    pretty(f)
}

/// Any value as JSON with a line end.
pub fn pretty<T: serde::Serialize>(v: &T) -> String {
    // maps have text keys and numbers are finite: this does not fail
    serde_json::to_string_pretty(v).unwrap_or_default() + "\n"
}
