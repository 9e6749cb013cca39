//! 7B on one card of 24, 48 and 80 GB: full, LoRA, QLoRA; and a grid on which plan, verdict and estimate agree.

use tonnage_core::Job;
use tonnage_core::footprint::{self, estimate};
use tonnage_plan::plan::{Options, Plan, Sequential, Silent, plan};

fn job(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v)
            .unwrap_or_else(|e| panic!("{k} = {v}: {e}"));
    }
    j
}

fn on(settings: &[(&str, &str)], gpu: &str) -> Plan {
    plan(&job(settings), &Options::new(gpu), &Sequential, &Silent).unwrap()
}

#[test]
fn a_7b_model_on_one_card() {
    let base = [
        ("model", "meta-llama/Llama-2-7b-hf"),
        ("seq-len", "1024"),
        ("batch-size", "4"),
        ("precision", "bf16"),
        ("steps", "2"),
    ];
    let lora = [("lora-r", "16"), ("lora-targets", "q_proj,v_proj")];
    let qlora = [lora[0], lora[1], ("quant", "nf4")];
    let methods: [(&str, &[(&str, &str)]); 3] = [("full", &[]), ("lora", &lora), ("qlora", &qlora)];
    for (gpu, expected) in [
        ("rtx-4090", [false, true, true]),
        ("l40s", [false, true, true]),
        ("a100-sxm4-80gb", [true, true, true]),
    ] {
        for ((name, more), fits) in methods.iter().zip(expected) {
            let mut s: Vec<(&str, &str)> = base.to_vec();
            s.extend(more.iter());
            let p = on(&s, gpu);
            assert_eq!(p.fits(), fits, "{name} on {gpu}: {:?}", p.yours);
            let r = p.recommended.as_ref().unwrap_or(&p.yours);
            println!(
                "{gpu} {name}: {} {} x {} {:?} {:.1} GiB {:.0} tokens/s {:?}",
                r.outcome,
                r.micro_batch_size,
                r.gradient_accumulation_steps,
                r.changes,
                r.peak_reserved_bytes as f64 / f64::from(1 << 30),
                r.time.tokens_per_s.expected,
                r.cost
                    .as_ref()
                    .map(|c| (c.usd_per_million_tokens.expected, c.offer.date.clone())),
            );
            if fits {
                assert!(r.time.tokens_per_s.low < r.time.tokens_per_s.high);
                if let Some(c) = &r.cost {
                    assert!(c.usd_per_million_tokens.expected > 0.0 && !c.offer.date.is_empty());
                }
            }
        }
    }
}

/// On a grid of batches, lengths and cards: the planner's verdict on the user's own settings is `estimate`'s, bytes grow with batch and
/// length, and a card with more memory never says less.
#[test]
fn plan_and_estimate_agree_on_a_grid() {
    let cards = ["gtx-1060-6gb", "rtx-3070", "rtx-4090"];
    for seq in ["256", "512"] {
        let mut before = [0u64; 3];
        for batch in ["1", "4", "16"] {
            let settings = [
                ("model", "HuggingFaceTB/SmolLM2-135M"),
                ("model.config.num_hidden_layers", "4"),
                ("seq-len", seq),
                ("batch-size", batch),
                ("steps", "2"),
            ];
            let mut ranks = Vec::new();
            for (i, gpu) in cards.iter().enumerate() {
                let p = on(&settings, gpu);
                let o = footprint::Options {
                    gpu: Some((*gpu).into()),
                    expected_only: true,
                    ..Default::default()
                };
                let f = estimate(&job(&settings), &o).unwrap().footprint;
                let v = f.decisive().unwrap();
                assert_eq!(p.yours.outcome, v.outcome.name());
                assert_eq!(p.yours.peak_reserved_bytes, f.peak.reserved.expected);
                assert_eq!(p.yours.margin_bytes, v.margin_bytes);
                assert!(
                    f.peak.allocated.expected >= before[i],
                    "{gpu} {batch} {seq}"
                );
                before[i] = f.peak.allocated.expected;
                ranks.push(v.outcome);
            }
            assert!(ranks.windows(2).all(|w| w[1] <= w[0]), "{ranks:?}");
        }
    }
}
