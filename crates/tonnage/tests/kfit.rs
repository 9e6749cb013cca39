//! Acceptance: sweeps (K13), cards (K14), limits (K15), memories and models (K16), schedules (K26) and the report, by the program.

mod common;
use common::*;
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    let o = tonnage(&[args, &["--format", "json"]].concat());
    serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", stderr(&o)))
}

const SMALL: [&str; 8] = [
    "--model",
    "gpt2",
    "--set",
    "model.config.n_layer=2",
    "--seq-len",
    "256",
    "--batch-size",
    "4",
];

#[test]
fn k13_a_sweep_is_a_table_a_chart_csv_json_and_svg_with_claims_beside() {
    let sweep = [
        &["compare"],
        &SMALL[..],
        &[
            "--sweep",
            "micro_batch_size=2,4,8",
            "--claims",
            "1 GB,2 GB,3 GB",
            "--gpu",
            "gtx-1050-ti",
        ],
    ]
    .concat();
    let form = |f: &str| stdout(&tonnage(&[&sweep[..], &["--format", f]].concat()));
    let text = form("text");
    let rows: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("micro_batch_size="))
        .collect();
    // bars grow with the batch
    let bars: Vec<usize> = rows
        .iter()
        .take(3)
        .map(|l| l.matches('#').count())
        .collect();
    assert!(
        bars[0] > 0 && bars.windows(2).all(|w| w[0] <= w[1]) && bars[0] < bars[2],
        "{text}"
    );
    assert!(
        rows[0].contains("1 GB") && rows[2].contains("3 GB"),
        "{text}"
    );
    let csv = form("csv");
    assert!(
        csv.lines().next().unwrap().ends_with(",claimed")
            && csv.lines().nth(3).unwrap().ends_with(",3 GB"),
        "{csv}"
    );
    let v: Value = serde_json::from_str(&form("json")).unwrap();
    assert_eq!(v["jobs"][1]["claim"], "2 GB");
    assert!(form("md").contains("| claimed | 1 GB | 2 GB | 3 GB |"));
    let svg = form("svg");
    assert!(
        svg.starts_with("<svg")
            && svg.trim_end().ends_with("</svg>")
            && svg.contains("GTX 1050 Ti"),
        "{svg}"
    );
    for j in v["jobs"].as_array().unwrap() {
        let device = j["footprint"]["peak"]["device"]["expected"]
            .as_u64()
            .unwrap();
        let shown = tonnage_units::Bytes(device)
            .display(tonnage_units::ByteStyle::Iec)
            .to_string();
        assert!(svg.contains(&shown), "{shown}");
    }
}

#[test]
fn k14_fit_over_cards_is_estimate_on_each() {
    let v = json(
        &[
            &["fit", "--cards", "--gpus", "gtx-1050-ti,rtx-4090"],
            &SMALL[..],
            &["--batch-size", "48"][..0],
        ]
        .concat(),
    );
    assert_eq!(v["schema"], "tonnage.fit-training/1");
    for r in v["rows"].as_array().unwrap() {
        let gpu = r["gpu"].as_str().unwrap();
        let e = json(&[&["estimate", "--expected-only", "--gpu", gpu], &SMALL[..]].concat());
        let (name, verdict) = (&e["verdicts"][0]["gpu"], &e["verdicts"][0]["cases"][0][1]);
        assert_eq!(name, gpu);
        assert_eq!(
            (&r["outcome"], &r["margin_bytes"], &r["available_bytes"]),
            (
                &verdict["outcome"],
                &verdict["margin_bytes"],
                &verdict["available_bytes"]
            ),
            "{gpu}"
        );
        assert_eq!(r["needed_bytes"], e["peak"]["device"]["expected"], "{gpu}");
    }
}

#[test]
fn exit_status_says_whether_anything_fits() {
    let code = |args: &[&str]| tonnage(args).status.code();
    let huge = [
        "fit",
        "--cards",
        "--gpus",
        "gtx-1050-ti",
        "--model",
        "gpt2-xl",
        "--seq-len",
        "1024",
        "--batch-size",
        "8",
    ];
    assert_eq!(code(&huge), Some(1));
    assert_eq!(
        code(&["fit", "examples/spoter.toml", "--gpus", "gtx-1050-ti"]),
        Some(0)
    );
    assert_eq!(code(&["fit", "--memory", "12"]), Some(2));
    assert_eq!(code(&["fit"]), Some(2));
    assert_eq!(code(&["fit", "--model", "20B"]), Some(3));
    assert_eq!(
        code(&["fit", "examples/spoter.toml", "--largest", "batch"]),
        Some(2)
    );
    assert_eq!(
        code(&[
            "fit",
            "--memory",
            "1GiB",
            "--model",
            "7B",
            "--methods",
            "full"
        ]),
        Some(1)
    );
    assert_eq!(code(&["fit", "no-such-model-or-file"]), Some(2));
}

