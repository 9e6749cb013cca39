//! GPUs, cloud instances and model configurations as data: typed, embedded, found by exact name, each figure with its
//! source. Nothing is parsed before it is asked for, and asking for one entry parses that one.

mod csv;
pub mod device;
pub mod gpu;
mod gpu_file;
pub mod instance;
pub mod instance_file;
mod key;
mod lookup;
pub mod models;

pub use gpu::{Gpu, Gpus, gpu};
pub use instance::{Instance, instance, instances};
pub use instance_file::{Instances, Sky, skypilot};
pub use lookup::LookupError;
pub use models::{CountBasis, KnownCount, Model, model, model_config, models};
