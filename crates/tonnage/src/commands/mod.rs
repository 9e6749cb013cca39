//! A file a verb.

pub mod audit;
pub mod calibrate;
pub mod catalog;
pub mod compare;
pub mod diff;
pub mod doctor;
pub mod dry_engine;
pub mod dry_run;
pub mod estimate;
pub mod explain;
pub mod export;
pub mod fit;
pub mod fit_training;
pub mod gpus;
pub mod history;
pub mod instances;
pub mod measure;
pub mod model;
pub mod plan;
pub mod replay;
pub mod report;
pub mod run;
pub mod schema;
pub mod serving;
pub mod validate;
pub mod watch;
