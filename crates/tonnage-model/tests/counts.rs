//! `models --check`: every embedded configuration counted through the components.

use serde_json::{Value, json};
use std::sync::OnceLock;
use tonnage_catalog::{CountBasis, models};
use tonnage_model::arch::{self, Head};
use tonnage_model::count::{Check, Known, check, count};
use tonnage_model::describe::{self, Class, registry};
use tonnage_model::{ModelError, Net, Stack};
use tonnage_sim::Shape;

/// The whole table, counted once for all tests here.
fn checked() -> &'static Check {
    static CHECK: OnceLock<Check> = OnceLock::new();
    CHECK.get_or_init(|| {
        check(models().iter().map(|m| {
            Known {
                id: m.id,
                config: m.config(),
                count: m
                    .known_count()
                    .map(|k| (k.count, m.params_basis.unwrap_or_default())),
            }
        }))
    })
}

fn counted(config: Value) -> Result<u64, ModelError> {
    count(&config).map(|c| c.total)
}

/// `TABLE=1 cargo test -p tonnage-model --test counts -- --nocapture` prints the rows.
#[test]
fn every_independent_count_is_equal() {
    let c = checked();
    if std::env::var_os("TABLE").is_some() {
        for r in c.known.iter().chain(&c.unknown) {
            println!(
                "{}\t{}\t{:?}\t{:?}\t{}\t{:?}",
                r.id, r.model_type, r.counted, r.known, r.equal, r.beside
            );
        }
    }
    let wrong: Vec<String> = c
        .known
        .iter()
        .filter(|r| !r.equal)
        .map(|r| {
            format!(
                "{} ({}): counted {:?}, known {:?}",
                r.id, r.model_type, r.counted, r.known
            )
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        c.known.len(),
        wrong.join("\n")
    );
    assert_eq!((c.known.len(), c.unknown.len()), (233, 13));
}

/// What a known number holds beside the parameters is said, and only where the index has a reason for it.
#[test]
fn differences_from_a_checkpoint_are_named() {
    let c = checked();
    let plain = c.known.iter().filter(|r| r.beside.is_empty()).count();
    assert_eq!(plain, 201, "rows equal without any named part");
    for r in c.known.iter().filter(|r| !r.beside.is_empty()) {
        let m = tonnage_catalog::models::by_id(&r.id).unwrap();
        let basis = m.known_count().unwrap().basis;
        // a total of a checkpoint may hold more; a published total of the encoder leaves its pre-training head out
        let left_out = r.beside.iter().all(|(_, n)| *n < 0);
        assert!(
            left_out || basis != CountBasis::Published,
            "{}: {:?} {:?}",
            r.id,
            r.beside,
            basis
        );
    }
}

/// Rows without an independent count: the index's own calculation, where it has one, is the same.
#[test]
fn counts_without_an_independent_number_agree_with_the_index() {
    for r in &checked().unknown {
        let n = *r
            .counted
            .as_ref()
            .unwrap_or_else(|e| panic!("{}: {e}", r.id));
        let m = tonnage_catalog::models::by_id(&r.id).unwrap();
        let Some(p) = m.params_exact else { continue };
        let c = count(&serde_json::from_str(m.config()).unwrap()).unwrap();
        let left_out: u64 = c.omitted.iter().map(|(_, n)| n).sum();
        assert!(n == p || n - left_out == p, "{}: {n} and {p}", r.id);
    }
}

/// The coded architectures and the descriptions are two statements of the same thing.
#[test]
fn described_and_coded_architectures_agree() {
    let stack = Stack::default();
    let mut compared = 0;
    for m in models() {
        let config: Value = serde_json::from_str(m.config()).unwrap();
        let class = config["architectures"][0].as_str().unwrap_or_default();
        let head = if class.ends_with("ForMaskedLM") {
            Head::MaskedLm
        } else {
            Head::Default
        };
        if let Ok(built) = arch::build(m.model_type, &config, head, &stack) {
            let c = count(&config).unwrap();
            // transformers 5 ties T5's head even where the checkpoint has one of its own (configuration_t5.py, 5.17.0)
            let own_head = m.model_type == "t5" && config["tie_word_embeddings"] == json!(false);
            let head = |k: &str| config[k].as_u64().unwrap_or(0);
            // the router's correction is a buffer in the library and a tensor like any other in the checkpoint
            let corrected = m.model_type == "deepseek_v3";
            let dropped = if corrected {
                (head("num_hidden_layers") - head("first_k_dense_replace"))
                    * head("n_routed_experts")
            } else if own_head {
                head("vocab_size") * head("d_model")
            } else {
                0
            };
            assert_eq!(built.net.param_count() + dropped, c.total, "{}", m.id);
            compared += 1;
        }
    }
    assert!(compared >= 80, "only {compared}");
    let gpt = |bias: bool| json!({"vocab_size": 65, "block_size": 16, "n_embd": 24, "n_head": 3, "n_layer": 2, "dropout": 0.2, "bias": bias});
    let tensors = |net: &Net| -> (Vec<String>, Vec<String>) {
        let text = |name: &str, shape: &Shape| format!("{name} {:?}", shape.dims());
        let mut buffers = Vec::new();
        for m in net.preorder() {
            buffers.extend(
                net.module(m)
                    .buffers
                    .iter()
                    .map(|b| text(&b.name, &b.shape)),
            );
        }
        let params = net.param_order().into_iter().map(|p| net.param(p));
        (params.map(|p| text(&p.name, &p.shape)).collect(), buffers)
    };
    for (t, config) in [
        (
            "nanogpt",
            json!({"vocab": 65, "block": 64, "layers": 2, "heads": 2, "dim": 32, "bias": true}),
        ),
        (
            "nanogpt",
            json!({"vocab": 50304, "block": 1024, "layers": 12, "heads": 12, "dim": 768}),
        ),
        ("gpt_per_head", gpt(false)),
        ("gpt_per_head", gpt(true)),
    ] {
        let built = arch::build(t, &config, Head::Default, &stack).unwrap();
        let d = describe::build(&describe::find(t).unwrap(), &config).unwrap();
        assert_eq!(tensors(&built.net), tensors(&d.net), "{t}");
    }
}

/// Classes add up, a mixture's active parameters are what its card says.
#[test]
fn classes_and_active_parameters() {
    for m in models() {
        let config: Value = serde_json::from_str(m.config()).unwrap();
        let c = count(&config).unwrap();
        let sum: u64 = c.by_class.iter().map(|(_, n)| n).sum();
        assert_eq!(sum, c.total, "{}", m.id);
        let listed: u64 = c.inventory().map(|t| t.elements()).sum();
        assert_eq!(listed, c.total, "{}", m.id);
        let experts = c.by_class.iter().any(|(k, _)| *k == Class::Experts);
        assert_eq!(experts, c.active < c.total, "{}", m.id);
        let mut names: Vec<&str> = c.inventory().map(|t| t.name).collect();
        // the largest mixtures have 250,000 tensors of the same few lines
        if names.len() < 30_000 {
            names.sort_unstable();
            assert!(
                names.windows(2).all(|w| w[0] != w[1]),
                "{}: names repeat",
                m.id
            );
        }
    }
    let active = |id: &str| {
        let m = tonnage_catalog::models::by_id(id).unwrap();
        count(&serde_json::from_str(m.config()).unwrap())
            .unwrap()
            .active
    };
    // the published "12.9B", "3.3B", "22B", "37B", "5.1B" active
    assert_eq!(active("mistralai/Mixtral-8x7B-v0.1"), 12_879_925_248);
    assert_eq!(active("Qwen/Qwen3-30B-A3B") / 10_000_000, 335);
    assert_eq!(active("Qwen/Qwen3-235B-A22B") / 1_000_000_000, 22);
    assert_eq!(active("deepseek-ai/DeepSeek-V3") / 1_000_000_000, 37);
    assert_eq!(active("openai/gpt-oss-120b") / 100_000_000, 57);
}

#[test]
fn an_unknown_model_type_names_the_nearest() {
    let e = counted(json!({"model_type": "qwen2_mo"}))
        .unwrap_err()
        .to_string();
    assert!(e.contains("did you mean `qwen2_moe`"), "{e}");
    let e = counted(json!({"hidden_size": 8})).unwrap_err().to_string();
    assert!(e.contains("model_type: is missing"), "{e}");
    // a base that only others extend is not a model
    assert!(counted(json!({"model_type": "_decoder"})).is_err());
}

#[test]
fn impossible_fields_are_named() {
    let llama = |k: &str, v: Value| {
        let mut c = json!({"model_type": "llama", "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4});
        c[k] = v;
        counted(c).unwrap_err().to_string()
    };
    for (field, value, words) in [
        ("hidden_size", json!(0), "0 is impossible"),
        ("hidden_size", json!(-64), "-64 is impossible"),
        ("num_attention_heads", json!(0), "divided by zero"),
        ("num_attention_heads", json!(6), "64 is not divisible by 6"),
        ("vocab_size", json!(1e300), "whole number, is a fraction"),
        ("vocab_size", json!(u64::MAX), "whole number, is a fraction"),
        ("vocab_size", json!("32000"), "whole number, is a text"),
        ("vocab_size", Value::Null, "vocab_size: is missing"),
        ("num_hidden_layers", json!(1_000_000_000), "impossible"),
        (
            "num_hidden_layers",
            json!(90_000),
            "more than 600000 modules",
        ),
        ("tie_word_embeddings", json!(3), "must be true or false"),
    ] {
        let e = llama(field, value.clone());
        assert!(e.contains(words), "{field} = {value}: {e}");
    }
    let mut huge = json!({"model_type": "gpt2", "vocab_size": 4_000_000_000u64, "n_positions": 1, "n_embd": 4_000_000_000u64, "n_layer": 1, "n_head": 1});
    assert!(
        counted(huge.clone())
            .unwrap_err()
            .to_string()
            .contains("impossible")
    );
    huge["n_embd"] = json!(u64::MAX);
    assert!(counted(huge).is_err());
}

/// K3: the two models that have no library are expressible in data alone.
#[test]
fn k3_spoter_and_the_per_head_mask_buffers_are_data() {
    let spoter = json!({"input_dim": 108, "d_model": 108, "n_heads": 9, "n_layers": 8, "d_ff": 512, "dropout": 0.15,
        "num_classes": 60, "max_seq_len": 150});
    let d = describe::find("spoter").unwrap();
    assert!(d.forward.is_some());
    assert_eq!(
        describe::build(&d, &spoter).unwrap().net.param_count(),
        1_319_434
    );

    let gpt = json!({"vocab_size": 50304, "block_size": 256, "n_embd": 384, "n_head": 6, "n_layer": 6, "dropout": 0.2, "bias": false});
    let d = describe::find("gpt_per_head").unwrap();
    let built = describe::build(&d, &gpt).unwrap();
    let (v, e, t, l) = (50304u64, 384u64, 256u64, 6u64);
    assert_eq!(
        built.net.param_count(),
        2 * v * e + v + t * e + l * (12 * e * e + 10 * e) + 2 * e
    );
    let masks: Vec<u64> = built
        .net
        .modules
        .iter()
        .flat_map(|m| m.buffers.iter().map(|b| b.shape.numel()))
        .collect();
    assert_eq!(masks, vec![t * t; 36]);
    // 1024 channels do not split into 6 heads
    let mut wide = gpt;
    wide["n_embd"] = json!(1024);
    let e = describe::build(&d, &wide).unwrap_err().to_string();
    assert!(e.contains("1024 is not divisible by 6"), "{e}");
}

/// Every embedded file parses, says its source, and its name is its type.
#[test]
fn every_description_is_sound() {
    let mut n = 0;
    for t in registry::model_types() {
        let d = describe::find(t).unwrap();
        assert_eq!(d.model_type, t);
        assert!(!d.source.is_empty(), "{t}");
        n += 1;
    }
    assert!(n >= 80, "{n}");
    for m in models() {
        assert!(registry::text(m.model_type).is_some(), "{}", m.model_type);
    }
}
