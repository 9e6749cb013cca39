//! Every key of a written file is one that the tool takes, and its value of a kind that the tool takes there: held against the lists of
//! fields recorded from the tools themselves (data/launch_fields.py), so that it is checked where no tool is installed.

use tonnage_core::Job;
use tonnage_core::doc::{Node, Value};
use tonnage_plan::export::{self, Options, export, fields, find};

/// Is the value of one of these kinds?
fn fits(v: &Value, kinds: &[String]) -> bool {
    let has = |k: &str| kinds.iter().any(|x| x == k);
    has("any")
        || match v {
            Value::Bool(_) => has("bool"),
            Value::Int(_) => has("int") || has("float"),
            Value::Float(_) => has("float"),
            Value::Text(t) => has("str") || has(&format!("={t}")),
            Value::List(_) => has("list"),
            Value::Table(_) => has("dict"),
            Value::Null => has("null"),
        }
}

/// Holds a table against the fields; a nested one where the list has its keys.
fn check(format: &str, node: &Node, prefix: &str, fields: &fields::Tool, seen: &mut usize) {
    for (k, v) in node.table().unwrap() {
        let name = format!("{prefix}{}", k.name);
        let Some(kinds) = fields.fields.get(&name) else {
            panic!("{} has no key `{name}`", fields.tool);
        };
        // the data is the user's to name
        if !["dataset", "datasets"].contains(&name.as_str()) {
            assert!(
                fits(&v.value, kinds),
                "{format}: `{name}` = {:?} is none of {kinds:?} ({})",
                v.value,
                fields.tool
            );
        }
        *seen += 1;
        let nested = format!("{name}.");
        if v.table().is_some() && fields.fields.keys().any(|f| f.starts_with(&nested)) {
            check(format, v, &nested, fields, seen);
        }
    }
}

fn job(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

#[test]
fn k18_every_written_key_is_one_of_the_tools() {
    let models = [
        "meta-llama/Llama-3.2-1B",
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen3-4B",
    ];
    let precisions = ["fp32", "bf16", "bf16-mixed", "fp16-mixed"];
    let optimizers = [
        "adamw_fused",
        "adamw_foreach",
        "adamw8bit",
        "paged_adamw8bit",
        "sgd",
        "adafactor",
    ];
    let adapters: [&[(&str, &str)]; 4] = [
        &[],
        &[("lora.r", "8"), ("lora.targets", "all-linear")],
        &[
            ("lora.r", "8"),
            ("lora.targets", "q_proj,v_proj"),
            ("quant.format", "nf4"),
            ("quant.double", "false"),
        ],
        &[
            ("lora.r", "8"),
            ("lora.targets", "q_proj"),
            ("quant.format", "int8"),
            ("lora.dora", "true"),
        ],
    ];
    let others: [&[(&str, &str)]; 3] = [
        &[("train.loss", "fused")],
        &[
            ("train.activation_checkpointing", "full"),
            ("train.clip_grad_norm", "0.5"),
        ],
        &[
            ("train.attention", "flash_attention_2"),
            ("train.loading", "to"),
        ],
    ];
    for (format, list) in fields::tools() {
        let (mut written, mut keys) = (0, 0);
        for m in models {
            for p in precisions {
                for o in optimizers {
                    for a in adapters {
                        for x in others {
                            let mut j = job(&[
                                ("model.id", m),
                                ("train.seq_len", "512"),
                                ("train.micro_batch_size", "2"),
                                ("train.precision", p),
                                ("train.optimizer", o),
                            ]);
                            for (k, v) in a.iter().chain(x) {
                                j.set_text(k, v).unwrap();
                            }
                            let Ok(e) = export(&j, find(format).unwrap(), &Options::default())
                            else {
                                continue;
                            };
                            let f = &e.files[0];
                            let doc = export::parse(&f.name, &f.text).unwrap();
                            check(format, &doc.root, "", list, &mut keys);
                            written += 1;
                        }
                    }
                }
            }
        }
        println!(
            "{format}: {written} files, {keys} keys as {} has them",
            list.tool
        );
        assert!(written >= 12, "{format}: {written}");
    }
}
