//! Acceptance: comparison and output (K13, K35, K36, K37).

mod common;
use common::*;
use serde_json::Value;
use tonnage_core::footprint::Options;
use tonnage_report::{Style, csv, json, markdown, svg, text};
use tonnage_units::{ByteStyle, Bytes};

#[test]
fn k13_a_documents_sweep_is_one_command() {
    let file = seed("gpt-configs/150M.json");
    let file = file.to_str().unwrap();
    let o = tonnage(&[
        "compare",
        file,
        "--sweep",
        "batch-size=8,16,32,64",
        "--format",
        "csv",
    ]);
    let t = stdout(&o);
    let rows: Vec<Vec<&str>> = t.lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(rows.len(), 5, "{t}");
    assert_eq!(
        rows[0][..4],
        ["job", "peak_allocated", "peak_reserved", "peak_device"]
    );
    let peaks: Vec<u64> = rows[1..].iter().map(|r| r[1].parse().unwrap()).collect();
    assert!(peaks.windows(2).all(|w| w[0] < w[1]), "{peaks:?}");
    // the independent derivation of the same sweep (allocator rounding and workspaces apart)
    for (ours, derived) in peaks.iter().zip([
        6_530_181_120u64,
        10_003_938_816,
        17_654_349_312,
        32_955_170_304,
    ]) {
        assert!(ours.abs_diff(derived) * 100 < derived, "{ours} {derived}");
    }
    let o = tonnage(&[
        "compare",
        file,
        "--sweep",
        "seq-len+model.config.block_size=128,256,512,1024",
        "--format",
        "json",
    ]);
    let v: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(v["schema"], "tonnage.compare/1");
    let peaks = v["jobs"].as_array().unwrap().iter().map(|j| {
        j["footprint"]["peak"]["allocated"]["expected"]
            .as_u64()
            .unwrap()
    });
    let derived = [
        9_049_603_584u64,
        17_654_349_312,
        40_394_030_592,
        107_994_152_448,
    ];
    for (ours, derived) in peaks.zip(derived) {
        assert!(ours.abs_diff(derived) * 200 < derived, "{ours} {derived}");
    }
    assert_eq!(v["jobs"].as_array().unwrap().len(), 4);
    let o = tonnage(&["compare", file, "--sweep", "batch-size=8,16", "--ascii"]);
    assert!(stdout(&o).contains("##"), "a plain chart: {}", stdout(&o));
    let o = tonnage(&[
        "compare",
        file,
        "--sweep",
        "batch-size=8,16",
        "--format",
        "md",
    ]);
    assert!(
        stdout(&o).starts_with("|  | batch-size=8 |"),
        "{}",
        stdout(&o)
    );
    assert_eq!(
        tonnage(&["compare", file, "--sweep", "batch=8"])
            .status
            .code(),
        Some(2)
    );
}

fn small() -> tonnage_core::Footprint {
    expected(&made(&[
        ("model", "gpt2"),
        ("seq-len", "64"),
        ("name", "caf\u{e9} | <x>"),
    ]))
}

#[test]
fn k35_units_are_one_convention_and_ascii_is_ascii() {
    let f = expected(&made(&[("model", "gpt2"), ("seq-len", "64")]));
    let in_units = |units| {
        text::footprint(
            &f,
            &Style {
                units,
                ..Style::default()
            },
        )
    };
    let (iec, si, both) = (
        in_units(ByteStyle::Iec),
        in_units(ByteStyle::Si),
        in_units(ByteStyle::Both),
    );
    assert!(iec.contains("GiB") && !iec.contains(" GB"), "{iec}");
    assert!(si.contains(" GB") && !si.contains("GiB"), "{si}");
    assert!(both.contains("GiB") && both.contains(" GB)"));
    for t in [
        &iec,
        &si,
        &both,
        &markdown::footprint(&f, &Style::default()),
        &csv::footprint(&f),
    ] {
        assert!(t.is_ascii());
    }
    let bytes = Bytes(f.peak.device.expected);
    assert_eq!(bytes.exact().parse(), Ok(bytes));
    let o = tonnage(&["estimate", "--model", "gpt2", "--seq-len", "64", "--ascii"]);
    assert!(o.stdout.is_ascii() && !o.stdout.contains(&0x1b));
}

#[test]
fn k35_text_stays_within_a_narrow_terminal() {
    let f = run(
        &job("gpt-configs/tiny.json"),
        &Options {
            gpu: Some("rtx-3090".into()),
            ..Options::default()
        },
    )
    .footprint;
    for width in [60, 80, 100] {
        let t = text::footprint(
            &f,
            &Style {
                width,
                ..Style::default()
            },
        );
        for l in t.lines() {
            assert!(
                l.chars().count() <= width || !l.trim().contains(' ') || l.contains("https://"),
                "{width}: {l}"
            );
        }
    }
}

