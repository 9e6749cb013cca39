//! Acceptance: GPUs and instances (K21), and the user's own.

mod common;
use common::*;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn with_home(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(args)
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .output()
        .unwrap()
}

fn json(o: &Output) -> Value {
    serde_json::from_slice(&o.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&o.stderr)))
}

#[test]
fn k21_every_instance_resolves_to_a_device_and_a_count() {
    let home = tempfile::tempdir().unwrap();
    let v = json(&with_home(home.path(), &["instances", "--format", "json"]));
    assert_eq!(v["schema"], "tonnage.instances/1");
    let all = v["instances"].as_array().unwrap();
    assert!(all.len() >= 254);
    for i in all {
        assert!(i["gpu_count"].as_f64().unwrap() > 0.0, "{i}");
        let gpu =
            tonnage_catalog::gpu(i["gpu"].as_str().unwrap()).unwrap_or_else(|e| panic!("{i}: {e}"));
        assert_eq!(i["marketed_gb_each"], gpu.memory_gb_marketed.get(), "{i}");
        // a price is shown with its date and source, or not at all
        if let Some(p) = i["price"].as_object() {
            assert!(p["usd_per_hour"].as_f64().unwrap() >= 0.0, "{i}");
            let date = p["date"].as_str().unwrap();
            assert!(date.len() >= 7 && date.starts_with("20"), "{i}");
            assert!(!p["source"].as_str().unwrap().is_empty(), "{i}");
        }
    }
    assert!(all.iter().any(|i| i["price"].is_null()) && all.iter().any(|i| i["price"].is_object()));
}

#[test]
fn k21_the_instances_that_the_documents_name() {
    let named: Value =
        serde_json::from_str(&std::fs::read_to_string(seed("gpus.json")).unwrap()).unwrap();
    let home = tempfile::tempdir().unwrap();
    for (name, what) in named["cloud"].as_object().unwrap() {
        let o = with_home(home.path(), &["instances", name, "--format", "json"]);
        let i = json(&o)["instances"][0].clone();
        assert_eq!(i["gpu_count"].as_f64(), what["count"].as_f64(), "{i}");
        assert_eq!(i["marketed_gb_each"], what["gb_each"], "{i}");
        let gpu = tonnage_catalog::gpu(i["gpu"].as_str().unwrap()).unwrap();
        assert!(gpu.name.contains(what["gpu"].as_str().unwrap()), "{i}");
    }
    // and the cards: one, or several among which the memory decides
    for g in named["gpus"].as_array().unwrap() {
        let o = with_home(
            home.path(),
            &["gpus", g["name"].as_str().unwrap(), "--format", "json"],
        );
        let v = json(&o);
        let sizes: Vec<_> = v["gpus"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["marketed_gb"].clone())
            .collect();
        assert!(sizes.contains(&g["nominal_gb"]), "{}: {sizes:?}", g["name"]);
    }
}

#[test]
fn a_name_is_never_a_part_of_one_and_an_ambiguous_one_lists_its_cards() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| with_home(home.path(), args);
    let o = run(&["gpus", "309"]);
    assert_eq!(o.status.code(), Some(3));
    let t = stdout(&run(&["gpus", "a100"]));
    assert!(
        t.starts_with("a100 stands for")
            && t.contains("a100-sxm4-40gb")
            && t.contains("a100-pcie-80gb"),
        "{t}"
    );
    let o = run(&["fit", "examples/gpt2.toml", "--gpu", "a100"]);
    assert_ne!(o.status.code(), Some(0));
    let v = json(&run(&[
        "gpus",
        "--vendor",
        "nvidia",
        "--min-memory",
        "70GiB",
        "--capability",
        "9.0",
        "--format",
        "json",
    ]));
    for g in v["gpus"].as_array().unwrap() {
        assert!(
            g["vendor"] == "nvidia" && g["usable_bytes"].as_u64().is_none_or(|b| b >= 70 << 30),
            "{g}"
        );
        assert!(
            g["compute_capability"]
                .as_str()
                .unwrap()
                .parse::<f64>()
                .unwrap()
                >= 9.0
        );
        assert!(!g["source"].as_str().unwrap().is_empty());
    }
    let o = run(&["instances", "--provider", "asw"]);
    assert!(
        String::from_utf8_lossy(&o.stderr).contains("did you mean aws"),
        "{o:?}"
    );
}

