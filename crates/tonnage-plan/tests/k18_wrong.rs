//! A wrong key or value in a trainer's file is one error with its file, line, field and a likely fix; what the tool has and is not simulated is
//! refused or said by name; no key is passed over in silence.

use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Severity};
use tonnage_plan::export::{self, Options, export, find};

fn good(format: &str) -> (String, String) {
    let mut j = Job::new("test", "flags");
    for (k, v) in [
        (
            "model.id",
            if format == "torchtitan" {
                "meta-llama/Llama-3.1-8B"
            } else {
                "meta-llama/Llama-3.2-1B"
            },
        ),
        ("train.seq_len", "512"),
        ("train.micro_batch_size", "2"),
        ("train.gradient_accumulation_steps", "4"),
        ("train.clip_grad_norm", "0.5"),
        ("train.activation_checkpointing", "full"),
        ("train.optimizer", "adamw_fused"),
    ] {
        j.set_text(k, v).unwrap();
    }
    if ["axolotl", "llamafactory", "trl"].contains(&format) {
        j.set_text("lora.r", "8").unwrap();
        j.set_text("lora.targets", "q_proj,v_proj").unwrap();
    }
    let e = export(&j, find(format).unwrap(), &Options::default())
        .unwrap_or_else(|bad| panic!("{format}: {bad:#?}"));
    (e.files[0].name.clone(), e.files[0].text.clone())
}

