#![no_main]
//! A trace file: read, then everything that is made of it.

use libfuzzer_sys::fuzz_target;
use tonnage_core::verdict::Device;
use tonnage_sim::alloc::{AllocatorConfig, Capacity};
use tonnage_trace::diff::{Side, diff};
use tonnage_trace::{Trace, again, footprint, scale};

fuzz_target!(|text: &str| {
    let Ok(t) = Trace::parse(text) else { return };
    let device = Device::of(tonnage_catalog::gpu("gtx-1650").unwrap()).unwrap();
    let f = footprint::footprint(&t, &device);
    let _ = diff(&Side::of(&f), &Side::of(&f));
    let grown = AllocatorConfig {
        expandable_segments: true,
        ..AllocatorConfig::default()
    };
    let room = Capacity {
        total: 4 << 30,
        free: 3 << 30,
    };
    for (config, limit) in [
        (AllocatorConfig::default(), None),
        (AllocatorConfig::default(), Some(room)),
        (grown, None),
    ] {
        let _ = again::replay(&t, &config, limit);
    }
    let _ = scale::scale(&[(1, &t), (2, &t)], 8, &AllocatorConfig::default());
    let again = Trace::parse(&t.write()).expect("what is written is read");
    assert_eq!(again.events.len(), t.events.len());
});