/// The part of JSON Schema that the schema files use.
fn check(schema: &Value, root: &Value, v: &Value, at: &str) {
    if let Some(r) = schema["$ref"].as_str() {
        let target = root
            .pointer(r.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{r}"));
        return check(target, root, v, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let null = any.iter().any(|s| s["type"] == "null");
        if null && v.is_null() {
            return;
        }
        return check(&any[0], root, v, at);
    }
    if let Some(c) = schema.get("const") {
        assert_eq!(v, c, "{at}");
    }
    if let Some(e) = schema["enum"].as_array() {
        assert!(e.contains(v), "{at}: {v}");
    }
    match schema["type"].as_str() {
        Some("object") => {
            let o = v.as_object().unwrap_or_else(|| panic!("{at}: {v}"));
            for r in schema["required"].as_array().into_iter().flatten() {
                assert!(o.contains_key(r.as_str().unwrap()), "{at}: {r} is missing");
            }
            for (k, x) in o {
                match schema["properties"].get(k) {
                    Some(p) => check(p, root, x, &format!("{at}.{k}")),
                    None => match &schema["additionalProperties"] {
                        Value::Bool(false) => panic!("{at}: {k} is not in the schema"),
                        s if s.is_object() => check(s, root, x, &format!("{at}.{k}")),
                        _ => {}
                    },
                }
            }
        }
        Some("array") => {
            let a = v.as_array().unwrap_or_else(|| panic!("{at}: {v}"));
            for (i, x) in a.iter().enumerate() {
                let s = schema["prefixItems"].get(i).or_else(|| schema.get("items"));
                check(s.unwrap_or(&Value::Null), root, x, &format!("{at}[{i}]"));
            }
        }
        Some("string") => assert!(v.is_string(), "{at}: {v}"),
        Some("boolean") => assert!(v.is_boolean(), "{at}: {v}"),
        Some("number") => assert!(v.is_number(), "{at}: {v}"),
        Some("integer") => assert!(v.is_i64() || v.is_u64(), "{at}: {v}"),
        _ => {}
    }
}

#[test]
fn k36_the_program_the_library_and_json_give_the_same_bytes() {
    let name = "deepseek-qlora.json";
    let f = run(
        &job(name),
        &Options {
            gpu: Some("rtx-3060-12gb".into()),
            ..Options::default()
        },
    )
    .footprint;
    let file = seed(name);
    let args = [
        "estimate",
        file.to_str().unwrap(),
        "--gpu",
        "rtx-3060-12gb",
        "--format",
    ];
    let o = tonnage(&[&args[..], &["json"]].concat());
    let v: Value = serde_json::from_slice(&o.stdout).unwrap();
    let mut ours: Value = serde_json::from_str(&json::footprint(&f)).unwrap();
    // the two were given the file under different names
    ours["source"] = v["source"].clone();
    for k in [
        "peak",
        "components",
        "modules",
        "tensors",
        "phases",
        "timeline",
        "verdicts",
        "instant",
        "model",
        "advice",
        "uncertainties",
    ] {
        assert_eq!(ours[k], v[k], "{k}");
    }
    let schema: Value =
        serde_json::from_str(include_str!("../../../docs/schema/footprint-1.json")).unwrap();
    check(&schema, &schema, &v, "");
    assert_eq!(
        stdout(&tonnage(&["schema", "footprint"])),
        include_str!("../../../docs/schema/footprint-1.json")
    );
    let o = tonnage(&[&args[..], &["csv"]].concat());
    assert!(stdout(&o).contains(&format!("total,device,{}\n", f.peak.device.expected)));
    assert!(stdout(&o).contains(&format!("total,reserved,{}\n", f.peak.reserved.expected)));
}

/// Every file of the five sources, unedited, through the program.
#[test]
fn k36_json_of_every_source_is_valid_by_the_schema() {
    let schema: Value =
        serde_json::from_str(include_str!("../../../docs/schema/footprint-1.json")).unwrap();
    let mut all = vec!["spoter.json", "deepseek-qlora.json"];
    all.extend(GPT);
    all.extend(AGI2);
    all.extend(STATESET);
    for name in all {
        let file = seed(name);
        let o = tonnage(&[
            "estimate",
            file.to_str().unwrap(),
            "--expected-only",
            "--format",
            "json",
        ]);
        assert_eq!(o.status.code(), Some(0), "{name}: {}", stderr(&o));
        let v: Value = serde_json::from_slice(&o.stdout).unwrap();
        check(&schema, &schema, &v, name);
        let p = &v["peak"]["device"];
        assert!(p["low"].as_u64() <= p["expected"].as_u64(), "{name}");
        assert!(p["expected"].as_u64() <= p["high"].as_u64(), "{name}");
    }
}

#[test]
fn k36_json_of_validate_is_valid_by_its_schema() {
    let text = include_str!("../../../docs/schema/validate-1.json");
    let schema: Value = serde_json::from_str(text).unwrap();
    for file in ["torch-trace-own.jsonl", "published-dev.jsonl"] {
        let path = format!("groundtruth/{file}");
        let o = tonnage(&["validate", &path, "--format", "json"]);
        let v: Value = serde_json::from_slice(&o.stdout).unwrap();
        check(&schema, &schema, &v, file);
    }
    assert_eq!(stdout(&tonnage(&["schema", "validate"])), text);
}

#[test]
fn k36_every_form_holds_a_hostile_name() {
    let f = small();
    assert!(markdown::footprint(&f, &Style::default()).contains("caf\u{e9} \\| <x>"));
    let s = svg::timeline(&f, &Style::default());
    assert!(s.contains("&lt;x&gt;") && !s.contains("<x>") && s.ends_with("</svg>\n"));
    let v: Value = serde_json::from_str(&json::footprint(&f)).unwrap();
    assert_eq!(v["job"], "caf\u{e9} | <x>");
}

#[test]
fn k36_exit_statuses() {
    let code = |args: &[&str]| tonnage(args).status.code();
    assert_eq!(
        code(&[
            "estimate",
            "--model",
            "gpt2",
            "--seq-len",
            "64",
            "--gpu",
            "rtx-3090"
        ]),
        Some(0)
    );
    assert_eq!(
        code(&[
            "estimate",
            "--model",
            "gpt2",
            "--seq-len",
            "1024",
            "--batch-size",
            "64",
            "--gpu",
            "rtx-3090"
        ]),
        Some(1)
    );
    assert_eq!(code(&["estimate"]), Some(2));
    assert_eq!(code(&["estimate", "--no-such-flag"]), Some(2));
    assert_eq!(
        code(&["estimate", "--model", "gpt2", "--seq-len", "sixty"]),
        Some(2)
    );
    assert_eq!(code(&["estimate", "no-such-file.toml"]), Some(3));
    assert_eq!(
        code(&["estimate", "--model", "gtp2", "--seq-len", "64"]),
        Some(3)
    );
    assert_eq!(
        code(&[
            "estimate",
            "--model",
            "gpt2",
            "--seq-len",
            "64",
            "--gpu",
            "h100"
        ]),
        Some(3)
    );
    let e = stderr(&tonnage(&[
        "estimate",
        "--model",
        "gpt2",
        "--seq-len",
        "64",
        "--gpu",
        "h100",
    ]));
    assert!(e.contains("ambiguous") && e.contains("h100-sxm"), "{e}");
    // a model that is known and not simulated
    assert_eq!(
        code(&[
            "estimate",
            "--model",
            "ai21labs/Jamba-v0.1",
            "--seq-len",
            "64"
        ]),
        Some(4)
    );
}

#[test]
fn k37_every_result_lists_its_assumptions_and_what_changes_them() {
    for name in [
        "gpt-configs/tiny.json",
        "spoter.json",
        "deepseek-qlora.json",
        "agi2/rj.toml",
        "stateset/stateset-7b-grpo.json",
    ] {
        let f = expected(&job(name));
        for key in [
            "train.precision",
            "train.optimizer",
            "train.attention",
            "train.loss",
            "train.hold",
            "stack.torch",
        ] {
            let a = f
                .assumptions
                .iter()
                .find(|a| a.key == key)
                .unwrap_or_else(|| panic!("{name}: {key}"));
            assert!(!a.value.is_empty() && a.flag.starts_with("--"), "{a:?}");
        }
        let t = text::footprint(&f, &Style::default());
        for word in ["Assumptions", "--precision", "--optimizer", "--gpu ID"] {
            assert!(t.contains(word), "{name}: {word}");
        }
        for a in f.assumptions.iter().filter(|a| a.origin == "inferred") {
            assert!(a.why.is_some(), "{a:?}");
        }
    }
    let grpo = expected(&job("stateset/stateset-7b-grpo.json"));
    assert!(
        grpo.unsupported[0].contains("rollout part of GRPO is not supported yet"),
        "{:?}",
        grpo.unsupported
    );
    let t = text::footprint(
        &grpo,
        &Style {
            width: 400,
            ..Style::default()
        },
    );
    assert!(t.contains("Not simulated: the rollout part of GRPO"), "{t}");
}

#[test]
fn k34_an_audit_by_the_program() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/audit/guide.md");
    let o = tonnage(&["audit", guide, "--format", "json"]);
    assert_eq!(o.status.code(), Some(1), "a claim fails");
    let v: Value = serde_json::from_slice(&o.stdout).unwrap();
    let text = include_str!("../../../docs/schema/audit-1.json");
    let schema: Value = serde_json::from_str(text).unwrap();
    check(&schema, &schema, &v, "");
    assert_eq!(stdout(&tonnage(&["schema", "audit"])), text);
    let o = tonnage(&["audit", guide]);
    assert!(stdout(&o).lines().next().unwrap().contains("15 claims"));
    for l in stdout(&tonnage(&["audit", guide, "--width", "80"])).lines() {
        assert!(l.chars().count() <= 85 || l.contains("guide.md"), "{l}");
    }
    let o = tonnage(&["audit", "no-such-file.md"]);
    assert_eq!(o.status.code(), Some(3));
}
