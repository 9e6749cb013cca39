//! The device level against what was published: contexts, out-of-memory texts, totals.
use tonnage_catalog::device::{
    Basis, DeviceError, ModuleLoading, Os, Range, Stack, device_overhead, usable, with_ecc,
};
use tonnage_catalog::{Gpu, Gpus, gpu};

const MIB: f64 = 1024.0 * 1024.0;

fn card(id: &str) -> Gpu {
    gpu(id).expect(id)
}

fn ordered(r: &Range) -> bool {
    r.low <= r.expected && r.expected <= r.high && !r.source.is_empty()
}

#[test]
fn ranges_are_ordered_for_every_card_and_stack() {
    let stacks = [
        Stack::default(),
        Stack {
            driver: Some(525),
            cuda: Some((11, 6)),
            ..Stack::default()
        },
        Stack {
            driver: Some(550),
            ..Stack::default()
        },
        Stack {
            os: Os::Windows,
            ..Stack::default()
        },
        Stack {
            os: Os::Wsl,
            module_loading: Some(ModuleLoading::Eager),
            ..Stack::default()
        },
    ];
    let (mut with, mut without) = (0, 0);
    for g in Gpus::builtin().iter() {
        for s in &stacks {
            match usable(&g, s) {
                Ok(u) => {
                    with += 1;
                    assert!(
                        u.low > 0 && u.low <= u.expected && u.expected <= u.high,
                        "{}: {u:?}",
                        g.id
                    );
                    assert!(!u.source.is_empty());
                    // Never the marketed figure: what a process gets is less than the driver's total (on AMD: equal).
                    let total = g.memory_mib_reported.map_or(u64::MAX, |m| m.get() << 20);
                    assert!(u.expected <= total, "{}", g.id);
                    if let Ok(o) = device_overhead(&g, s) {
                        assert!(
                            ordered(&o.context)
                                && ordered(&o.libraries)
                                && ordered(&o.reserved_by_driver)
                        );
                        assert_eq!(
                            u.expected + o.reserved_by_driver.expected,
                            total,
                            "{}",
                            g.id
                        );
                    }
                }
                Err(e) => {
                    without += 1;
                    assert!(
                        matches!(e, DeviceError::NoReportedTotal { .. })
                            && g.memory_mib_reported.is_none()
                    );
                }
            }
        }
    }
    assert!(with > 700 && without > 100, "{with} {without}");
}

/// Each pair: the driver's total (nvidia-smi) and CUDA's (torch `total_memory`), both published for the card.
#[test]
fn usable_memory_of_cards_whose_totals_were_published() {
    for (id, mib) in [
        ("h100-sxm", 81_089),
        ("h100-sxm", 81_090),
        ("h100-pcie", 81_008),
        ("h200-sxm", 143_156),
        ("b200", 182_642),
        ("rtx-pro-6000-blackwell", 97_247),
        ("h20", 97_285),
        ("l40s", 45_589),
        ("rtx-a6000", 48_676),
        ("rtx-3090-ti", 24_114),
        ("rtx-4070-ti-super", 15_934),
        ("a10g", 22_587),
        ("v100-sxm2-16gb", 16_160),
        ("p100-pcie-16gb", 16_280),
    ] {
        let u = usable(&card(id), &Stack::default()).expect(id);
        let seen = mib << 20;
        assert!(u.low <= seen && seen <= u.high, "{id}: {u:?}");
        assert!(
            seen.abs_diff(u.expected) as f64 / seen as f64 <= 0.004,
            "{id}: {u:?}"
        );
    }
    // 50865307648 bytes (unslothai/unsloth-zoo pull 1053).
    let u = usable(&card("rtx-6000-ada"), &Stack::default()).expect("seen");
    assert!(u.expected.abs_diff(50_865_307_648) < 1 << 20);
    assert_eq!(u.basis, Basis::Seen);
}

/// The bands for cards whose CUDA total was not seen hold every pair that was: they are bounds of those, not a fit.
#[test]
fn bands_cover_the_seen_pairs() {
    let mut n = 0;
    for g in Gpus::builtin().iter() {
        let (Some(total), Some(seen)) = (g.memory_mib_reported, g.cuda_total.clone()) else {
            continue;
        };
        if g.compute_capability.is_some_and(|c| c.major < 8) || g.cuda_total.is_none() {
            continue;
        }
        let mut blind = g.clone();
        blind.cuda_total = None;
        let u = usable(&blind, &Stack::default()).expect("a total");
        let expected = seen.expected << 20;
        // The A40's pair is from an old driver.
        if g.id != "a40" {
            assert!(
                u.low <= expected && expected <= u.high,
                "{}: {total} {seen:?} {u:?}",
                g.id
            );
            n += 1;
        }
    }
    assert!(n >= 25, "{n}");
}

#[test]
fn contexts_that_were_published() {
    // MiB, bare context. The first eight are in the code with their sources; the last two came with their first kernels.
    for (id, mib) in [
        ("rtx-4060-ti-16gb", 107),
        ("rtx-3090", 256),
        ("rtx-6000-ada", 426),
        ("rtx-pro-6000-blackwell", 555),
        ("rtx-4090", 384),
        ("a100-sxm4-80gb", 414),
        ("h100-sxm", 520),
        ("b200", 612),
        ("rtx-4090", 428),
        ("b200", 712),
    ] {
        let c = device_overhead(&card(id), &Stack::default())
            .expect(id)
            .context;
        assert!(c.low <= mib << 20 && mib << 20 <= c.high, "{id}: {c:?}");
        // The rule without the measurement, on the same card under another id.
        let mut other = card(id);
        other.id = "unmeasured".to_owned();
        let c = device_overhead(&other, &Stack::default())
            .expect(id)
            .context;
        if ![428, 712].contains(&mib) {
            assert!(
                c.expected.abs_diff(mib << 20) as f64 <= 0.055 * (mib << 20) as f64,
                "{id}: {c:?}"
            );
        }
    }
}

