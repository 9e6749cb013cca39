//! `tonnage schema`

use crate::Status;
use crate::args::{SchemaArgs, SchemaName};
use crate::output::Output;

pub fn run(a: &SchemaArgs, out: &Output) -> Status {
    out.print(match a.name {
        SchemaName::Explain => include_str!("../../../../docs/schema/explain-1.json"),
        SchemaName::Audit => include_str!("../../../../docs/schema/audit-1.json"),
        SchemaName::Fit => include_str!("../../../../docs/schema/fit-1.json"),
        SchemaName::Footprint => include_str!("../../../../docs/schema/footprint-1.json"),
        SchemaName::Plan => include_str!("../../../../docs/schema/plan-1.json"),
        SchemaName::Serving => include_str!("../../../../docs/schema/serving-1.json"),
        SchemaName::Validate => include_str!("../../../../docs/schema/validate-1.json"),
    });
    Status::Ok
}
