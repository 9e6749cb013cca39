//! Real PyTorch on the null device. TONNAGE_TEST_PYTHON names a Python with a CUDA build of torch, transformers, peft, accelerate and
//! bitsandbytes (`.ci/run` makes one); without it these tests say so and end.

mod dry;
mod standin;

use dry::*;
use serde_json::Value;
use std::path::Path;

/// A job of the records, performed again on the null device: every figure is the record's.
fn measured(test: &str, file: &str, id: &str) {
    measured_and(test, file, id, &mut |_| {});
}

/// The same, with something to do with the trace.
fn measured_and(test: &str, file: &str, id: &str, then: &mut dyn FnMut(&Path)) {
    let Some(p) = python(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (to, trace) = (dir.path().join("m.jsonl"), dir.path().join("t.jsonl.gz"));
    let from = here("../../groundtruth").join(file);
    let o = tonnage(&[
        "measure",
        "--null",
        from.to_str().unwrap(),
        "--id",
        id,
        "--python",
        &p,
        "--out",
        to.to_str().unwrap(),
        "--save",
        trace.to_str().unwrap(),
    ]);
    assert!(o.status.success(), "{id}: {}", err(&o));
    let text = std::fs::read_to_string(&to).unwrap();
    let got: Value = serde_json::from_str(text.trim()).unwrap();
    let want = record(file, id);
    for k in [
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "peak_requested_bytes",
        "load_peak_allocated_bytes",
        "param_count",
        "trainable_count",
        "param_bytes",
        "buffer_bytes",
        "peak_at",
    ] {
        assert_eq!(got[k], want[k], "{id}: {k}");
    }
    replays(&trace);
    then(&trace);
}

#[test]
fn trainer_full() {
    measured("trainer_full", "dry-run.jsonl", "llama-tiny-trainer-full");
}

#[test]
fn trainer_lora() {
    measured("trainer_lora", "dry-run.jsonl", "llama-tiny-trainer-lora");
}

#[test]
fn bitsandbytes_qlora() {
    measured(
        "bitsandbytes_qlora",
        "dry-run.jsonl",
        "llama-tiny-trainer-qlora",
    );
}

#[test]
fn a_recorded_gpt() {
    let id = "agi2-6x384-plain-fp32-adamw_foreach-b8-s512";
    measured_and(
        "a_recorded_gpt",
        "torch-trace-dev.jsonl",
        id,
        &mut |trace| {
            // and what is computed without torch has its levels to the byte
            let job = trace.with_file_name("job.toml");
            std::fs::write(&job, "[model]\ntype = \"gpt2\"\nconfig = { n_layer = 6, n_embd = 384, n_head = 6, n_positions = 512 }\n\n[train]\nmicro_batch_size = 8\nseq_len = 512\nprecision = \"fp32\"\noptimizer = \"adamw_foreach\"\n").unwrap();
            let o = tonnage(&["diff", job.to_str().unwrap(), trace.to_str().unwrap()]);
            assert_eq!(o.status.code(), Some(0), "{}", out(&o));
            assert!(out(&o).contains("agree to the byte"), "{}", out(&o));
        },
    );
}

/// Ten rows of torch-trace-dev.jsonl, by one command: `tonnage measure --null FILE --id A,B,...`.
#[test]
fn ten_recorded_rows() {
    const ROWS: [&str; 10] = [
        "agi2-6x384-plain-fp32-adamw_foreach-b1-s512",
        "agi2-6x384-plain-fp32-adamw_foreach-b8-s128-ga4-clip",
        "agi2-6x384-plain-amp_fp16-adamw_fused-b8-s512",
        "gpt2-small-plain-fp32-sgd_momentum-b1-s128",
        "gpt2-small-plain-fp32-paged_adamw8bit-b1-s128",
        "gpt2-small-trainer-amp_fp16-adamw_fused-b4-s512",
        "distilbert-plain-amp_fp16-adamw_foreach-b16-s128",
        "bert-base-trainer-amp_bf16-adamw_fused-b8-s512",
        "gpt2-medium-plain-amp_bf16-adamw_foreach-b4-s512-lora8qv",
        "gpt2-small-generate-bf16-b8-s512-new32",
    ];
    let Some(p) = python("ten_recorded_rows") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (to, from) = (
        dir.path().join("m.jsonl"),
        here("../../groundtruth/torch-trace-dev.jsonl"),
    );
    let ids = ROWS.join(",");
    let o = tonnage(&[
        "measure",
        "--null",
        from.to_str().unwrap(),
        "--id",
        &ids,
        "--python",
        &p,
        "--out",
        to.to_str().unwrap(),
        "--format",
        "json",
    ]);
    let v = json(&o);
    standin::conforms("measure", &v);
    let runs = v["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 10, "{}", err(&o));
    for r in runs {
        let want = record("torch-trace-dev.jsonl", r["id"].as_str().unwrap());
        for k in [
            "peak_allocated_bytes",
            "peak_reserved_bytes",
            "peak_requested_bytes",
        ] {
            assert_eq!(r["record"][k], want[k], "{}: {k}", r["id"]);
        }
        assert_eq!(r["equal"], true, "{}", r["figures"]);
    }
    assert!(o.status.success());
    // a record that says something else is told from ours
    let mut other = record("torch-trace-dev.jsonl", ROWS[0]);
    other["peak_reserved_bytes"] =
        Value::from(other["peak_reserved_bytes"].as_u64().unwrap() + 512);
    let changed = dir.path().join("changed.jsonl");
    std::fs::write(&changed, format!("{other}\n")).unwrap();
    let o = tonnage(&[
        "measure",
        "--null",
        changed.to_str().unwrap(),
        "--id",
        ROWS[0],
        "--python",
        &p,
        "--out",
        to.to_str().unwrap(),
    ]);
    assert_eq!(o.status.code(), Some(1));
    assert!(out(&o).starts_with("0 of 1 runs"), "{}", out(&o));
    assert!(out(&o).contains("peak_reserved_bytes is"), "{}", out(&o));
}

/// Another batch is another figure, and two of them are one document.
#[test]
fn values_that_are_set() {
    let Some(p) = python("values_that_are_set") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--set",
        "b=4,8",
        "--scale-to",
        "16",
        "--format",
        "json",
        "--",
        &p,
        &script("plain.py"),
        "--batch",
        "{b}",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let v = json(&o);
    standin::conforms("dry-run", &v);
    let peak = |i: usize| v["runs"][i]["footprint"]["peak"]["allocated"]["expected"].as_u64();
    let want = record("dry-run.jsonl", "plain")["peak_allocated_bytes"].as_u64();
    assert_eq!(peak(1), want);
    assert!(peak(0) < want);
    assert_eq!(v["scaled"]["value"], 16);
}

/// The batches of the sign-language transformer: docs/dry-run.md has what is run here.
#[test]
fn the_sign_language_table() {
    let Some(p) = python("the_sign_language_table") else {
        return;
    };
    let spoter = here("../../examples/spoter/train.py").display().to_string();
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "rtx-3060-12gb",
        "--set",
        "batch=4,8,16,32",
        "--format",
        "json",
        "--",
        &p,
        &spoter,
        "--batch",
        "{batch}",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let v = json(&o);
    let document = std::fs::read_to_string(here("../../docs/dry-run.md")).unwrap();
    for (run, batch) in v["runs"].as_array().unwrap().iter().zip([4, 8, 16, 32]) {
        let row = document
            .lines()
            .find(|l| l.starts_with(&format!("| {batch} | ")))
            .unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (level, cell) in [("allocated", 6), ("reserved", 7), ("device", 8)] {
            let bytes = run["footprint"]["peak"][level]["expected"]
                .as_u64()
                .unwrap();
            let mib = format!("{:.1}", bytes as f64 / f64::from(1 << 20));
            assert_eq!(mib, cells[cell], "batch {batch}: {level}");
        }
    }
}

/// The columns of the older card, dry-run with torch 2.2.2, against the estimate for that version: its cuBLASLt workspaces are each product's own.
#[test]
fn the_sign_language_table_by_an_older_torch() {
    let job = std::fs::read_to_string(here("../../examples/spoter.toml")).unwrap();
    let (job, _) = job.split_once("[verdict]").unwrap();
    let document = std::fs::read_to_string(here("../../docs/dry-run.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    for batch in [4, 8, 16, 32] {
        let job = job.replace(
            "micro_batch_size = 8",
            &format!("micro_batch_size = {batch}"),
        );
        std::fs::write(&path, format!("{job}[stack]\ntorch = \"2.2.2\"\n")).unwrap();
        let o = tonnage(&[
            "estimate",
            path.to_str().unwrap(),
            "--gpu",
            "gtx-1050-ti",
            "--format",
            "json",
        ]);
        let peak = &json(&o)["peak"];
        let mib = |level: &str| peak[level]["expected"].as_f64().unwrap() / f64::from(1 << 20);
        let row = document
            .lines()
            .find(|l| l.starts_with(&format!("| {batch} | ")))
            .unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(
            format!("{:.1}", mib("allocated")),
            cells[3],
            "batch {batch}"
        );
        // at batch 4 one segment more
        let reserved: f64 = cells[4].parse().unwrap();
        let more = if batch == 4 { 2.0 } else { 0.0 };
        assert_eq!(mib("reserved"), reserved + more, "batch {batch}");
    }
}

#[test]
fn a_plain_loop() {
    let Some(p) = python("a_plain_loop") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.jsonl.gz");
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--format",
        "json",
        "--save",
        trace.to_str().unwrap(),
        "--",
        &p,
        &script("plain.py"),
        "--fail",
    ]);
    assert_eq!(
        o.status.code(),
        Some(7),
        "the script's own status: {}",
        err(&o)
    );
    let (f, want) = (json(&o), record("dry-run.jsonl", "plain"));
    assert_eq!(
        f["peak"]["allocated"]["expected"],
        want["peak_allocated_bytes"]
    );
    assert_eq!(
        f["peak"]["reserved"]["expected"],
        want["peak_reserved_bytes"]
    );
    let sum: u64 = f["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(Some(sum), f["peak"]["device"]["expected"].as_u64());
    let lines = f["tensors"].as_array().unwrap().iter();
    assert!(
        lines
            .filter_map(|t| t["source"].as_str())
            .any(|s| s.contains("plain.py:")),
        "the user's own lines"
    );
    assert!(
        !f["notes"].to_string().contains("figures-differ"),
        "the events are torch's own figures"
    );
    replays(&trace);
}

#[test]
fn a_full_card() {
    let Some(p) = python("a_full_card") else {
        return;
    };
    let gpu = "rtx-3060-12gb";
    let o = tonnage(&["dry-run", "--gpu", gpu, "--", &p, &script("oom.py")]);
    assert_eq!(o.status.code(), Some(1));
    let (text, error) = (out(&o), err(&o));
    let card = tonnage_core::verdict::Device::of(tonnage_catalog::gpu(gpu).unwrap()).unwrap();
    let total = card.usable.expected;
    let (_, outside, _) = card.outside();
    let room = total - outside;
    let block = 256u64 << 20;
    let free = room - room / block * block;
    let size = tonnage_sim::alloc::format_size;
    let says = format!(
        "Tried to allocate 256.00 MiB. GPU 0 has a total capacity of {} of which {} is free.",
        size(total),
        size(free)
    );
    assert!(error.contains(&says), "{says}\n{error}");
    assert!(text.starts_with("oom.py does not fit on"), "{text}");
    assert!(text.contains("oom.py:6"), "the line that asked: {text}");
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        gpu,
        "--verdict-exit",
        "--",
        &p,
        &script("oom.py"),
    ]);
    assert_eq!(o.status.code(), Some(1));
}