#[test]
fn own_cards_and_prices_are_one_file() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("config/tonnage");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("gpus.toml");
    let text = "[[gpu]]\nid = \"lab-card\"\nname = \"Lab Card\"\nvendor = \"NVIDIA\"\nmemory_gb_marketed = 20\nmemory_mib_reported = 20480\nmemory_type = \"GDDR6\"\ncompute_capability = \"8.6\"\nsm_count = 64\nmax_threads_per_sm = 1536\nsource = \"the lab's inventory\"\naliases = [\"labby\"]\n\n[[instance]]\nprovider = \"lab\"\ninstance = \"rack-1\"\ngpu_id = \"labby\"\ngpu_count = 4\non_demand_usd_per_hour = 1.5\nprice_date = \"2026-11-01\"\nsource = \"the lab's price list\"\n";
    std::fs::write(&file, text).unwrap();
    let run = |args: &[&str]| with_home(home.path(), args);
    let v = json(&run(&["gpus", "labby", "--format", "json"]));
    assert_eq!(v["gpus"][0]["id"], "lab-card");
    assert!(v["gpus"][0]["usable_bytes"].as_u64().unwrap() > 19 << 30);
    let v = json(&run(&[
        "instances",
        "--gpu",
        "lab-card",
        "--format",
        "json",
    ]));
    assert_eq!(v["instances"][0]["price"]["usd_per_hour"], 1.5);
    assert_eq!(v["instances"][0]["price"]["date"], "2026-11-01");
    // estimate and fit know it
    let model = ["--model", "gpt2", "--seq-len", "256", "--batch-size", "2"];
    let o = run(&[
        &["estimate", "--gpu", "lab card", "--format", "json"],
        &model[..],
    ]
    .concat());
    assert_eq!(json(&o)["verdicts"][0]["gpu"], "lab-card");
    let o = run(&[
        &["fit", "--cards", "--gpus", "labby", "--format", "json"],
        &model[..],
    ]
    .concat());
    assert_eq!(json(&o)["rows"][0]["gpu"], "lab-card");
    // so do the serving commands, on the command line's own card
    let vllm = ["--", "vllm", "serve", "Qwen/Qwen2.5-0.5B"];
    let llama = ["--", "llama-server", "-m", "gemma-3-270m.Q4_K_M"];
    for verb in ["estimate", "fit"] {
        for command in [&vllm[..], &llama[..]] {
            let asked = [verb, "--gpu", "labby", "--format", "json"];
            let v = json(&run(&[&asked, command].concat()));
            let card = v.pointer("/gpu").or(v.pointer("/fits/0/gpu"));
            assert_eq!(card.unwrap(), "lab-card", "{verb} {command:?}: {v}");
        }
    }
    let asked = ["plan", "--gpu", "labby", "--format", "json"];
    let v = json(&run(&[&asked, &model[..]].concat()));
    assert_eq!(v["gpu_name"], "Lab Card");
    // a price without a date is refused, with the file's name
    std::fs::write(&file, text.replace("price_date = \"2026-11-01\"\n", "")).unwrap();
    let o = run(&["gpus", "rtx-4090"]);
    let e = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(
        o.status.code() == Some(3) && e.contains("price_date") && e.contains("gpus.toml"),
        "{e}"
    );
    // --catalog stands in its place
    let other = home.path().join("mine.csv");
    std::fs::write(
        &other,
        "id,name,vendor,memory_gb_marketed,source\nc1,Card One,AMD,8,me\n",
    )
    .unwrap();
    let o = run(&["--catalog", other.to_str().unwrap(), "gpus", "card one"]);
    assert!(stdout(&o).starts_with("Card One (c1)"), "{o:?}");
}

#[test]
fn skypilots_catalog_is_read_where_it_is() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| with_home(home.path(), args);
    let before = json(&run(&["instances", "aws/p4d.24xlarge", "--format", "json"]));
    for v in ["v5", "v8"] {
        let folder = home.path().join(format!(".sky/catalogs/{v}/aws"));
        std::fs::create_dir_all(&folder).unwrap();
        let text = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,AvailabilityZone\np4d.24xlarge,A100,8.0,96.0,1152.0,PRICE,us-east-1,\"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 40960}}]}\",9.8,us-east-1a\nx.odd,Odd,1,4,16,0.5,us-east-1,,,us-east-1a\n";
        std::fs::write(
            folder.join("vms.csv"),
            text.replace("PRICE", if v == "v8" { "20.5" } else { "99" }),
        )
        .unwrap();
    }
    let after = json(&run(&["instances", "aws/p4d.24xlarge", "--format", "json"]));
    let (b, a) = (&before["instances"][0], &after["instances"][0]);
    assert_eq!((&b["gpu"], &b["gpu_count"]), (&a["gpu"], &a["gpu_count"]));
    assert_ne!(b["price"]["usd_per_hour"], 20.5);
    assert_eq!(a["price"]["usd_per_hour"], 20.5);
    assert!(a["price"]["source"].as_str().unwrap().contains("SkyPilot"));
    assert_eq!(a["price"]["date"].as_str().unwrap().len(), 10);
    assert!(after["notes"][0].as_str().unwrap().contains("Odd"));
}
