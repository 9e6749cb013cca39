#![no_main]
//! A pickled memory snapshot: read within limits, then everything that is made of it.

use libfuzzer_sys::fuzz_target;
use tonnage_explain::snapshot::diff::Diff;
use tonnage_explain::snapshot::report::Report;
use tonnage_explain::snapshot::{Limits, pickle};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        objects: 1 << 20,
        stack: 1 << 16,
        text: 1 << 22,
        bytes: 1 << 24,
    };
    if let Ok(s) = pickle::read(bytes, limits) {
        let _ = Report::of("fuzz", &s, 5);
        let _ = Diff::of(("a", "b"), &s, &s);
    }
});
