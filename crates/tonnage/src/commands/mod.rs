//! A file a verb.

pub mod catalog;
pub mod compare;
pub mod estimate;
pub mod model;
pub mod schema;
pub mod validate;
