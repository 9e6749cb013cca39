//! What this crate answers, as text, Markdown and JSON.

pub mod plan;
pub mod whatif;
