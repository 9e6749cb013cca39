//! The table of model configurations.
use std::collections::BTreeMap;

use tonnage_catalog::{CountBasis, LookupError, model, model_config, models};

#[test]
fn every_model_is_found_and_holds_json_of_its_type() {
    assert_eq!(models().len(), 246);
    for m in models() {
        let config = model_config(&m.id.to_uppercase()).expect(m.id);
        let json: serde_json::Value = serde_json::from_str(config).expect(m.id);
        assert!(json.is_object(), "{}", m.id);
        if let Some(t) = json["model_type"].as_str() {
            assert_eq!(t, m.model_type, "{}", m.id);
        }
        let short = m.id.rsplit('/').next().unwrap_or(m.id);
        match model(short) {
            Ok(found) => assert_eq!(found.id, m.id),
            Err(LookupError::Ambiguous { candidates, .. }) => {
                assert!(candidates.contains(&m.id.to_owned()))
            }
            Err(e) => panic!("{e}"),
        }
        assert!(
            !m.source.is_empty() && ["high", "medium"].contains(&m.confidence),
            "{}",
            m.id
        );
    }
    assert!(
        models()
            .windows(2)
            .all(|w| w[0].id.to_lowercase() < w[1].id.to_lowercase())
    );
}

#[test]
fn a_part_of_an_id_is_not_an_id() {
    for name in [
        "Llama-2-7b",
        "meta-llama",
        "gpt",
        "meta-llama/",
        "/gpt2",
        "",
        "Llama",
    ] {
        assert!(
            matches!(model(name), Err(LookupError::Unknown { .. })),
            "{name}"
        );
        assert_eq!(model_config(name), None);
    }
    assert_eq!(model_config("gpt2"), None, "a short name is not an id");
    assert_eq!(model("gpt2").map(|m| m.id), Ok("openai-community/gpt2"));
    let Err(LookupError::Unknown { nearest, .. }) = model("meta-llama/Llama-2-7b") else {
        panic!("exists?");
    };
    assert_eq!(
        nearest.first().map(String::as_str),
        Some("meta-llama/Llama-2-7b-hf")
    );
}

#[test]
fn counts_by_what_stands_behind_them() {
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    for m in models() {
        let known = m.known_count();
        *by.entry(format!("{:?}", known.map(|k| k.basis)))
            .or_default() += 1;
        let Some(known) = known else { continue };
        match known.basis {
            CountBasis::CheckpointWithSurplus => {
                assert_eq!(Some(known.count), m.checkpoint_total);
                assert!(
                    m.surplus().is_some() && m.params_exact < m.checkpoint_total,
                    "{}",
                    m.id
                );
            }
            CountBasis::PublishedCheckpointDiffers => {
                assert_ne!(m.params_exact, m.checkpoint_total)
            }
            CountBasis::Checkpoint => assert_eq!(m.params_exact, m.checkpoint_total),
            CountBasis::Published | CountBasis::PublishedComponent => {
                assert_eq!(m.checkpoint_total, None)
            }
        }
    }
    let expected = [
        ("None", 13),
        ("Some(Checkpoint)", 152),
        ("Some(CheckpointWithSurplus)", 11),
        ("Some(Published)", 40),
        ("Some(PublishedCheckpointDiffers)", 26),
        ("Some(PublishedComponent)", 4),
    ];
    assert_eq!(
        by,
        expected
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect()
    );
}

#[test]
fn a_computed_count_is_not_a_known_one() {
    let m = model("bigscience/T0_3B").expect("in the table");
    assert_eq!(
        (m.params_exact, m.known_count()),
        (Some(2_849_757_184), None)
    );
    let m = model("timm/vit_huge_patch14_224").expect("in the table");
    assert_eq!((m.params_exact, m.known_count()), (None, None));
    // 32 layers x 64 rotary frequencies
    let m = model("Llama-2-7b-hf").expect("in the table");
    let known = m.known_count().expect("a checkpoint total");
    assert_eq!(known.basis, CountBasis::CheckpointWithSurplus);
    assert_eq!(Some(known.count - 32 * 64), m.params_exact);
}
