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
    exact(OWN, "gemma3-", 10);
}

#[test]
fn deepseek_events() {
    own("deepseek-v3-tiny-plain-bf16-sdpa");
    own("deepseek-v3-tiny-plain-bf16-sdpa-tf4.57.6");
    own("deepseek-v2-tiny-plain-bf16-sdpa");
}

#[test]
fn deepseek_records() {
    exact(OWN, "deepseek-v3-", 9);
    exact(OWN, "deepseek-v2-", 5);
}

#[test]
fn gpt_oss_events() {
    own("gpt-oss-tiny-plain-bf16-eager");
    own("gpt-oss-tiny-plain-bf16-eager-tf4.57.6");
}

#[test]
fn gpt_oss_records() {
    exact(OWN, "gpt-oss-", 10);
}
