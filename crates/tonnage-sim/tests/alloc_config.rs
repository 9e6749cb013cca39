//! Settings strings against what torch 2.11 made of them, and the message with a process list.

mod common;

use common::json_lines;
use tonnage_sim::alloc::{
    AllocatorConfig, CachingAllocator, Capacity, ConfigError, MessageContext, OutOfMemory,
    ProcessMemory, format_size,
};

#[test]
fn settings_mean_what_torch_makes_of_them() {
    // torch reads the number in front and drops the rest; here a number with trailing text is an error
    let stricter = [
        "max_split_size_mb:64 MB",
        "max_split_size_mb:64;expandable_segments:True",
    ];
    let rows = json_lines("alloc/settings.jsonl");
    assert!(rows.len() > 50);
    for r in rows {
        let text = r["conf"].as_str().unwrap();
        let ours = AllocatorConfig::parse(text);
        if !r["error"].is_null() || stricter.contains(&text) {
            assert!(ours.is_err(), "{text}: {ours:?}, torch: {}", r["error"]);
            continue;
        }
        let c = ours.unwrap_or_else(|e| panic!("{text}: {e}"));
        // -1 = no limit; torch prints the unsigned limit as signed
        assert_eq!(
            c.max_split_size.map_or(-1, |m| m as i64),
            r["max_split"].as_i64().unwrap(),
            "{text}"
        );
        assert_eq!(
            c.garbage_collection_threshold.unwrap_or(0.0),
            r["gc"].as_f64().unwrap(),
            "{text}"
        );
        assert_eq!(c.expandable_segments, r["exp"].as_bool().unwrap(), "{text}");
        let round: Vec<u64> = r["round"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_u64().unwrap())
            .collect();
        assert_eq!(c.roundup_power2_divisions[..], round, "{text}");
    }
}

#[test]
fn errors_name_the_key_and_the_value() {
    let e = |s| AllocatorConfig::parse(s).unwrap_err();
    assert_eq!(
        e("max_split_size:64"),
        ConfigError::UnknownKey {
            key: "max_split_size".into(),
            near: Some("max_split_size_mb")
        }
    );
    assert_eq!(
        e("max_split_size_mb:8").to_string(),
        "allocator option 'max_split_size_mb': 8 is out of range, it must be >= 20, the large segment size"
    );
    assert_eq!(
        e("expandable_segments"),
        ConfigError::MissingValue {
            key: "expandable_segments".into()
        }
    );
    assert_eq!(
        e("backend:cudaMallocAsync"),
        ConfigError::Backend {
            value: "cudaMallocAsync".into()
        }
    );
    assert_eq!(
        e("roundup_power2_divisions:[4:8"),
        ConfigError::UnclosedList
    );
    assert_eq!(
        e("expandable_segments:True]"),
        ConfigError::ExpectedComma { found: "]".into() }
    );
    for odd in [
        "[",
        "]",
        ":",
        ",",
        "a:[",
        "roundup_power2_divisions:",
        "max_split_size_mb:99999999999999999999999",
        "é:1",
    ] {
        e(odd);
    }
}

#[test]
fn rounding_to_divisions() {
    // the example in torch's source: 1200 with 4 divisions; sizes up to 512 * divisions are rounded plainly
    let c = AllocatorConfig::parse("roundup_power2_divisions:4").unwrap();
    assert_eq!(
        [1, 511, 512, 513, 1200, 2048].map(|n| c.round_size(n)),
        [512, 512, 512, 1024, 1536, 2048]
    );
    assert_eq!(c.round_size(2049), 2560);
    assert_eq!(c.round_size((4 << 20) + 1), 5 << 20);
    assert_eq!(c.round_size((7 << 20) + 1), 8 << 20);
    let plain = AllocatorConfig::default();
    assert_eq!(plain.round_size((7 << 20) + 1), (7 << 20) + 512);
}

