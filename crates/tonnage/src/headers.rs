//! The recorded model headers that the program carries: tensor inventories of published shapes in each of llama.cpp's quantisations.

use std::io::Read;
use tonnage_model::readers::gguf::{Gguf, Progress, header};

include!(concat!(env!("OUT_DIR"), "/headers.rs"));

/// Whether there is one of that name (`qwen3-8b.Q4_K_M`).
pub fn known(name: &str) -> bool {
    find(name).is_some()
}

fn find(name: &str) -> Option<&'static [u8]> {
    let i = HEADERS.binary_search_by(|(n, _)| n.cmp(&name)).ok()?;
    Some(HEADERS[i].1)
}

/// All names, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    HEADERS.iter().map(|h| h.0)
}

/// The beginning of a file of that name.
pub fn bytes(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(find(name)?)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// The model of that name.
pub fn read(name: &str) -> Option<Gguf> {
    match header(&bytes(name)?, None) {
        Ok(Progress::Done(g)) => Some(*g),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_header_reads() {
        assert!(super::names().count() > 100);
        for n in super::names() {
            assert!(super::read(n).is_some(), "{n}");
        }
    }
}
