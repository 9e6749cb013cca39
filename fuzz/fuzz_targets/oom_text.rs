#![no_main]
//! A log in pieces: as in one piece.

use libfuzzer_sys::fuzz_target;
use tonnage_explain::oom::Scanner;
use tonnage_explain::oom::log::Log;

fuzz_target!(|bytes: &[u8]| {
    let of = |piece: usize| {
        let mut s = Scanner::default();
        for p in bytes.chunks(piece) {
            s.feed(p);
        }
        Log::of("fuzz", &s.finish())
    };
    let (whole, pieces) = (of(1 << 20), of(7));
    assert_eq!(whole.failures.len(), pieces.failures.len());
});
