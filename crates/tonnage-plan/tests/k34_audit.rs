//! K34: the numbers that five public guides print, against the simulator and against each other.

use std::path::Path;
use std::sync::OnceLock;
use tonnage_core::{Diagnostic, Job, import};
use tonnage_plan::audit::{Audit, Bindings, Row, Verdict, audit, list};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/audit")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn open(name: &str) -> Result<Job, Vec<Diagnostic>> {
    import::read(name, &text(name))
}

fn guides() -> &'static Audit {
    static ONCE: OnceLock<Audit> = OnceLock::new();
    ONCE.get_or_init(|| {
        let b = Bindings::parse("claims.audit.toml", &text("claims.audit.toml")).unwrap();
        audit("claims.json", &text("claims.json"), &b, &open).unwrap()
    })
}

fn row(id: &str) -> &'static Row {
    guides().rows.iter().find(|r| r.claim.id == id).unwrap()
}

/// The finding of a check that names a claim and says something.
fn found(check: &str, id: &str, says: &str) -> bool {
    guides()
        .findings
        .iter()
        .any(|f| f.check == check && f.claims.iter().any(|c| c == id) && f.text.contains(says))
}

#[test]
fn k34_every_claim_of_the_file_is_read() {
    let a = guides();
    let ids: std::collections::BTreeSet<&str> = a
        .rows
        .iter()
        .map(|r| r.claim.id.split('.').take(2).collect::<Vec<_>>().join("."))
        .map(|s| &*s.leak())
        .collect();
    assert_eq!(ids.len(), 235);
    assert!(a.fails());
}

#[test]
fn k34_sign_language_transformer() {
    assert!(found("sum", "C0.15", "41.3 MB to 102.8 MB"));
    assert!(found("disagree", "C0.15", "25.5x to 96.8x"));
    assert!(found("double-count", "C0.14", "again"));
    assert!(found("slope", "C0.7", "928.6 MB and 205.4 MB"));
    assert!(found("cards", "C0.23", "batch 32 in one place and 24"));
    assert!(found("cards", "C0.2", "2 GB in one place and 4 GB"));
    // 8 GB at batch 32: less than 1 GB
    assert_eq!(row("C0.7").verdict, Verdict::Fails);
    assert!(row("C0.7").factor.unwrap() < 0.2);
}

#[test]
fn k34_qlora_fine_tune() {
    assert!(found("floor", "C1.1", "below the stored weights"));
    assert!(found("cards", "C1.11", "tight in another"));
    assert!(found("disagree", "C1.13", "4.2 GB"));
    // adapters, gradients and states are too high, activations and the peak too low
    for id in ["C1.2", "C1.4", "C1.5"] {
        assert!(row(id).factor.unwrap() < 0.7, "{id}");
    }
    for id in ["C1.3", "C1.7", "C1.9", "C1.13"] {
        assert!(row(id).factor.unwrap() > 1.2, "{id}");
    }
    // the 8 GB card fails
    assert_eq!(row("C1.17").verdict, Verdict::Fails);
}

#[test]
fn k34_gpt_trainer() {
    for id in [
        "C2.1", "C2.3", "C2.5", "C2.7", "C2.9", "C2.11", "C2.19", "C2.37", "C2.45",
    ] {
        assert!(row(id).factor.unwrap() > 1.5, "{id}");
    }
    assert!(found(
        "disagree",
        "C2.11",
        "implies about 15.8 GB at batch 24"
    ));
    assert!(found("growth", "C2.28", "1.36x"));
    assert!(found("ratio", "C2.48", "13.3x"));
    assert!(found("ratio", "C2.47", "rows lie outside"));
    assert!(found("cards", "C2.56.minimum", "own need is 12 GB"));
    assert!(found(
        "cards",
        "C2.54.recommended",
        "smaller than the minimum (12 GB)"
    ));
    assert!(found(
        "cards",
        "C2.63.recommended",
        "smaller than the minimum (12 GB)"
    ));
    assert!(found("card-memory", "C2.52.minimum", "6 GB"));
    assert_eq!(row("C2.50").verdict, Verdict::Fails);
}