#[test]
fn message_with_processes_is_torchs() {
    // recorded from torch 2.11 with an NVML that lists two processes
    let mut a = CachingAllocator::new(
        AllocatorConfig::default(),
        Some(Capacity {
            total: 85_097_971_712,
            free: 90_000_000,
        }),
    );
    let oom = a.malloc(0, 100 << 20).unwrap_err();
    let processes = [
        ProcessMemory::Other {
            pid: 4242,
            bytes: 3_221_225_472 + 12_345_678,
        },
        ProcessMemory::This {
            bytes: 1_207_959_552,
        },
    ];
    assert_eq!(
        oom.message(&MessageContext {
            processes: &processes,
            ..Default::default()
        }),
        "CUDA out of memory. Tried to allocate 100.00 MiB. GPU 0 has a total capacity of 79.25 GiB of which 85.83 MiB is free. \
         Process 4242 has 3.01 GiB memory in use. Including non-PyTorch memory, this process has 1.12 GiB memory in use. Of the \
         allocated memory 0 bytes is allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated. If reserved but \
         unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See \
         documentation for Memory Management  \
         (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
    );
    assert_eq!(
        a.malloc(0, 1 << 60).unwrap_err().to_string(),
        "CUDA out of memory. Tried to allocate more than 1EB memory."
    );
    let largest = a.malloc(0, (1 << 60) - 1).unwrap_err();
    assert!(
        largest
            .to_string()
            .starts_with("CUDA out of memory. Tried to allocate 1073741824.00 GiB. GPU 0 has")
    );
    assert_eq!(
        a.stats().num_ooms,
        2,
        "torch does not count the 1EB refusal"
    );
}

#[test]
fn private_pools_count_as_allocated() {
    let oom = OutOfMemory {
        requested: 1,
        tried: 2 << 20,
        total: 8 << 30,
        free: 0,
        allowed: Some(1 << 30),
        allocated: 5 << 20,
        reserved: 9 << 20,
    };
    let text = oom.message(&MessageContext {
        device: 3,
        processes: &[],
        private_pools: 2 << 20,
    });
    assert!(text.contains("GPU 3 has a total capacity of 8.00 GiB of which 0 bytes is free. 1024.00 MiB allowed; Of the"));
    assert!(text.contains("7.00 MiB is allocated by PyTorch, with 2.00 MiB allocated in private pools (e.g., CUDA Graphs), and 2.00 MiB"));
}

#[test]
fn sizes_print_as_torch_prints_them() {
    assert_eq!(
        [
            1024,
            1025,
            1 << 20,
            (1 << 20) + 1,
            1 << 30,
            (1 << 30) + 1,
            1 << 40
        ]
        .map(format_size),
        [
            "1024 bytes",
            "1.00 KiB",
            "1024.00 KiB",
            "1.00 MiB",
            "1024.00 MiB",
            "1.00 GiB",
            "1024.00 GiB"
        ]
    );
}

#[test]
fn absurd_settings_end_in_a_refusal() {
    for text in [
        "large_segment_size_mb:18446744073709551615",
        "large_segment_size_mb:18446744073709551615,expandable_segments:True",
        "max_split_size_mb:18446744073709551615,max_non_split_rounding_mb:18446744073709551615",
        "per_process_memory_fraction:0.0",
        "roundup_power2_divisions:9223372036854775808",
    ] {
        let config = AllocatorConfig::parse(text).unwrap();
        for capacity in [None, Some(Capacity { total: 0, free: 0 })] {
            let mut a = CachingAllocator::new(config.clone(), capacity);
            for (id, bytes) in [1, 3 << 20, 1 << 40, 1 << 59, u64::MAX]
                .into_iter()
                .enumerate()
            {
                let got = a.malloc(id as u32, bytes);
                assert_eq!(got.is_ok(), a.is_live(id as u32), "{text}: {bytes}");
                assert!(got.is_err() || capacity.is_none());
            }
        }
    }
    let odd = AllocatorConfig {
        large_segment_size: 0,
        roundup_power2_divisions: [3; 16],
        ..AllocatorConfig::default()
    };
    let mut a = CachingAllocator::new(odd, None);
    assert_eq!(a.malloc(0, 3 << 20), Ok(3 << 20));
    assert_eq!(a.malloc(1, (2 << 20) + 1), Ok(5 << 19));
}

proptest::proptest! {
    #[test]
    fn no_string_breaks_the_parser(text in "([a-z_]{0,3}|max_split_size_mb|roundup_power2_divisions|garbage_collection_threshold|[0-9]{1,21}|[:,\\[\\]> .]|True){0,12}") {
        if let Ok(c) = AllocatorConfig::parse(&text) {
            let mut a = CachingAllocator::new(c, Some(Capacity { total: 1 << 30, free: 1 << 29 }));
            for (id, bytes) in [3, 5000, 3 << 20, 50 << 20, 2 << 30].into_iter().enumerate() {
                let _ = a.malloc(id as u32, bytes);
            }
        }
    }
}