struct Observation {
    id: String,
    gpu: Gpu,
    kind: String,
    outside: f64,
}

/// Texts of out-of-memory errors: process minus allocated minus reserved is context and libraries, in MiB. Each of the
/// three is printed with two decimals of GiB, so the difference is known within 15 MiB.
fn observations() -> Vec<Observation> {
    include_str!("data/context-observations.csv")
        .lines()
        .skip(1)
        .map(|line| {
            let f: Vec<&str> = line.splitn(8, ',').collect();
            let number = |n: usize| f[n].parse::<f64>().expect("a number");
            Observation {
                id: f[0].to_owned(),
                gpu: card(f[1]),
                kind: f[2].to_owned(),
                outside: number(3) - number(4) - number(5),
            }
        })
        .collect()
}

#[test]
fn out_of_memory_texts_lie_in_context_plus_libraries() {
    const ROUNDING: f64 = 15.4;
    let mut extra = Vec::new();
    for o in observations() {
        let d = device_overhead(&o.gpu, &Stack::default()).expect("a total");
        let low = (d.context.low + d.libraries.low) as f64 / MIB;
        let high = (d.context.high + d.libraries.high) as f64 / MIB;
        let inside = o.outside >= low - ROUNDING && o.outside <= high + ROUNDING;
        match o.kind.as_str() {
            "plain" => {
                assert!(
                    inside,
                    "{}: {:.0} MiB not in {low:.0}..{high:.0}",
                    o.id, o.outside
                );
                extra.push(o.outside - d.context.expected as f64 / MIB);
            }
            // Two T4 logs of torch 2.1 have about 1 GiB outside the allocator, as with eager loading; NCCL is not here.
            "unexplained" | "several-gpus" => {
                assert!(!inside, "{} is covered now: say so", o.id);
                let eager = Stack {
                    module_loading: Some(ModuleLoading::Eager),
                    ..Stack::default()
                };
                let c = device_overhead(&o.gpu, &eager).expect("a total").context;
                assert!(o.outside * MIB >= c.low as f64 && o.outside * MIB <= c.high as f64);
            }
            other => panic!("{other}"),
        }
    }
    extra.sort_by(f64::total_cmp);
    assert_eq!(extra.len(), 19);
    let libraries = device_overhead(&card("t4"), &Stack::default())
        .expect("a total")
        .libraries;
    assert!(
        (extra[9] - libraries.expected as f64 / MIB).abs() < 5.0,
        "median {}",
        extra[9]
    );
}

/// GPUMemNet's smallest jobs (published rows gpumemnet-mlp-01 to -05: 27 to 1.4 M parameters, A100 40GB, nvidia-smi's
/// maximum; versions not given): nearly all of the figure is not the job's. Only eager loading explains its size.
#[test]
fn published_rows_of_tiny_jobs() {
    let g = card("a100-sxm4-40gb");
    let eager = Stack {
        module_loading: Some(ModuleLoading::Eager),
        ..Stack::default()
    };
    let eager = device_overhead(&g, &eager).expect("a total");
    let lazy = device_overhead(&g, &Stack::default()).expect("a total");
    for (mib, parameters) in [
        (1451, 27),
        (1455, 71_498),
        (1457, 306_597),
        (1477, 818_048),
        (1509, 1_423_398),
    ] {
        // Parameters, gradients and two Adam states in fp32, and at most three segments of 20 MiB beside them.
        let job = parameters * 16 + (60 << 20);
        let outside = (mib << 20) - job;
        assert!(eager.context.low + eager.libraries.low <= outside, "{mib}");
        assert!(
            outside <= eager.context.high + eager.libraries.high,
            "{mib}"
        );
        assert!(outside > lazy.context.high + lazy.libraries.high, "{mib}");
    }
}

#[test]
fn error_correction() {
    for (id, on, off) in [
        ("rtx-a6000", 46_068, 49_140),
        ("a10", 23_028, 24_564),
        ("t4", 15_360, 16_384),
    ] {
        let g = card(id);
        if g.ecc.is_none() {
            assert!(with_ecc(&g, true).is_err(), "{id}");
            continue;
        }
        let mib = |g: Gpu| g.memory_mib_reported.map(|m| m.get());
        assert_eq!(with_ecc(&g, true).map(mib), Ok(Some(on)), "{id}");
        assert_eq!(with_ecc(&g, false).map(mib), Ok(Some(off)), "{id}");
    }
    let h = card("h100-sxm");
    assert_eq!(with_ecc(&h, true), Ok(h));
    assert!(with_ecc(&card("rtx-4090"), true).is_err());
}

#[test]
fn devices_without_figures_say_so() {
    assert!(usable(&card("jetson-agx-orin-64gb"), &Stack::default()).is_err());
    assert!(usable(&card("gb10"), &Stack::default()).is_err());
    assert!(matches!(
        device_overhead(&card("mi300x"), &Stack::default()),
        Err(DeviceError::NoContextFigures { .. })
    ));
    let u = usable(&card("rx-7900-xtx"), &Stack::default()).expect("ROCm prints 23.98 GiB");
    assert_eq!(format!("{:.2}", u.expected as f64 / MIB / 1024.0), "23.98");
    let m1 = usable(&card("apple-m1"), &Stack::default()).expect("a share");
    assert_eq!(m1.basis, Basis::UnifiedShare);
}