/// The file with one line that begins so made another.
fn changed(format: &str, line: &str, to: &str) -> (String, String) {
    let (name, text) = good(format);
    let hit = text
        .lines()
        .filter(|l| l.trim_start().starts_with(line))
        .count();
    assert_eq!(hit, 1, "{format}: `{line}` in\n{text}");
    let text = text
        .lines()
        .map(|l| {
            if l.trim_start().starts_with(line) {
                let indent: String = l.chars().take_while(|c| *c == ' ').collect();
                format!("{indent}{to}")
            } else {
                l.to_string()
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    (name, text + "\n")
}

/// One error: its code, at the changed line of the file, naming the field, with help.
fn one(format: &str, line: &str, to: &str, code: &str, field: &str, help: &str) {
    let (name, text) = changed(format, line, to);
    let said = match export::read(&name, &text) {
        Err(bad) => bad,
        Ok(j) => panic!("{format}: `{to}` is taken: {:?}\n{text}", j.notes),
    };
    let [d] = &said[..] else {
        panic!("{format}: `{to}` gives {said:#?}")
    };
    assert_eq!(d.code, code, "{d}");
    assert!(d.message.contains(field), "`{field}` in {d}");
    let place = d.place.as_ref().unwrap_or_else(|| panic!("no place: {d}"));
    assert_eq!(place.file, name);
    assert_eq!(
        place.source.trim(),
        to.lines().next().unwrap().trim(),
        "{d}"
    );
    let all: Vec<_> = d.help.iter().map(ToString::to_string).collect();
    assert!(
        all.iter().any(|h| h.contains(help)),
        "`{help}` in the help of {d}"
    );
}

#[test]
fn a_wrong_value_is_one_error_with_its_place_and_a_likely_fix() {
    for (format, line, to, field, help) in [
        (
            "axolotl",
            "micro_batch_size:",
            "micro_batch_size: two",
            "`micro_batch_size`",
            "micro_batch_size: 4",
        ),
        (
            "axolotl",
            "gradient_checkpointing:",
            "gradient_checkpointing: 3",
            "`gradient_checkpointing`",
            "true",
        ),
        ("axolotl", "lora_r:", "lora_r: -8", "`lora_r`", "lora_r: 4"),
        (
            "axolotl",
            "max_grad_norm:",
            "max_grad_norm: [1]",
            "`max_grad_norm`",
            "0.5",
        ),
        (
            "llamafactory",
            "cutoff_len:",
            "cutoff_len: 2k",
            "`cutoff_len`",
            "cutoff_len: 4",
        ),
        (
            "llamafactory",
            "bf16:",
            "bf16: maybe",
            "`bf16`",
            "bf16: true",
        ),
        (
            "trl",
            "max_length:",
            "max_length: 1.5",
            "`max_length`",
            "max_length: 4",
        ),
        ("trl", "dtype:", "dtype: bfloat61", "`dtype`", "bfloat16"),
        (
            "hf",
            "per_device_train_batch_size:",
            "per_device_train_batch_size: -1",
            "`per_device_train_batch_size`",
            "4",
        ),
        ("hf", "fp16:", "fp16: 16", "`fp16`", "fp16: true"),
        (
            "torchtune",
            "batch_size:",
            "batch_size: {a: 1}",
            "`batch_size`",
            "batch_size: 4",
        ),
        ("torchtune", "dtype:", "dtype: bfloat16", "`dtype`", "bf16"),
        (
            "torchtitan",
            "seq_len",
            "seq_len = \"long\"",
            "`training.seq_len`",
            "seq_len = 4",
        ),
        (
            "torchtitan",
            "mixed_precision_param",
            "mixed_precision_param = \"float16\"",
            "`training.mixed_precision_param`",
            "bfloat16",
        ),
        (
            "deepspeed",
            "\"gradient_accumulation_steps\"",
            "\"gradient_accumulation_steps\": \"four\",",
            "`gradient_accumulation_steps`",
            "4",
        ),
        (
            "accelerate",
            "mixed_precision:",
            "mixed_precision: 7",
            "`mixed_precision`",
            "bf16",
        ),
        (
            "accelerate",
            "num_processes:",
            "num_processes: one",
            "`num_processes`",
            "4",
        ),
    ] {
        one(format, line, to, "bad-value", field, help);
    }
}

#[test]
fn a_misspelt_key_that_memory_depends_on_is_one_error_with_the_right_one() {
    for (format, line, to, right) in [
        (
            "axolotl",
            "micro_batch_size:",
            "micro_batchsize: 2",
            "micro_batch_size",
        ),
        (
            "axolotl",
            "sequence_len:",
            "sequence_lenght: 512",
            "sequence_len",
        ),
        (
            "axolotl",
            "lora_target_modules:",
            "lora_target_module: [q_proj]",
            "lora_target_modules",
        ),
        (
            "llamafactory",
            "per_device_train_batch_size:",
            "per_device_train_batchsize: 2",
            "per_device_train_batch_size",
        ),
        ("llamafactory", "lora_rank:", "lora_rnk: 8", "lora_rank"),
        (
            "trl",
            "gradient_accumulation_steps:",
            "gradient_acumulation_steps: 4",
            "gradient_accumulation_steps",
        ),
        (
            "hf",
            "gradient_checkpointing:",
            "gradient-checkpointing: true",
            "gradient_checkpointing",
        ),
        (
            "torchtitan",
            "local_batch_size",
            "local_batchsize = 2",
            "training.local_batch_size",
        ),
        (
            "torchtitan",
            "mode",
            "modes = \"full\"",
            "activation_checkpoint.mode",
        ),
        (
            "deepspeed",
            "\"gradient_accumulation_steps\"",
            "\"Gradient_Accumulation_Steps\": 4,",
            "gradient_accumulation_steps",
        ),
        (
            "accelerate",
            "mixed_precision:",
            "mixed_precison: bf16",
            "mixed_precision",
        ),
    ] {
        let (name, text) = changed(format, line, to);
        let said = export::read(&name, &text).expect_err(to);
        // a key that the file then lacks may be an error of its own
        let hits: Vec<&Diagnostic> = said.iter().filter(|d| d.code == "unknown-key").collect();
        let [d] = hits[..] else {
            panic!("{format}: {said:#?}")
        };
        let place = d.place.as_ref().unwrap();
        assert_eq!(
            (place.file.as_str(), place.source.trim()),
            (name.as_str(), to),
            "{d}"
        );
        assert!(
            d.help.iter().any(|h| h.contains(&format!("`{right}`"))),
            "{format}: {d}"
        );
    }
}

#[test]
fn what_memory_depends_on_and_is_not_simulated_is_refused_by_name() {
    for (format, line) in [
        ("axolotl", "sample_packing: true"),
        ("axolotl", "tensor_parallel_size: 2"),
        ("axolotl", "chunked_cross_entropy: true"),
        ("axolotl", "deepspeed: ds.json"),
        ("axolotl", "lora_rank_pattern: {q_proj: 4}"),
        ("axolotl", "rl: dpo"),
        ("llamafactory", "use_unsloth: true"),
        ("llamafactory", "fp8: true"),
        ("llamafactory", "packing: true"),
        ("llamafactory", "use_galore: true"),
        ("trl", "padding_free: true"),
        ("trl", "fsdp: full_shard"),
        ("trl", "use_liger_kernel: true"),
        ("hf", "torch_compile: true"),
        ("hf", "use_cpu: true"),
        ("hf", "optim_target_modules: all-linear"),
        ("torchtune", "optimizer_in_bwd: true"),
        ("torchtune", "tensor_parallel_dim: 2"),
        ("accelerate", "fsdp_config: {fsdp_version: 2}"),
        ("accelerate", "dynamo_config: {dynamo_backend: INDUCTOR}"),
    ] {
        let (name, text) = good(format);
        let text = format!("{text}{line}\n");
        let said = export::read(&name, &text).expect_err(line);
        let key = line.split(':').next().unwrap();
        let [d] = &said[..] else {
            panic!("{format}: {said:#?}")
        };
        assert_eq!(d.code, "unsupported", "{format}: {d}");
        assert!(d.message.contains(&format!("`{key}`")), "{format}: {d}");
        assert_eq!(d.place.as_ref().unwrap().source, line);
    }
}

#[test]
fn no_key_is_passed_over_in_silence() {
    for format in ["axolotl", "llamafactory", "trl", "accelerate"] {
        // one that the tool has and memory does not depend on, one that it does not have
        let (own, none) = match format {
            "accelerate" => ("main_training_function: main", "quantum_mode: true"),
            _ => ("weight_decay: 0.1", "quantum_mode: true"),
        };
        let (name, text) = good(format);
        let text = format!("{text}{own}\n{none}\n");
        let j = export::read(&name, &text).unwrap_or_else(|bad| panic!("{format}: {bad:#?}"));
        let key = own.split(':').next().unwrap();
        let read_past = j.notes.iter().find(|d| d.code == "not-read").unwrap();
        assert!(read_past.message.contains(key), "{format}: {read_past}");
        let unknown: Vec<_> = j.notes.iter().filter(|d| d.code == "unknown-key").collect();
        let [d] = unknown[..] else {
            panic!("{format}: {:#?}", j.notes)
        };
        assert_eq!(d.severity, Severity::Warning);
        assert!(d.message.contains("`quantum_mode`"), "{d}");
        assert_eq!(d.place.as_ref().unwrap().source, none);
    }
    // what runs and the figures leave out stands in every output
    let (name, text) = good("trl");
    let j = export::read(&name, &format!("{text}neftune_noise_alpha: 5\n")).unwrap();
    assert!(
        j.unsupported
            .iter()
            .any(|u| u.contains("`neftune_noise_alpha`")),
        "{:?}",
        j.unsupported
    );
    // TRL's name of the length before 0.20
    let (name, text) = changed("trl", "max_length:", "max_seq_length: 256");
    let j = export::read(&name, &text).unwrap();
    assert_eq!(j.count("train.seq_len"), Some(256));
}

#[test]
fn weights_are_loaded_in_one_number_of_bits() {
    let to = "load_in_8bit: true\nload_in_4bit: true\nlora_r: 8";
    one(
        "trl",
        "lora_r:",
        to,
        "contradiction",
        "`load_in_8bit`",
        "one of them",
    );
}
