//! Folders and caches as they lie on disks.

mod common;
use common::*;
use std::path::Path;
use tonnage_host::{Env, HostError, Origin, compare, find, folder};
use tonnage_model::count::count;

/// Names and shapes.
type Tensors = Vec<(&'static str, &'static [u64])>;

fn write(dir: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn a_folder_is_its_config_and_the_headers_of_its_files() {
    let d = tempfile::tempdir().unwrap();
    write(
        d.path(),
        &[
            ("config.json", CONFIG.into()),
            ("generation_config.json", b"{\"max_new_tokens\":7}".to_vec()),
        ],
    );
    let m = folder(d.path()).unwrap();
    assert!(m.tensors.is_none() && m.notes[0].contains("no safetensors"));
    assert_eq!(m.generation.unwrap()["max_new_tokens"], 7);
    write(d.path(), &sharded());
    let m = folder(d.path()).unwrap();
    let c = compare(
        &count(m.config.as_ref().unwrap()).unwrap(),
        m.tensors.as_ref().unwrap(),
    );
    assert!(c.is_identical(), "{c:?}");
    // one file under a name of its own
    let d = tempfile::tempdir().unwrap();
    write(
        d.path(),
        &[
            ("config.json", CONFIG.into()),
            ("tiny.safetensors", safetensors(&tensors())),
        ],
    );
    assert_eq!(folder(d.path()).unwrap().tensors.unwrap().len(), 12);
}

#[test]
fn damaged_folders_are_one_error_each_that_names_the_file() {
    let d = tempfile::tempdir().unwrap();
    let e = folder(d.path()).unwrap_err();
    assert!(matches!(e, HostError::NotAModel(_)), "{e}");
    for (name, bytes, word) in [
        ("config.json", b"{\"a\":1,".to_vec(), "config.json"),
        ("config.json", vec![0xff, 0xfe], "not UTF-8"),
        (
            "model.safetensors",
            b"\x09\0\0\0\0\0\0\0{}".to_vec(),
            "model.safetensors",
        ),
        ("model.safetensors", vec![], "model.safetensors"),
        ("model.safetensors", b"12345678".to_vec(), "too many"),
        ("model.safetensors.index.json", b"{}".to_vec(), "weight_map"),
    ] {
        let d = tempfile::tempdir().unwrap();
        write(d.path(), &[("config.json", CONFIG.into())]);
        write(d.path(), &[(name, bytes)]);
        let e = folder(d.path()).unwrap_err();
        assert!(
            e.to_string().contains(word) && !e.is_unavailable(),
            "{name}: {e}"
        );
    }
    let d = tempfile::tempdir().unwrap();
    std::fs::create_dir(d.path().join("config.json")).unwrap();
    assert!(
        folder(d.path())
            .unwrap_err()
            .to_string()
            .contains("not a file")
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_a_file_does_not_keep_us_waiting() {
    let d = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(d.path().join("config.json"))
        .status();
    if made.is_ok_and(|s| s.success()) {
        assert!(
            folder(d.path())
                .unwrap_err()
                .to_string()
                .contains("not a file")
        );
    }
}

#[test]
fn the_cache_answers_before_any_request() {
    let d = tempfile::tempdir().unwrap();
    let files = [
        ("config.json", CONFIG.into()),
        ("model.safetensors", safetensors(&tensors())),
    ];
    let snapshot = cache_entry(d.path(), "org/tiny", &files);
    let s = hub(vec![]);
    let env = Env {
        cache: Some(d.path().into()),
        endpoint: s.url(),
        ..Env::default()
    };
    for revision in [None, Some("main"), Some(COMMIT)] {
        let m = find(&env, "org/tiny", revision).unwrap();
        assert_eq!(m.from, Origin::Cache(snapshot.clone()));
        assert_eq!(m.commit.as_deref(), Some(COMMIT));
        assert_eq!(m.tensors.unwrap().len(), 12);
    }
    assert!(s.requests().is_empty());
    // also without a network, and of a model without an organisation
    cache_entry(d.path(), "tiny", &files);
    let offline = Env {
        offline: Some("HF_HUB_OFFLINE"),
        ..env.clone()
    };
    assert!(find(&offline, "tiny", None).is_ok());
    // other models and revisions are not in it
    for (id, revision) in [("org/tiny", Some("v2")), ("org/else", None)] {
        let e = find(&offline, id, revision).unwrap_err();
        assert!(matches!(e, HostError::Offline { .. }), "{e}");
        assert!(e.to_string().contains(d.path().to_str().unwrap()), "{e}");
        assert!(find(&env, id, revision).is_err());
    }
    assert!(!s.requests().is_empty());
}

#[test]
fn half_an_entry_is_no_entry_and_a_damaged_one_is_said() {
    let d = tempfile::tempdir().unwrap();
    let env = Env {
        cache: Some(d.path().into()),
        offline: Some("HF_HUB_OFFLINE"),
        ..Env::default()
    };
    let miss = |id: &str| matches!(find(&env, id, None), Err(HostError::Offline { .. }));
    cache_entry(
        d.path(),
        "org/tokens",
        &[("tokenizer.json", b"{}".to_vec())],
    );
    assert!(miss("org/tokens"));
    let snapshot = cache_entry(d.path(), "org/broken", &[("config.json", b"{".to_vec())]);
    let e = find(&env, "org/broken", None).unwrap_err();
    assert!(
        e.to_string().contains("config.json") && !e.is_unavailable(),
        "{e}"
    );
    // a reference that leads elsewhere is none
    std::fs::write(snapshot.join("../../refs/main"), "../../../etc").unwrap();
    assert!(miss("org/broken"));
    // weights that were not downloaded yet: the configuration is enough
    let [index, one, _] = sharded();
    cache_entry(
        d.path(),
        "org/part",
        &[("config.json", CONFIG.into()), index, one],
    );
    let m = find(&env, "org/part", None).unwrap();
    assert!(
        m.tensors.is_none() && m.notes[0].contains("model-00002-of-00002"),
        "{:?}",
        m.notes
    );
}

#[test]
fn a_difference_names_its_tensors() {
    let counted = count(&serde_json::from_str(CONFIG).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Tensors)| {
        let d = tempfile::tempdir().unwrap();
        let mut t = tensors();
        change(&mut t);
        write(
            d.path(),
            &[
                ("config.json", CONFIG.into()),
                ("model.safetensors", safetensors(&t)),
            ],
        );
        compare(&counted, &folder(d.path()).unwrap().tensors.unwrap())
    };
    let c = with(&|t| t.push(("model.layers.0.mlp.extra.weight", &[3])));
    let said = c.difference().unwrap();
    assert!(
        said.contains("1_691 parameters, 1_688 are counted"),
        "{said}"
    );
    assert!(
        said.contains("only in the files: model.layers.*.mlp.extra.weight (3)"),
        "{said}"
    );
    let said = with(&|t| {
        t.pop();
    })
    .difference()
    .unwrap();
    assert!(
        said.contains("not in the files: lm_head.weight (512)"),
        "{said}"
    );
    let said = with(&|t| t[0].1 = &[65, 8]).difference().unwrap();
    assert!(
        said.contains("model.embed_tokens.weight is [65, 8] in the files, [64, 8]"),
        "{said}"
    );
    // buffers are no parameters
    let c = with(&|t| t.push(("model.layers.0.self_attn.rotary_emb.inv_freq", &[2])));
    assert!(
        c.is_identical() && c.buffers[0].pattern.contains("inv_freq"),
        "{c:?}"
    );
}

#[test]
fn names_with_and_without_the_base_models_prefix_are_the_same() {
    let config = r#"{"model_type":"gpt2","n_embd":8,"n_layer":1,"n_head":2,"n_positions":16,"vocab_size":32}"#;
    let counted = count(&serde_json::from_str(config).unwrap()).unwrap();
    let d = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, Vec<u64>)> = counted
        .inventory()
        .map(|t| {
            let name = t
                .name
                .strip_prefix("transformer.")
                .unwrap_or(t.name)
                .to_string();
            (name, t.shape.dims().iter().map(|d| u64::from(*d)).collect())
        })
        .collect();
    assert!(tensors.iter().any(|t| t.0 == "wte.weight"), "{tensors:?}");
    let mut list: Vec<(&str, &[u64])> = tensors.iter().map(|t| (t.0.as_str(), &t.1[..])).collect();
    list.push(("h.0.attn.bias", &[1, 1, 16, 16]));
    list.push(("lm_head.weight", &[32, 8]));
    write(
        d.path(),
        &[
            ("config.json", config.into()),
            ("model.safetensors", safetensors(&list)),
        ],
    );
    let c = compare(&counted, &folder(d.path()).unwrap().tensors.unwrap());
    assert!(c.is_identical(), "{c:?}");
    assert_eq!((c.buffers[0].elements, c.tied[0].elements), (256, 256));
}
