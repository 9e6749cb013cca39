//! Gemma 3, the DeepSeeks and gpt-oss: whole recorded traces, event by event, and every figure of their records.

mod events;

use events::{OWN, exact, own};

#[test]
fn gemma3_events() {
    own("gemma3-tiny-plain-bf16-sdpa");
    own("gemma3-tiny-plain-bf16-sdpa-tf4.57.6");
}

#[test]
fn gemma3_records() {
    exact(OWN, "gemma3-", 8);
}
