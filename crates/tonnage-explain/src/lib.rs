//! What happened to a run's memory, from what the run left behind. Pure: bytes and values in, values out.
//!
//! | to know | module |
//! | --- | --- |
//! | what an out-of-memory text says, why, and what to change | [`oom`] |
//! | a prediction corrected by measured runs of an environment | [`calibrate`] |
//! | what a memory snapshot of PyTorch holds | [`snapshot`] |
//! | whether memory grows with the steps, since when, when it is full | [`leak`] |

pub mod calibrate;
pub mod leak;
pub mod oom;
pub mod snapshot;
