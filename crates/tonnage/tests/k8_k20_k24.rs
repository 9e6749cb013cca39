//! Acceptance: training against generation (K8), train here and generate there (K20), generation in 16 bits (K24).

mod common;
use common::{GPT, expected, job, made, seed, stdout, tonnage, with};
use serde_json::Value;
use tonnage_core::infer::kv_cache_bytes;

/// `derived.json`: the independent derivation of generation's peak for the ten configurations, batch 1 and a full context; float32,
/// no cache.
const GENERATES: [u64; 10] = [
    112_365_568,
    262_178_304,
    872_458_752,
    1_097_330_176,
    1_347_367_424,
    1_805_560_320,
    2_160_193_024,
    2_539_991_552,
    3_479_843_328,
    4_273_076_736,
];

/// One command: every named configuration, trained and generating, with the ratio.
fn side_by_side(format: &str, more: &[&str]) -> String {
    let files: Vec<String> = GPT.iter().map(|f| seed(f).display().to_string()).collect();
    let mut args = vec!["compare"];
    args.extend(files.iter().map(String::as_str));
    args.extend([
        "--sweep",
        "kind=train,generate",
        "--new-tokens",
        "2",
        "--format",
        format,
    ]);
    args.extend(more);
    stdout(&tonnage(&args))
}

#[test]
fn k8_a_ratio_for_each_configuration() {
    let v: Value = serde_json::from_str(&side_by_side("json", &[])).unwrap();
    let pairs = v["training_against_generation"].as_array().unwrap();
    assert_eq!(pairs.len(), 10);
    for ((p, derived), file) in pairs.iter().zip(GENERATES).zip(GPT) {
        let bytes = |k: &str| p[k].as_u64().unwrap();
        let (t, g) = (
            bytes("training_allocated_bytes"),
            bytes("generation_allocated_bytes"),
        );
        let ratio = p["ratio"].as_f64().unwrap();
        assert!((ratio - t as f64 / g as f64).abs() < 1e-9, "{file}");
        assert!(ratio > 5.0, "{file}: {ratio}");
        // the derivation leaves out what a layer holds while it computes, the logits of the step before, and cuBLAS
        assert!(
            g > derived && g < derived + derived / 4 + (64 << 20),
            "{file}: {g} {derived}"
        );
        let only = p["only_training"].as_object().unwrap();
        assert!(only.contains_key("optimizer_state"), "{file}: {only:?}");
    }
    let text = side_by_side("text", &[]);
    for file in GPT {
        let name = file
            .trim_start_matches("gpt-configs/")
            .trim_end_matches(".json");
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("{name}: training")));
        assert!(line.is_some_and(|l| l.contains("x (")), "{name}: {text}");
    }
    assert!(text.contains("only training has"), "{text}");
}

#[test]
fn k8_generation_follows_its_own_batch_alone() {
    let train = job("gpt-configs/small.json");
    let at = |batch: &str, generated: &str| {
        let j = with(
            &train,
            &[
                ("work.kind", "generate"),
                ("generate.new_tokens", "2"),
                ("train.micro_batch_size", batch),
                ("generate.batch_size", generated),
            ],
        );
        expected(&j).peak.allocated.expected
    };
    assert_eq!(at("8", "1"), at("64", "1"));
    assert!(at("8", "4") > at("8", "1"));
    let trained = |b: &str| {
        let j = with(&train, &[("train.micro_batch_size", b)]);
        expected(&j).peak.allocated.expected
    };
    assert!(trained("16") > trained("8"));
}

#[test]
fn k20_train_here_generate_there() {
    let file = seed("gpt-configs/350M_1024.json").display().to_string();
    let run = |format: &str| {
        tonnage(&[
            "compare",
            &file,
            "--sweep",
            "kind=train,generate",
            "--new-tokens",
            "256",
            "--batch-size",
            "2",
            "--gpu",
            "rtx-3090",
            "--gpu",
            "rtx-2060-6gb",
            "--format",
            format,
        ])
    };
    let v: Value = serde_json::from_slice(&run("json").stdout).unwrap();
    let verdict = |i: usize, gpu: &str| {
        let f = &v["jobs"][i]["footprint"];
        assert_eq!(f["gpu"], gpu);
        let rows = f["verdicts"].as_array().unwrap();
        let row = rows.iter().find(|r| r["gpu"] == gpu).unwrap();
        row["cases"][0][1]["outcome"].as_str().unwrap().to_string()
    };
    let (here, there) = (verdict(0, "rtx-3090"), verdict(1, "rtx-2060-6gb"));
    assert_eq!(there, "fits");
    let text = stdout(&run("text"));
    for (who, outcome) in [("kind=train on ", &here), ("kind=generate on ", &there)] {
        let line = text
            .lines()
            .find(|l| l.starts_with(who))
            .unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains(&format!(": {outcome};")), "{line}");
    }
    // what changes
    assert!(
        text.contains("what changes from kind=train to kind=generate"),
        "{text}"
    );
    assert!(text.contains("gpu: rtx-3090 to rtx-2060-6gb"), "{text}");
    assert!(text.contains("work.kind: train to generate"), "{text}");
    // as many cards as jobs, or one
    let o = tonnage(&[
        "compare",
        &file,
        "--gpu",
        "rtx-3090",
        "--gpu",
        "rtx-2060-6gb",
    ]);
    assert_eq!(o.status.code(), Some(2));
}

#[test]
fn k24_weights_and_cache_of_generation_halve() {
    for model in ["gpt2", "Qwen/Qwen2.5-0.5B"] {
        let of = |precision: &str| {
            let job = made(&[
                ("model.id", model),
                ("work.kind", "generate"),
                ("generate.new_tokens", "32"),
                ("train.seq_len", "512"),
                ("train.precision", precision),
            ]);
            // the cache of 544 tokens itself, not what of it is there at the peak
            let gpu = tonnage_catalog::gpu("a100-sxm4-80gb").unwrap();
            let cache = kv_cache_bytes(&job.spec(&gpu).unwrap(), 1, 544).unwrap();
            (expected(&job).model.param_bytes, cache)
        };
        let (full, half) = (of("fp32"), of("fp16"));
        assert_eq!(half, of("bf16"), "{model}");
        assert!(
            half.0 > 0 && full.0.abs_diff(2 * half.0) * 1000 < full.0,
            "{model}"
        );
        assert!(
            half.1 > 0 && full.1 == 2 * half.1,
            "{model}: {full:?} {half:?}"
        );
    }
}
