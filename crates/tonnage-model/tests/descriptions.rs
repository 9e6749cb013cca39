//! Mistakes in a description are errors with their place.

use serde_json::json;
use tonnage_model::describe::{Description, build};

fn fails(text: &str) -> String {
    let config = json!({"hidden_size": 8, "layers": 2, "xs": [1, 2], "o": {"a": null}});
    Description::parse(text)
        .and_then(|d| build(&d, &config).map(drop))
        .expect_err(text)
        .to_string()
}

#[test]
fn mistakes_in_a_file_have_line_and_column() {
    let e = fails("model_type = \"x\"\n[blocks]\nroot = [{ nome = \"w\", param = [1] }]");
    assert!(
        e.contains("line 3") && e.contains("unknown field `nome`"),
        "{e}"
    );
    let e = fails("model_type = \"x\"\n[let]\na = \"1 +\"");
    assert!(e.contains("line 3") && e.contains("ends too early"), "{e}");
    let e = fails("model_type = \"x\"\nextends = \"lama\"");
    assert!(e.contains("there is no description `lama`"), "{e}");
}

#[test]
fn mistakes_in_a_block_name_it() {
    let file = |root: &str| {
        format!(
            "model_type = \"x\"\n[let]\nn = \"config.layers\"\n[blocks]\nroot = [{root}]\nb = []\n"
        )
    };
    for (root, words) in [
        ("{ name = \"w\" }", "exactly one of"),
        ("{ name = \"w\", param = [1], norm = 2 }", "exactly one of"),
        ("{ param = [1] }", "a name is missing"),
        ("{ name = \"a.b\", param = [1] }", "no dots"),
        (
            "{ name = \"w\", param = [1, 1, 1, 1, 1, 1, 1] }",
            "at most 6 sizes",
        ),
        ("{ name = \"w\", block = \"c\" }", "there is no such block"),
        (
            "{ name = \"w\", block = \"b\", bias = true }",
            "not to a block",
        ),
        ("{ name = \"w\", norm = 2, tie = \"x\" }", "can be tied"),
        (
            "{ name = \"w\", linear = [2, 2], tie = \"x.weight\" }",
            "there is no parameter `x.weight` before it",
        ),
        (
            "{ name = \"w\", param = [\"m\"] }",
            "`m` is neither a field nor a derived name",
        ),
        (
            "{ name = \"w\", param = [\"n / 3\"] }",
            "2 is not divisible by 3",
        ),
        ("{ name = \"w\", param = [\"n / 0\"] }", "divided by zero"),
        (
            "{ name = \"w\", param = [\"config.xs[2]\"] }",
            "there is no element 2 of 2",
        ),
        (
            "{ name = \"w\", param = [\"config.o.a\"] }",
            "must be a whole number, is null",
        ),
        (
            "{ name = \"w\", param = [\"config.xs.a\"] }",
            "a list has no field",
        ),
        (
            "{ name = \"w\", param = [\"9223372036854775807 + 1\"] }",
            "too large",
        ),
        (
            "{ name = \"w\", param = [\"half(2)\"] }",
            "there is no function half(a whole number)",
        ),
        (
            "{ name = \"w\", param = [4000000000, 4000000000] }",
            "impossible",
        ),
        (
            "{ name = \"w\", param = [1], when = 3 }",
            "must be true or false",
        ),
        (
            "{ name = \"w\", param = [2], active = 3 }",
            "3 is impossible",
        ),
        (
            "{ name = \"w\", linear = [2, 2], active = 1 }",
            "`active` needs `of`",
        ),
        (
            "{ name = \"w\", use = { type = \"'nothing'\" } }",
            "unknown model_type `nothing`",
        ),
        ("{ block = \"b\" }", "describes no parameter"),
    ] {
        let e = fails(&file(root));
        assert!(e.contains(words), "{root}: {e}");
    }
}

#[test]
fn endless_descriptions_end() {
    let corpus = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/corpus/description/"
    );
    for (file, words) in [
        ("cycle", "depends on itself"),
        ("recursion", "nested too deeply"),
        ("bomb", "nested too deeply"),
        ("lists", "a list holds single values"),
    ] {
        let text = std::fs::read_to_string(format!("{corpus}{file}")).unwrap();
        let config = json!({"hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1});
        let d = Description::parse(&text).unwrap();
        let e = build(&d, &config).unwrap_err().to_string();
        assert!(e.contains(words), "{file}: {e}");
    }
    // wide instead of deep: every block is legal, together they are too many
    let mut text = String::from("model_type = \"x\"\n[blocks]\nroot = [{ block = \"b0\" }]\n");
    for i in 0..20 {
        let line = format!("{{ block = \"b{}\" }}", i + 1);
        text += &format!("b{i} = [{line}, {line}, {line}]\n");
    }
    text += "b20 = []\n";
    assert!(fails(&text).contains("too many lines"));
}

/// The forward section names what is there, or is refused.
#[test]
fn a_forward_section_is_checked_against_the_tree() {
    let good = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../catalog/architectures/gpt_per_head.toml"
    ))
    .unwrap();
    let config = json!({"vocab_size": 8, "block_size": 4, "n_embd": 4, "n_head": 2, "n_layer": 1});
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        let d = Description::parse(&good.replace(from, to));
        d.and_then(|d| build(&d, &config).map(drop))
            .err()
            .map(|e| e.to_string())
    };
    assert_eq!(with("kind = \"decoder\"", "kind = \"decoder\""), None);
    for (from, to, words) in [
        (
            "ffn_norm = \"ln2\"",
            "ffn_norm = \"ln3\"",
            "forward.ffn_norm: there is no module `blocks.0.ln3`",
        ),
        (
            "mask_buffer = \"tril\"",
            "mask_buffer = \"mask\"",
            "there is no buffer `blocks.0.sa.heads.0.mask`",
        ),
        (
            "per_head = \"heads\"",
            "",
            "forward.attention.per_head: is missing",
        ),
        ("q = \"query\"\n", "", "forward.attention.q: is missing"),
        (
            "kind = \"plain\"",
            "kind = \"gated\"",
            "forward.ffn.gate: is missing",
        ),
        (
            "activation = \"relu\"",
            "activation = \"rely\"",
            "unknown variant `rely`",
        ),
        (
            "norm = \"pre\"",
            "norm = \"pre\"\nmorm = 1",
            "unknown field `morm`",
        ),
    ] {
        let e = with(from, to).unwrap_or_else(|| panic!("{to}"));
        assert!(e.contains(words), "{to}: {e}");
    }
}
