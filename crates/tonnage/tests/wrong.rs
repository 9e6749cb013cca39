//! Wrong inputs: one clear error each, and the exit status that goes with it.

mod common;
use common::{stderr, stdout, tonnage};

/// Exit status and the complaint; nothing may be on standard output.
fn wrong(args: &[&str]) -> (i32, String) {
    let o = tonnage(args);
    let e = stderr(&o);
    assert!(o.stdout.is_empty(), "{args:?}: {}", stdout(&o));
    assert_eq!(e.matches("error:").count(), 1, "{args:?}: {e}");
    assert!(!e.contains("panicked"), "{args:?}: {e}");
    (o.status.code().unwrap_or(-1), e)
}

/// `estimate --model gpt2 --seq-len 16` with more.
fn with(more: &[&str]) -> (i32, String) {
    wrong(&[&["estimate", "--model", "gpt2", "--seq-len", "16"], more].concat())
}

#[test]
fn files_that_are_no_jobs() {
    let d = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let p = d.path().join(name);
        std::fs::write(&p, bytes).unwrap();
        p.to_str().unwrap().to_string()
    };
    let (code, e) = wrong(&["estimate", "nope.toml"]);
    assert_eq!(code, 3);
    assert!(e.contains("nope.toml") && e.contains("No such file"), "{e}");
    let folder = d.path().to_str().unwrap();
    let (code, e) = wrong(&["estimate", folder]);
    assert_eq!(code, 3);
    assert!(e.contains(folder) && e.contains("a job is a file"), "{e}");
    let binary: Vec<u8> = (0..=255u8).cycle().take(4096).collect();
    let (code, e) = wrong(&["estimate", &path("b.toml", &binary)]);
    assert_eq!(code, 3);
    assert!(e.contains("not UTF-8 text"), "{e}");
    let (code, e) = wrong(&["estimate", &path("t.toml", b"name = \"x\"\n[model\n")]);
    assert_eq!(code, 3);
    assert!(
        e.contains("t.toml:2:7") && e.contains("not valid TOML"),
        "{e}"
    );
    let (code, e) = wrong(&[
        "estimate",
        &path("t.json", b"{\"model_type\": \"gpt2\",\n \"n_embd\": }"),
    ]);
    assert_eq!(code, 3);
    assert!(
        e.contains("t.json:2:12") && e.contains("not valid JSON"),
        "{e}"
    );
    let (code, e) = wrong(&["estimate", &path("e.toml", b"")]);
    assert_eq!(code, 3);
    assert!(e.contains("no model is named"), "{e}");
    let (code, e) = wrong(&["estimate", &path("k.json", b"{\"a\": 1}")]);
    assert_eq!(code, 3);
    assert!(e.contains("no known kind of job file"), "{e}");
    // a model's name where a file belongs
    let (code, e) = wrong(&["estimate", "gpt2"]);
    assert_eq!(code, 3);
    assert!(e.contains("--model gpt2"), "{e}");
    // a byte order mark and Windows' line ends are no mistake
    let text = b"\xef\xbb\xbf[model]\r\nid = \"gpt2\"\r\n[train]\r\nseq_len = 16\r\n";
    let o = tonnage(&["estimate", &path("w.toml", text), "--expected-only"]);
    assert_eq!(o.status.code(), Some(0), "{}", stderr(&o));
}

