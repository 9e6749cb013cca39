//! What happened to a run's memory, from what the run left behind. Pure: bytes and values in, values out.
//!
//! | to know | module |
//! | --- | --- |
//! | whether memory grows with the steps, since when, when it is full | [`leak`] |

pub mod leak;
