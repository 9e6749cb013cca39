#![no_main]
//! The header of a safetensors file, with and without the file's length.

use libfuzzer_sys::fuzz_target;
use tonnage_model::readers::safetensors::{Progress, header};

fuzz_target!(|bytes: &[u8]| {
    let _ = header(bytes, None);
    if let Ok(Progress::Done(h)) = header(bytes, Some(bytes.len() as u64)) {
        let held: u64 = h.tensors.iter().map(|t| t.bytes()).sum();
        assert_eq!(h.data_start + held, bytes.len() as u64);
    }
});