#[test]
fn fields_and_flags() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("m.toml");
    std::fs::write(&p, "[model]\nid = \"gpt2\"\n[train]\nseq_lenn = 16\n").unwrap();
    let (code, e) = wrong(&["estimate", p.to_str().unwrap()]);
    assert_eq!(code, 3);
    for word in [
        "m.toml:4:1",
        "seq_lenn = 16",
        "^^^^^^^^",
        "did you mean `seq_len`?",
    ] {
        assert!(e.contains(word), "{word}: {e}");
    }
    for (args, word) in [
        (&["estimate", "--modell", "gpt2"][..], "'--model'"),
        (&["estimat"], "'estimate'"),
        (&["estimate"], "no job"),
        (&["compare"], "no job"),
        (&["estimate", "a.toml", "b.toml"], "b.toml"),
        (
            &["compare", "--model", "gpt2", "--sweep", "seq-len"],
            "SETTING=A,B",
        ),
        (&["schema", "nope"], "footprint"),
    ] {
        let (code, e) = wrong(args);
        assert_eq!(code, 2, "{args:?}: {e}");
        assert!(e.contains(word), "{args:?}: {e}");
    }
    for (more, word) in [
        (&["--precision", "bf17"][..], "did you mean `bf16`?"),
        (&["--batch-size", "0"], "at least 1"),
        (&["--batch-size", "-3"], "-3"),
        (&["--batch-size", "many"], "many"),
        (&["--set", "nope=1"], "no setting is named `nope`"),
        (&["--explain", "nope"], "saved_activations"),
        (&["--set", "train.seq_len"], "KEY=VALUE"),
    ] {
        let (code, e) = with(more);
        assert_eq!(code, 2, "{more:?}: {e}");
        assert!(e.contains(word), "{more:?}: {e}");
    }
    let (code, e) = wrong(&["estimate", "--model", "gpt2"]);
    assert_eq!(code, 3);
    assert!(e.contains("--seq-len N"), "{e}");
}

#[test]
fn names_of_models_and_cards() {
    let (code, e) = with(&["--gpu", "rtx-309"]);
    assert_eq!(code, 3);
    assert!(e.contains("did you mean rtx-3090"), "{e}");
    let (code, e) = with(&["--gpu", "h100"]);
    assert_eq!(code, 3);
    assert!(
        e.contains("ambiguous: h100-pcie, h100-sxm, h100-nvl"),
        "{e}"
    );
    let (code, e) = with(&["--gpu", "mi300x"]);
    assert_eq!(code, 4, "{e}");
    let (code, e) = wrong(&["estimate", "--model", "gtp2", "--seq-len", "16"]);
    assert_eq!(code, 3);
    assert!(e.contains("did you mean openai-community/gpt2"), "{e}");
    for args in [["models", "zzzz"], ["gpus", "zzzz"]] {
        let (code, e) = wrong(&args);
        assert_eq!(code, 3);
        assert!(e.contains("zzzz"), "{e}");
    }
}

#[test]
fn sizes_that_nobody_means() {
    for more in [
        &["--batch-size", "4000000000"][..],
        &["--batch-size", "99999999999999999999"],
        &["--accumulation", "4000000000"],
        &["--steps", "4000000000"],
        &["--lora-r", "4000000000", "--lora-targets", "c_attn"],
        &["--set", "model.config.n_layer=0"],
        &["--set", "model.config.n_layer=1000000"],
        &["--set", "model.config.n_embd=123456789012"],
        &["--set", "model.config.n_embd=-768"],
        &["--set", "model.config.vocab_size=4294967295"],
        &["--set", "model.config.n_head=7"],
        &["--set", "model.config.n_head=0"],
        &["--freeze-layers", "100"],
        &[
            "--batch-size",
            "100000",
            "--set",
            "train.seq_len=1000000",
            "--set",
            "model.config.n_positions=1000000",
        ],
    ] {
        let (code, e) = with(more);
        assert!(matches!(code, 2 | 3), "{more:?}: {code} {e}");
    }
}

#[test]
fn recorded_runs_that_are_none() {
    for (file, word) in [
        ("nope.jsonl", "No such file"),
        ("crates", "directory"),
        ("README.md", "README.md:1"),
    ] {
        let (code, e) = wrong(&["validate", file]);
        assert_eq!(code, 3, "{file}");
        assert!(e.contains(word), "{e}");
    }
}

#[test]
fn no_built_in_configuration_is_taken_for_a_mistake() {
    for m in tonnage_catalog::models() {
        let job = common::made(&[("model", m.id)]);
        if let Err(d) = job.model_config() {
            assert!(d.code == "missing", "{}: {d}", m.id);
        }
    }
}
