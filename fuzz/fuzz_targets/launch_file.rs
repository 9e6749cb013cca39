#![no_main]
//! A trainer's launch file, under each syntax; what reads is written again in every format.

use libfuzzer_sys::fuzz_target;
use tonnage_plan::export::{self, FORMATS, Options};

fuzz_target!(|text: &str| {
    for name in ["x.yaml", "x.toml", "x.json"] {
        if let Ok(job) = export::read(name, text) {
            for f in FORMATS.iter().filter(|f| f.read.is_some()) {
                let _ = export::export(&job, f, &Options::default());
            }
        }
    }
});