#[test]
fn a_bare_size_is_the_same_model_to_every_verb() {
    let size = ["--model", "1.3B", "--seq-len", "128"];
    let name = ["--model", "facebook/opt-1.3b", "--seq-len", "128"];
    for verb in [
        &["estimate", "--gpu", "rtx-4090"][..],
        &["plan", "--gpu", "rtx-3060-12gb"],
    ] {
        let (mut a, mut b) = (
            json(&[verb, &size[..]].concat()),
            json(&[verb, &name[..]].concat()),
        );
        // that the size was read as a name is said, and is all
        let notes = a["notes"]
            .as_array_mut()
            .unwrap_or_else(|| panic!("{verb:?}"));
        let before = notes.len();
        notes.retain(|n| !n.to_string().contains("1.3B stands for facebook/opt-1.3b"));
        assert_eq!(notes.len() + 1, before, "{verb:?}: {notes:?}");
        for v in [&mut a, &mut b] {
            let o = v.as_object_mut().unwrap();
            o.remove("assumptions");
        }
        assert_eq!(a, b, "{verb:?}");
    }
    let o = tonnage(&["estimate", "--model", "20B"]);
    assert_eq!(o.status.code(), Some(3));
    assert!(
        stderr(&o).contains("no reference model is within 10 % of 20B"),
        "{}",
        stderr(&o)
    );
}

#[test]
fn k16_a_bare_size_is_a_named_model() {
    let v = json(&[
        "fit",
        "--memory",
        "24GiB",
        "--model",
        "1.3B",
        "--seq-len",
        "128",
    ]);
    assert_eq!(v["lines"][0]["model"], "facebook/opt-1.3b");
    assert_eq!(v["lines"][0]["parameters"], 1_315_758_080u64);
    let t = stdout(&tonnage(&[
        "fit",
        "--memory",
        "24GiB",
        "--model",
        "1.3B",
        "--seq-len",
        "128",
    ]));
    assert!(
        t.contains("facebook/opt-1.3b")
            && t.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .contains("train.seq_len 128 (given)"),
        "{t}"
    );
}

#[test]
fn k26_agi2s_file_brings_its_rule() {
    let file = seed("agi2/lilwill-later.toml");
    let v = json(&[
        "fit",
        file.to_str().unwrap(),
        "--set",
        "model.config.n_layer=1",
        "--memory",
        "40GiB",
        "--lengths",
        "128..512",
        "--rule",
        "agi2",
    ]);
    let rows = v["lengths"].as_array().unwrap();
    let rule: Vec<u64> = rows
        .iter()
        .map(|r| r["rule"]["value"].as_u64().unwrap())
        .collect();
    assert_eq!(rule, [288, 144, 72]);
    assert!(rows.iter().all(|r| r["batch"]["outcome"] == "fits"), "{v}");
}

#[test]
fn the_report_is_one_file_that_needs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.html");
    let args = [
        &["report"],
        &SMALL[..],
        &[
            "--gpu",
            "rtx-3060-12gb",
            "--gpus",
            "gtx-1050-ti,rtx-3060-12gb",
            "-o",
            file.to_str().unwrap(),
        ],
    ]
    .concat();
    let o = tonnage(&args);
    assert!(o.status.success(), "{}", stderr(&o));
    let html = std::fs::read_to_string(&file).unwrap();
    for bad in ["<script", "<link", "src=", "@import", "url(", "href="] {
        assert!(!html.contains(bad), "{bad}");
    }
    // an SVG's namespace is a name, not an address
    assert_eq!(
        html.matches("http").count(),
        html.matches("http://www.w3.org/2000/svg").count()
    );
    assert_eq!(html.matches("<svg").count(), 4, "bar, timeline, two sweeps");
    // the plan that the verb gives, in the same words
    let o = tonnage(&[&["plan"], &SMALL[..], &["--gpu", "rtx-3060-12gb"]].concat());
    let plan = stdout(&o);
    let first = plan.lines().next().unwrap();
    for line in [first, "The plan", "recommended", "settings ranked"] {
        assert!(html.contains(line), "{line}");
    }
    assert_eq!(html.contains("No effect"), plan.contains("No effect"));
    for tag in ["table", "figure", "tr", "td", "svg", "details", "p"] {
        let open =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    // its figures are estimate's
    let e = json(&[&["estimate", "--gpu", "rtx-3060-12gb"], &SMALL[..]].concat());
    for c in e["components"].as_array().unwrap() {
        let n = c["bytes"].as_u64().unwrap();
        let shown = tonnage_units::Bytes(n)
            .display(tonnage_units::ByteStyle::Iec)
            .to_string();
        assert!(n == 0 || html.contains(&shown), "{c}");
    }
    assert!(html.contains("GTX 1050 Ti") && html.contains("class=\"fits\""));
    let md = stdout(&tonnage(
        &[&args[..args.len() - 2], &["--format", "md"]].concat(),
    ));
    assert!(
        md.contains("### Memory by batch") && md.contains("### On which card it fits"),
        "{md}"
    );
}

