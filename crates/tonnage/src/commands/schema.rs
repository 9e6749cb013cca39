//! `tonnage schema`

use crate::Status;
use crate::args::{SchemaArgs, SchemaName};
use crate::output::Output;

pub fn run(a: &SchemaArgs, out: &Output) -> Status {
    out.print(match a.name {
        SchemaName::Doctor => include_str!("../../../../docs/schema/doctor-1.json"),
        SchemaName::Compare => include_str!("../../../../docs/schema/compare-1.json"),
        SchemaName::Diff => include_str!("../../../../docs/schema/diff-1.json"),
        SchemaName::DryRun => include_str!("../../../../docs/schema/dry-run-1.json"),
        SchemaName::Measure => include_str!("../../../../docs/schema/measure-1.json"),
        SchemaName::Replay => include_str!("../../../../docs/schema/replay-1.json"),
        SchemaName::FitTraining => {
            include_str!("../../../../docs/schema/fit-training-1.json")
        }
        SchemaName::Gpus => include_str!("../../../../docs/schema/gpus-1.json"),
        SchemaName::Instances => include_str!("../../../../docs/schema/instances-1.json"),
        SchemaName::Models => include_str!("../../../../docs/schema/models-1.json"),
        SchemaName::Explain => include_str!("../../../../docs/schema/explain-1.json"),
        SchemaName::Audit => include_str!("../../../../docs/schema/audit-1.json"),
        SchemaName::DryRunEngine => {
            include_str!("../../../../docs/schema/dry-run-engine-1.json")
        }
        SchemaName::Fit => include_str!("../../../../docs/schema/fit-1.json"),
        SchemaName::Footprint => include_str!("../../../../docs/schema/footprint-1.json"),
        SchemaName::Plan => include_str!("../../../../docs/schema/plan-1.json"),
        SchemaName::History => include_str!("../../../../docs/schema/history-1.json"),
        SchemaName::Process => include_str!("../../../../docs/schema/process-1.json"),
        SchemaName::Recording => include_str!("../../../../docs/schema/recording-1.json"),
        SchemaName::Run => include_str!("../../../../docs/schema/run-1.json"),
        SchemaName::Serving => include_str!("../../../../docs/schema/serving-1.json"),
        SchemaName::Validate => include_str!("../../../../docs/schema/validate-1.json"),
        SchemaName::Watch => include_str!("../../../../docs/schema/watch-1.json"),
    });
    Status::Ok
}
