//! The descriptions whose runs were compared with recorded jobs.

use super::{Description, registry};

/// Those whose events are the coded architectures' (tests `k3_*`), which recorded jobs verify.
const VERIFIED: [&str; 2] = ["gpt_per_head", "spoter"];

/// Does this description say what a verified one says, whatever it is called and however it is written? Any change of a tensor, an
/// expression or the forward section makes it another one.
pub fn is_verified(d: &Description) -> bool {
    VERIFIED.iter().any(|name| {
        let known = registry::text(name).and_then(|t| Description::parse(t).ok());
        known.is_some_and(|k| {
            let named = Description {
                model_type: d.model_type.clone(),
                source: d.source.clone(),
                ..k
            };
            named == *d
        })
    })
}
