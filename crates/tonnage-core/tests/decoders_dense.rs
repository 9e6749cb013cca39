//! Phi, Phi-3, Gemma 2 and OPT, and fused losses of other decoders: whole recorded traces, event by event, and every figure of their records.

mod events;

use events::{OWN, exact, own};

#[test]
fn phi3_events() {
    own("phi3-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("phi3-tiny-plain-bf16-adamw_foreach-b2-s256-tf4.57.6");
    own("phi3-tiny-plain-bf16-adamw_foreach-b2-s256-window");
    own("phi3-tiny-plain-bf16-adamw_foreach-b2-s256-window-tf4.57.6");
    own("phi3-tiny-plain-bf16-adamw_foreach-b1-s256-longrope");
    own("phi3-tiny-plain-bf16-adamw_foreach-b1-s256-longrope-tf4.57.6");
}

#[test]
fn phi3_records() {
    exact(OWN, "phi3-", 13);
}

#[test]
fn gemma2_events() {
    own("gemma2-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("gemma2-tiny-plain-bf16-adamw_foreach-b2-s256-tf4.57.6");
    own("gemma2-tiny-plain-bf16-adamw_foreach-b2-s256-eager");
}

#[test]
fn gemma2_records() {
    exact(OWN, "gemma2-", 15);
}

#[test]
fn phi_events() {
    own("phi-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("phi-tiny-plain-bf16-adamw_foreach-b2-s256-tf4.57.6");
}

#[test]
fn phi_records() {
    exact(OWN, "phi-", 6);
}

#[test]
fn opt_events() {
    own("opt-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("opt-tiny-plain-bf16-adamw_foreach-b2-s256-tf4.57.6");
}

#[test]
fn opt_records() {
    exact(OWN, "opt-", 7);
}

#[test]
fn mixtral_fused_loss() {
    exact(OWN, "mixtral-mini-2l-", 1);
}
