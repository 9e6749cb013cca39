//! Steps that repeat are recorded once: what is said of the run is what a recording of every step says.

mod dry;

use dry::{err, json, python, replays, script, tonnage};
use serde_json::Value;
use std::path::Path;

/// The answer about `steps.py WHAT`, whose trace is kept.
fn recorded(python: &str, what: &str, every: bool, trace: &Path) -> Value {
    let (path, trace) = (script("steps.py"), trace.to_str().unwrap());
    let mut args = vec!["dry-run", "--gpu", "a100-sxm4-80gb", "--no-mark"];
    args.extend(["--format", "json", "--save", trace]);
    if every {
        args.push("--every-step");
    }
    args.extend(["--", python, &path, what]);
    let o = tonnage(&args);
    assert!(!err(&o).contains("recorder"), "{}", err(&o));
    json(&o)
}

fn notes(v: &Value, code: &str) -> Vec<String> {
    let all = v["notes"].as_array().unwrap().iter();
    all.filter(|n| n["code"] == code)
        .map(|n| n["message"].as_str().unwrap().to_string())
        .collect()
}

/// The tensors; without the line that made an input, which is gone where the input came while nothing was recorded.
fn lines(v: &Value) -> Vec<Value> {
    let mut all = v["tensors"].as_array().unwrap().clone();
    for t in &mut all {
        if t["component"] == "inputs" {
            t.as_object_mut().unwrap().remove("source");
        }
    }
    all
}

fn events(v: &Value) -> u64 {
    v["timeline"]["events"].as_u64().unwrap()
}

#[test]
fn what_repeats_changes_no_answer() {
    let Some(python) = python("what_repeats_changes_no_answer") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for (what, says) in [
        (
            "plain",
            vec!["steps 6 to 39 made the same requests as step 5"],
        ),
        (
            "evaluation",
            vec!["steps 6 to 20 ", "steps 25 to 30 ", "steps 35 to 39 "],
        ),
        ("longer", vec!["steps 6 to 25 ", "steps 31 to 40 "]),
        ("logging", vec!["3 of them did something besides"]),
        ("two", vec!["the same requests as the 2 steps before them"]),
        ("leak", vec![]),
        ("full", vec!["steps 6 to 25 "]),
    ] {
        let trace = folder.path().join("t.jsonl.gz");
        let long = recorded(&python, what, true, &trace);
        let short = recorded(&python, what, false, &trace);
        replays(&trace);
        for key in ["peak", "components", "modules", "verdicts"] {
            assert_eq!(short[key], long[key], "{what}: {key}");
        }
        assert_eq!(lines(&short), lines(&long), "{what}");
        assert_eq!(
            short["instant"]["phase"], long["instant"]["phase"],
            "{what}"
        );
        assert!(notes(&long, "repeats").is_empty(), "{what}");
        let told = notes(&short, "repeats");
        assert!(told.len() >= says.len(), "{what}: {told:?}");
        for s in &says {
            assert!(told.iter().any(|t| t.contains(s)), "{what}: {s}: {told:?}");
        }
        if says.is_empty() {
            assert_eq!(events(&short), events(&long), "{what}");
        } else {
            assert!(events(&short) * 4 < events(&long) * 3, "{what}");
        }
    }
}

/// Nothing of the model announces it: the figures are PyTorch's own, and that the moment is not recorded is said.
#[test]
fn a_peak_beside_the_steps_is_counted() {
    let Some(python) = python("a_peak_beside_the_steps_is_counted") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t.jsonl.gz");
    let long = recorded(&python, "aside", true, &trace);
    let short = recorded(&python, "aside", false, &trace);
    assert_eq!(short["peak"], long["peak"]);
    assert_eq!(short["verdicts"], long["verdicts"]);
    let missed = notes(&short, "unrecorded-peak");
    assert!(
        missed.len() == 1 && missed[0].starts_with("step 26 reached"),
        "{missed:?}"
    );
    let told = notes(&short, "repeats");
    assert!(
        told[0].contains("step 26 was unlike them and is missing"),
        "{told:?}"
    );
    assert!(notes(&long, "unrecorded-peak").is_empty());
}
