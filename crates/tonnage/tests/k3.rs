//! Acceptance: models described in data (K3), through the program.

mod common;
use common::*;
use serde_json::Value;

fn footprint(args: &[&str]) -> Value {
    let o = tonnage(&[&["estimate"], args, &["--format", "json"]].concat());
    assert!(
        o.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&o.stderr)
    );
    serde_json::from_str(&stdout(&o)).expect("JSON")
}

/// Everything but the names of job and model and what the assumptions say about them.
fn figures(mut v: Value) -> Value {
    let o = v.as_object_mut().expect("an object");
    for key in ["job", "source", "assumptions", "verdicts"] {
        o.remove(key);
    }
    v
}

#[test]
fn k3_described_spoter_and_per_head_gpt_have_the_coded_footprint() {
    for (coded, described) in [
        ("examples/spoter.toml", "examples/described-spoter.toml"),
        ("examples/gpt-150m.toml", "examples/described-gpt-150m.toml"),
    ] {
        let (a, b) = (footprint(&[coded]), footprint(&[described]));
        assert!(
            a["peak"]["allocated"]["expected"]
                .as_u64()
                .is_some_and(|n| n > 0)
        );
        assert_eq!(figures(a), figures(b), "{described}");
        let text = stdout(&tonnage(&["estimate", described]));
        assert!(!text.contains("unverified"), "{text}");
    }
}

#[test]
fn k3_other_descriptions_run_and_say_unverified() {
    for (job, count) in [
        ("examples/described-llama.toml", 124_668_672),
        ("examples/described-bert.toml", 109_483_778),
    ] {
        let text = stdout(&tonnage(&["estimate", job]));
        assert!(text.contains("unverified"), "{text}");
        let v = footprint(&[job]);
        assert_eq!(v["model"]["param_count"], count, "{job}");
        assert!(
            v["notes"]
                .as_array()
                .is_some_and(|n| n.iter().any(|n| n["code"] == "unverified"))
        );
    }
}

#[test]
fn k3_a_description_is_found_beside_the_job_and_complains_with_its_own_line() {
    let folder = std::env::temp_dir().join(format!("tonnage-k3-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let good =
        std::fs::read_to_string(seed("").join("../../../../examples/descriptions/llama_like.toml"))
            .unwrap();
    let job = |config: &str| {
        format!(
            "[model]\ndescription = \"mine.toml\"\nconfig = {{ vocab_size = 16, hidden_size = 8, intermediate_size = 16, num_hidden_layers = 1, {config} }}\n[train]\nseq_len = 8\n"
        )
    };
    let path = folder.join("job.toml");
    let fails = |description: &str, config: &str| {
        std::fs::write(folder.join("mine.toml"), description).unwrap();
        std::fs::write(&path, job(config)).unwrap();
        let o = tonnage(&["estimate", path.to_str().unwrap()]);
        (
            o.status.code(),
            String::from_utf8_lossy(&o.stderr).into_owned(),
        )
    };
    let (code, said) = fails(&good, "num_attention_heads = 2");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = fails(
        &good.replace("gate = \"mlp.gate_proj\"", "gate = \"mlp.gate\""),
        "num_attention_heads = 2",
    );
    assert_eq!(code, Some(3), "{said}");
    let line = 1 + good.lines().position(|l| l.starts_with("gate = ")).unwrap();
    assert!(said.contains(&format!("mine.toml:{line}:")), "{said}");
    assert!(
        said.contains("forward.ffn.gate") && said.contains("did you mean"),
        "{said}"
    );
    let (code, said) = fails(&good, "num_attention_head = 2");
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("`num_attention_head`")
            && said.contains("did you mean `num_attention_heads`?"),
        "{said}"
    );
    let (code, said) = fails(&good, "num_attention_heads = 3");
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("8 is not divisible by 3"), "{said}");
    std::fs::remove_file(folder.join("mine.toml")).unwrap();
    std::fs::write(&path, job("num_attention_heads = 2")).unwrap();
    let o = tonnage(&["estimate", path.to_str().unwrap()]);
    assert_eq!(o.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&o.stderr).contains("mine.toml"));
    std::fs::remove_dir_all(&folder).unwrap();
}
