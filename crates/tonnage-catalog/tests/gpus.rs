//! The GPU and instance tables: every row, every name, and what lookups must not do.
use std::collections::{BTreeMap, BTreeSet};

use tonnage_catalog::gpu::{GpuFileError, Vendor};
use tonnage_catalog::{Gpus, LookupError, gpu, instance, instances};

/// Letters and digits, lower case.
fn plain(name: &str) -> String {
    name.to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric())
        .collect()
}

fn candidates(name: &str) -> Vec<String> {
    match gpu(name) {
        Err(LookupError::Ambiguous { candidates, .. }) => candidates,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn ids_and_driver_names_are_unique_and_lead_back() {
    let all: Vec<_> = Gpus::builtin().iter().collect();
    assert_eq!(all.len(), 216);
    let ids: BTreeSet<_> = all.iter().map(|g| g.id.clone()).collect();
    let names: BTreeSet<_> = all.iter().map(|g| g.name.to_lowercase()).collect();
    assert_eq!((ids.len(), names.len()), (216, 216));
    for g in &all {
        assert_eq!(gpu(&g.id).as_ref(), Ok(g));
        assert_eq!(gpu(&g.name).as_ref(), Ok(g));
        assert_eq!(gpu(&g.id.to_uppercase()).as_ref(), Ok(g));
        assert!(!g.source.is_empty() && !g.recorded.is_empty(), "{}", g.id);
        assert_eq!(g.sm_count.is_some(), !g.sm_source.is_empty(), "{}", g.id);
    }
}

#[test]
fn an_alias_leads_to_its_card_or_lists_all_that_have_it() {
    let mut by_alias: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for g in Gpus::builtin().iter() {
        for a in &g.aliases {
            let ids = by_alias.entry(plain(a)).or_default();
            if !ids.contains(&g.id) {
                ids.push(g.id.clone());
            }
        }
    }
    for (alias, ids) in by_alias {
        match gpu(&alias) {
            Ok(g) => assert!(
                ids.contains(&g.id),
                "{alias} leads to {}, not to {ids:?}",
                g.id
            ),
            Err(LookupError::Ambiguous { candidates, .. }) => {
                assert_eq!(candidates, ids, "{alias}")
            }
            Err(e) => panic!("{alias}: {e}"),
        }
    }
}

#[test]
fn a_name_of_several_cards_lists_them() {
    assert_eq!(candidates("h100"), ["h100-pcie", "h100-sxm", "h100-nvl"]);
    assert_eq!(candidates("A100").len(), 4);
    assert_eq!(candidates("V100").len(), 4);
    assert_eq!(candidates("rtx 3080"), ["rtx-3080-10gb", "rtx-3080-12gb"]);
    let text = gpu("H100").map_err(|e| e.to_string());
    assert_eq!(
        text,
        Err("GPU \"H100\" is ambiguous: h100-pcie, h100-sxm, h100-nvl".to_owned())
    );
}

#[test]
fn parts_of_names_never_match() {
    // Each of these is inside some name, or has one inside it.
    for name in [
        "h10",
        "100",
        "rtx",
        "409",
        "rtx-409",
        "4090",
        "nvidia",
        "a",
        "l4x",
        "rtx-4090-super",
        "b20",
        "t",
    ] {
        match gpu(name) {
            Err(LookupError::Unknown { .. }) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    // One name inside another: exact wins.
    for (name, id) in [
        ("l4", "l4"),
        ("l40", "l40"),
        ("L40S", "l40s"),
        ("a10", "a10"),
        ("A10G", "a10g"),
        ("a16", "a16"),
    ] {
        assert_eq!(gpu(name).map(|g| g.id).as_deref(), Ok(id));
    }
    assert!(gpu("").is_err() && gpu("--- ").is_err() && gpu(&"x".repeat(100_000)).is_err());
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    let Err(LookupError::Unknown { nearest, .. }) = gpu("rtx-4091") else {
        panic!("rtx-4091 exists?");
    };
    assert_eq!(nearest.first().map(String::as_str), Some("rtx-4090"));
    let Err(LookupError::Unknown { nearest, .. }) = gpu("H100-SXN") else {
        panic!("H100-SXN exists?");
    };
    assert_eq!(nearest.first().map(String::as_str), Some("h100-sxm"));
    let text = gpu("geforce rtx 4090x").map_err(|e| e.to_string());
    assert!(text.is_err_and(|t| t.contains("did you mean rtx-4090")));
}

#[test]
fn spellings_of_one_name() {
    for name in [
        "rtx-4090",
        "RTX 4090",
        "rtx4090",
        "RTX_4090",
        "NVIDIA GeForce RTX 4090",
        "GeForce RTX 4090",
    ] {
        assert_eq!(gpu(name).map(|g| g.id).as_deref(), Ok("rtx-4090"), "{name}");
    }
    assert_eq!(gpu("Tesla T4").map(|g| g.id).as_deref(), Ok("t4"));
    assert_eq!(
        gpu("Tesla V100-SXM2-16GB").map(|g| g.id).as_deref(),
        Ok("v100-sxm2-16gb")
    );
}

#[test]
fn a_driver_name_is_told_apart_by_memory() {
    let gpus = Gpus::builtin();
    let id = |name: &str, mib| gpus.find_driver(name, mib).map(|g| g.id);
    assert_eq!(
        id("NVIDIA GeForce RTX 3080", 10240).as_deref(),
        Ok("rtx-3080-10gb")
    );
    assert_eq!(
        id("NVIDIA GeForce RTX 3080", 12288).as_deref(),
        Ok("rtx-3080-12gb")
    );
    assert_eq!(
        id("NVIDIA GeForce RTX 3060", 8192).as_deref(),
        Ok("rtx-3060-8gb")
    );
    // CUDA's total is a little less than the driver's.
    assert_eq!(
        id("NVIDIA A100-SXM4-80GB", 81152).as_deref(),
        Ok("a100-sxm4-80gb")
    );
    assert!(id("NVIDIA GeForce RTX 3080", 20000).is_err());
    assert!(matches!(
        id("Voodoo 2", 12),
        Err(LookupError::Unknown { .. })
    ));
}

#[test]
fn figures_the_simulator_needs() {
    for (id, cc, sms, threads) in [
        ("a100-sxm4-80gb", (8, 0), 108, 2048),
        ("h100-sxm", (9, 0), 132, 2048),
        ("h100-pcie", (9, 0), 114, 2048),
        ("h200-sxm", (9, 0), 132, 2048),
        ("rtx-4090", (8, 9), 128, 1536),
        ("rtx-3090", (8, 6), 82, 1536),
        ("rtx-a6000", (8, 6), 84, 1536),
        ("t4", (7, 5), 40, 1024),
        ("v100-sxm2-32gb", (7, 0), 80, 2048),
        ("rtx-5090", (12, 0), 170, 1536),
        ("b200", (10, 0), 148, 2048),
        ("a10g", (8, 6), 80, 1536),
        ("l4", (8, 9), 60, 1536),
    ] {
        let g = gpu(id).expect(id);
        assert_eq!(
            g.compute_capability.map(|c| (c.major, c.minor)),
            Some(cc),
            "{id}"
        );
        assert_eq!(
            (g.sm_count, g.max_threads_per_sm),
            (Some(sms), Some(threads)),
            "{id}"
        );
    }
    for g in Gpus::builtin().iter() {
        assert_eq!(
            g.vendor == Vendor::Nvidia,
            g.max_threads_per_sm.is_some(),
            "{}",
            g.id
        );
        assert_eq!(
            g.vendor == Vendor::Nvidia,
            g.compute_capability.is_some(),
            "{}",
            g.id
        );
        assert_eq!(g.vendor == Vendor::Amd, g.gfx.is_some(), "{}", g.id);
    }
}

const OVERLAY: &str = "id,name,vendor,memory_gb_marketed,memory_mib_reported,source,aliases,sm_count,max_threads_per_sm,compute_capability\n\
    my-card,ACME Card 9,NVIDIA,20,20480,\"own, measured\",acme;card9,10,1536,8.6\n\
    rtx-4090,NVIDIA GeForce RTX 4090,NVIDIA,48,49140,modded board,,128,1536,8.9\n";

#[test]
fn an_overlay_adds_and_replaces() {
    let gpus = Gpus::with_overlay(OVERLAY).expect("a good file");
    assert_eq!(gpus.find("ACME").map(|g| g.id).as_deref(), Ok("my-card"));
    assert_eq!(
        gpus.find("my card").map(|g| g.source).as_deref(),
        Ok("own, measured")
    );
    let modded = gpus.find("RTX4090").expect("replaced");
    assert_eq!(modded.memory_mib_reported.map(|m| m.get()), Some(49140));
    assert_eq!(gpus.iter().count(), 217);
    assert_eq!(gpus.iter().filter(|g| g.id == "rtx-4090").count(), 1);
    assert_eq!(gpus.find("t4").map(|g| g.id).as_deref(), Ok("t4"));
    // The built-in catalog is as it was.
    assert_eq!(gpu("rtx-4090").map(|g| g.memory_gb_marketed.get()), Ok(24));
}

#[test]
fn a_bad_overlay_names_the_line() {
    let err = |text: &str| Gpus::with_overlay(text).err();
    assert_eq!(
        err("id,name,vendor,memory_gb_marketed,source,sm_counts\n"),
        Some(GpuFileError::UnknownColumn {
            column: "sm_counts".into(),
            nearest: Some("sm_count".into())
        })
    );
    assert_eq!(
        err("id,name,vendor,memory_gb_marketed\n"),
        Some(GpuFileError::MissingColumn("source"))
    );
    let head = "id,name,vendor,memory_gb_marketed,source,memory_mib_reported\n";
    for (row, line) in [
        ("x,X,NVIDIA,24,s,-1", "line 2: memory_mib_reported = \"-1\""),
        ("x,X,NVIDIA,24,s,0", "line 2: memory_mib_reported = \"0\""),
        (
            "x,X,NVIDIA,24,s,99999999999999999999999",
            "line 2: memory_mib_reported",
        ),
        ("x,X,Voodoo,24,s,1", "line 2: vendor = \"voodoo\""),
        (
            "x,X,NVIDIA,24,,1",
            "line 2: source = \"\": must not be empty",
        ),
        ("x,X,NVIDIA,24,s", "line 2: 5 fields, the header has 6"),
        ("x,\"X,NVIDIA,24,s,1", "line 2: bad quoting"),
        (
            "x,X,NVIDIA,24,s,1\nX,Y,AMD,8,s,1",
            "line 3: id \"X\" appears twice",
        ),
        ("-,X,NVIDIA,24,s,1", "line 2: id = \"-\""),
    ] {
        let text = err(&format!("{head}{row}\n")).map(|e| e.to_string());
        assert!(
            text.as_deref().is_some_and(|t| t.starts_with(line)),
            "{row}: {text:?}"
        );
    }
    assert!(err("").is_some());
}

#[test]
fn instances_name_known_gpus_and_dated_prices() {
    let all: Vec<_> = instances().collect();
    assert_eq!(all.len(), 254);
    let ids: BTreeSet<_> = all.iter().map(|i| i.id().to_lowercase()).collect();
    assert_eq!(ids.len(), all.len());
    let mut priced = 0;
    for i in &all {
        assert_eq!(
            gpu(&i.gpu_id).map(|g| g.id).as_deref(),
            Ok(i.gpu_id.as_str())
        );
        assert!(i.gpus.0 > 0);
        if let Some(p) = &i.price {
            priced += 1;
            assert!(p.on_demand > 0 || i.id() == "colab/free-T4", "{}", i.id());
            assert!(p.date.starts_with("2026") && !p.source.is_empty() && !i.undated_price);
        }
        assert_eq!(instance(&i.id()).as_ref(), Ok(i));
    }
    assert_eq!(priced, 167);
}

#[test]
fn an_instance_is_found_by_its_name() {
    let i = instance("P4D.24xlarge").expect("aws");
    assert_eq!((i.provider.as_str(), i.gpus.whole()), ("aws", Some(8)));
    assert_eq!(i.price.map(|p| p.on_demand), Some(21_957_600));
    assert_eq!(
        instance("aws/g6f.2xlarge").map(|i| i.gpus.whole()),
        Ok(None)
    );
    assert!(matches!(instance("p4d"), Err(LookupError::Unknown { .. })));
    let Err(LookupError::Unknown { nearest, .. }) = instance("p4d.24xlarg") else {
        panic!("exists?");
    };
    assert_eq!(
        nearest.first().map(String::as_str),
        Some("aws/p4d.24xlarge")
    );
}