/// The part of JSON Schema that these schema files use.
fn check(s: &Value, v: &Value, at: &str) {
    if let Some(all) = s["oneOf"].as_array() {
        let of = |a: &&Value| a["properties"]["question"]["const"] == v["question"];
        return check(
            all.iter()
                .find(of)
                .unwrap_or_else(|| panic!("{at}: {}", v["question"])),
            v,
            at,
        );
    }
    if let Some(any) = s["anyOf"].as_array() {
        if !v.is_null() {
            check(&any[0], v, at);
        }
        return;
    }
    if let Some(c) = s.get("const") {
        assert_eq!(v, c, "{at}");
    }
    if let Some(e) = s["enum"].as_array() {
        assert!(e.contains(v), "{at}: {v}");
    }
    match s["type"].as_str() {
        Some("object") => {
            let o = v.as_object().unwrap_or_else(|| panic!("{at}: {v}"));
            for r in s["required"].as_array().into_iter().flatten() {
                assert!(o.contains_key(r.as_str().unwrap()), "{at}: {r} is missing");
            }
            for (k, x) in o {
                match s["properties"].get(k) {
                    Some(p) => check(p, x, &format!("{at}.{k}")),
                    None => assert_ne!(
                        s["additionalProperties"], false,
                        "{at}: {k} is not in the schema"
                    ),
                }
            }
        }
        Some("array") => v
            .as_array()
            .unwrap_or_else(|| panic!("{at}: {v}"))
            .iter()
            .for_each(|x| check(&s["items"], x, at)),
        Some("string") => assert!(v.is_string(), "{at}: {v}"),
        Some("boolean") => assert!(v.is_boolean(), "{at}: {v}"),
        Some("number") => assert!(v.is_number(), "{at}: {v}"),
        Some("integer") => assert!(v.is_i64() || v.is_u64(), "{at}: {v}"),
        _ => {}
    }
}

#[test]
fn k36_json_of_catalogs_comparisons_and_fits_is_valid_by_the_schemas() {
    let job = |more: &[&'static str]| [&SMALL[..], more].concat();
    let cases: Vec<(&str, Vec<&str>)> = vec![
        ("gpus", vec!["gpus"]),
        ("instances", vec!["instances"]),
        ("models", vec!["models", "llama-2"]),
        (
            "compare",
            [&["compare"][..], &job(&["--sweep", "seq_len=128,9000"])].concat(),
        ),
        (
            "fit-training",
            [
                &["fit", "--cards"][..],
                &job(&["--gpus", "t4,mi300x,rtx-3060-12gb"]),
            ]
            .concat(),
        ),
        (
            "fit-training",
            [
                &["fit", "--largest", "batch", "--gpu", "gtx-1050-ti"][..],
                &job(&[]),
            ]
            .concat(),
        ),
        (
            "fit-training",
            [
                &["fit", "--largest", "length", "--gpus", "gtx-1050-ti,t4"][..],
                &job(&[]),
            ]
            .concat(),
        ),
        (
            "fit-training",
            vec![
                "fit",
                "--memory",
                "3GiB",
                "--model",
                "125M,gpt2-medium",
                "--seq-len",
                "128",
            ],
        ),
        (
            "fit-training",
            vec![
                "fit",
                "--model",
                "125M",
                "--gpus",
                "t4,h100-sxm",
                "--seq-len",
                "128",
            ],
        ),
        (
            "fit-training",
            [
                &["fit", "--lengths", "64,128", "--memory", "2GiB"][..],
                &job(&["--rule", "tokens:99999"]),
            ]
            .concat(),
        ),
        // something fits only when more is allowed
        (
            "plan",
            [&["plan", "--gpu", "gtx-1050-ti"][..], &job(&[])].concat(),
        ),
        (
            "plan",
            vec![
                "plan",
                "--gpu",
                "gtx-1050-ti",
                "--model",
                "gpt2",
                "--seq-len",
                "256",
                "--precision",
                "fp32",
                "--batch-size",
                "2",
            ],
        ),
        (
            "plan",
            vec![
                "plan",
                "--gpu",
                "gtx-1050-ti",
                "--model",
                "gpt2-medium",
                "--seq-len",
                "64",
                "--precision",
                "fp32",
                "--attention",
                "sdpa",
            ],
        ),
        (
            "fit-training",
            [
                &[
                    "fit",
                    "--largest",
                    "batch",
                    "--gpus",
                    "gtx-1050-ti,t4",
                    "--cost",
                ][..],
                &job(&[]),
            ]
            .concat(),
        ),
    ];
    for (name, args) in cases {
        let v = json(&args);
        let printed = stdout(&tonnage(&["schema", name]));
        let schema: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(schema["$id"], v["schema"], "{name}");
        check(&schema, &v, name);
    }
}
