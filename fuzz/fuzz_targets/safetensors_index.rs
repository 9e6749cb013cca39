#![no_main]
//! The index of a model in several files.

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = tonnage_model::readers::index::parse(bytes) {
        assert!(
            index
                .tensors
                .iter()
                .all(|(_, n)| (*n as usize) < index.shards.len())
        );
        let _ = index.inventory(&BTreeMap::new());
    }
});
