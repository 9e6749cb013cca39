#![no_main]
//! The header of a GGUF file, with and without the file's length.

use libfuzzer_sys::fuzz_target;
use tonnage_model::readers::gguf::{Progress, header};

fuzz_target!(|bytes: &[u8]| {
    match header(bytes, None) {
        Ok(Progress::Need(n)) => assert!(n > bytes.len() as u64),
        Ok(Progress::Done(g)) => {
            assert!(g.header_bytes <= bytes.len() as u64);
            for t in &g.tensors {
                assert!(t.offset + t.bytes <= g.data_bytes);
            }
        }
        Err(_) => {}
    }
    let _ = header(bytes, Some(bytes.len() as u64));
});