/// Markdown of a recorded run has no batch to tell.
#[test]
fn a_recorded_run_as_markdown() {
    let Some(p) = python("a_recorded_run_as_markdown") else {
        return;
    };
    let args = ["dry-run", "--format", "md", "--", &p, "-c"];
    let text = "import torch; torch.empty(1 << 20, device='cuda')";
    let o = tonnage(&[&args[..], &[text]].concat());
    let t = out(&o);
    assert!(
        t.contains("as recorded") && !t.contains("0 tokens"),
        "{t}\n{}",
        err(&o)
    );
}

#[test]
fn two_ranks_of_a_sharded_job() {
    let Some(p) = python("two_ranks_of_a_sharded_job") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--gpu-count",
        "2",
        "--format",
        "json",
        "--",
        &p,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        &script("fsdp.py"),
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let (v, want) = (json(&o), record("dry-run.jsonl", "fsdp-2"));
    let runs = v["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for r in runs {
        let peak = &r["footprint"]["peak"];
        assert_eq!(peak["allocated"]["expected"], want["peak_allocated_bytes"]);
        assert_eq!(peak["reserved"]["expected"], want["peak_reserved_bytes"]);
    }
}

#[test]
fn the_script_of_a_job_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("job.py");
    let o = tonnage(&[
        "measure",
        "--model",
        "gpt2",
        "--seq-len",
        "128",
        "--lora-targets",
        "c_attn",
        "--lora-r",
        "8",
        "--keep",
        keep.to_str().unwrap(),
        "--no-run",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let text = std::fs::read_to_string(&keep).unwrap();
    assert!(
        text.contains("get_peft_model(") && text.contains("\"batch\": 1"),
        "{text}"
    );
    let o = tonnage(&[
        "measure",
        "--model",
        "gpt2",
        "--seq-len",
        "128",
        "--loss",
        "chunked",
        "--keep",
        keep.to_str().unwrap(),
        "--no-run",
    ]);
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
}