#[test]
fn k34_estimator_of_toml_files() {
    assert!(found("parameters", "C3.12", "442.37 M"));
    assert!(found("level", "C3.14", "reasonable"));
    // its parts add up within what printing rounds
    assert!(!found("sum", "C3.2", ""));
    for id in ["C3.2", "C3.4", "C3.8"] {
        assert!(row(id).factor.unwrap() > 5.0, "{id}");
    }
    // autocast does not halve the weights
    assert!(row("C3.3").factor.unwrap() > 1.5);
}

#[test]
fn k34_agent_framework() {
    assert!(found("disagree", "C4.16", "84.5 GB"));
    assert!(found("disagree", "C4.16", "80 GB"));
    assert!(found(
        "per-parameter",
        "C4.16",
        "16.0, 11.3, 10.3, 12.3, 12.0, 8.0, 8.0, 8.0"
    ));
    assert!(found("floor", "C4.20", "the stored weights"));
    assert!(found("floor", "C4.23", "below the stored weights"));
    assert!(found("floor", "C4.69", "below the stored weights"));
    assert!(found("slope", "C4.70", "516.1 MB in the rows and 1.1 GB"));
    for (id, own) in [
        ("C4.94.full", "36 GB"),
        ("C4.95.full", "56 GB"),
        ("C4.96.full", "104 GB"),
        ("C4.95.qlora", "48 GB"),
    ] {
        assert!(found("cards", id, own), "{id}");
    }
    assert!(found("cards", "C4.93.full", "no margin"));
    assert!(found("cards", "C4.93.lora", "no margin"));
    for id in [
        "C4.99.qlora",
        "C4.99.lora",
        "C4.99.full",
        "C4.97.full",
        "C4.100.lora",
        "C4.101.full",
    ] {
        assert!(found("disagree", id, ""), "{id}");
    }
    assert!(found("saving", "C4.87", "14 to 25%"));
    assert!(found("saving", "C4.90", "60 to 71%"));
    assert!(found("saving", "C4.89", "40 to 46%"));
    assert!(row("C4.52").factor.unwrap() > 10.0);
    for id in ["C4.72", "C4.73"] {
        assert_eq!(row(id).verdict, Verdict::Fails, "{id}");
    }
    // and what is right is not blamed
    for id in ["C4.40", "C4.49", "C4.51", "C4.70"] {
        assert_eq!(row(id).verdict, Verdict::Holds, "{id}");
    }
}

#[test]
fn k34_markdown() {
    let b = Bindings::parse("guide.audit.toml", &text("guide.audit.toml")).unwrap();
    let a = list("guide.md", &text("guide.md"), &b).unwrap();
    let got: Vec<String> = a
        .rows
        .iter()
        .map(|r| {
            let c = &r.claim;
            format!(
                "{} {} | {:?} | {} | {} | {}",
                c.id,
                c.subject,
                c.phase,
                c.what.name(),
                c.printed(),
                c.conditions()
            )
        })
        .collect();
    let expected = text("guide.claims.txt");
    assert_eq!(got.join("\n"), expected.trim_end(), "\n{}", got.join("\n"));
    let a = audit("guide.md", &text("guide.md"), &b, &open).unwrap();
    assert!(a.findings.iter().any(|f| f.check == "sum"));
    assert!(a.findings.iter().any(|f| f.check == "floor"));
    assert!(a.count(Verdict::Fails) >= 3 && a.count(Verdict::Holds) >= 3);
}

#[test]
fn k34_bindings_that_make_no_sense_are_named() {
    let e = Bindings::parse(
        "x.audit.toml",
        "[[subject]]\nnames = [\"7B\"]\nfil = \"a.toml\"\n",
    )
    .unwrap_err();
    assert!(
        e.message.contains("x.audit.toml") && e.message.contains("fil"),
        "{}",
        e.message
    );
    let b = Bindings::parse("x", "[[claim]]\nline = 99\nignore = \"why\"\n").unwrap();
    let e = list("guide.md", "a 7B model needs 14 GB of memory\n", &b).unwrap_err();
    assert!(e.message.contains("line 99"));
    let e = audit("c.json", "{\"claims\": [{\"id\": \"A\", \"job\": \"7B\", \"phase\": \"dreaming\", \"what\": \"total\"}]}", &Bindings::default(), &open).unwrap_err();
    assert!(e.message.contains("A: ") && e.message.contains("dreaming"));
}
