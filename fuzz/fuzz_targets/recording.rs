#![no_main]
//! What the recorder leaves, whole or broken off.

use libfuzzer_sys::fuzz_target;
use tonnage_core::verdict::Device;
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_trace::{Trace, again, footprint, raw};

fuzz_target!(|text: &str| {
    let Ok(t) = raw::parse(text, "/home/me") else {
        return;
    };
    let device = Device::of(tonnage_catalog::gpu("gtx-1650").unwrap()).unwrap();
    let _ = footprint::footprint(&t, &device);
    let _ = again::replay(&t, &AllocatorConfig::default(), None);
    if !t.events.is_empty() {
        let again = Trace::parse(&t.write()).expect("what is written is read");
        assert_eq!(again.events.len(), t.events.len());
    }
});
