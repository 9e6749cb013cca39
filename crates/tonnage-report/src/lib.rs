//! A footprint as text, JSON, Markdown, CSV or SVG. Pure: the caller prints, and says how wide and in which units.

pub mod against;
pub mod chart;
pub mod csv;
pub mod explain;
pub mod json;
pub mod markdown;
pub mod oom;
pub mod serving;
pub mod snapshot;
pub mod snapshot_html;
pub mod style;
pub mod svg;
pub mod table;
pub mod text;
pub mod validate;

pub use style::{Paint, Style};
