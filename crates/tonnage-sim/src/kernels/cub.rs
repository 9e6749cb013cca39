//! Temporary storage of CUB's device-wide algorithms, as torch calls them.
//!
//! Source: CCCL 3.0 (in the CUDA 13.0 build of PyTorch 2.11), `cub/device/dispatch/dispatch_radix_sort.cuh`,
//! `dispatch_scan.cuh`, `dispatch_unique_by_key.cuh` and `tuning/*.cuh`. Each buffer inside the temporary
//! storage begins at a multiple of 256 bytes, and 255 bytes are added so that the whole can be aligned.
//! Tile sizes (threads x items) depend on the architecture that the loaded code was compiled for; an sm89
//! card runs the sm86 code of the wheel. Verified: `tests/fixtures/kernels/{embedding,sort}.jsonl`.
use super::KernelDevice;

/// Size of CUB's temporary storage made of these parts.
fn aliased(parts: &[u64]) -> u64 {
    255 + parts.iter().map(|p| p.next_multiple_of(256)).sum::<u64>()
}

/// Items that one block handles in the onesweep radix sort of keys of `key` bytes (4 or 8) and values of
/// 8 bytes. (Narrower keys take another algorithm on cards before sm90: not covered.)
pub fn radix_sort_tile(key: u64, dev: &KernelDevice) -> u64 {
    match (key, dev.capability) {
        (8, (9, _)) => 288 * 16,
        (8, (8, _)) => 256 * 15,
        (_, (9, _)) => 384 * 14,
        (_, (8, _)) => 256 * 12,
        _ => 256 * 11,
    }
}

/// Temporary storage of `DeviceRadixSort::SortPairs` over the lowest `bits` bits of keys of `key` bytes
/// with int64 values (never in place): 1 byte where one block does it all.
pub fn radix_sort_pairs_temp(items: u64, key: u64, bits: u64, dev: &KernelDevice) -> u64 {
    const DIGITS: u64 = 256;
    if items <= 256 * 9 {
        return 1;
    }
    let tile = radix_sort_tile(key, dev);
    let portion = ((1 << 28) - 1) / tile * tile;
    let portions = items.div_ceil(portion);
    let passes = bits.div_ceil(8);
    let blocks = items.min(portion).div_ceil(tile);
    let (mut keys, mut values) = (0, 0);
    if passes > 1 {
        (keys, values) = (items * key, items * 8);
    }
    aliased(&[
        portions * passes * DIGITS * 8,
        blocks * DIGITS * 4,
        keys,
        values,
        portions * passes * 4,
    ])
}

/// Decoupled look-back state of `tiles` tiles with one word each.
fn tile_state(tiles: u64, word: u64) -> u64 {
    (tiles + 32) * word
}

/// Temporary storage of `DeviceScan` for values of `value` bytes in tiles of `tile` items.
pub fn scan_temp(items: u64, value: u64, tile: u64) -> u64 {
    aliased(&[tile_state(items.div_ceil(tile), 2 * value), 1])
}

/// Temporary storage of an exclusive sum of int64.
pub fn exclusive_scan_temp(items: u64) -> u64 {
    scan_temp(items, 8, 128 * 7)
}

/// Temporary storage of an inclusive sum of values of 4 or 8 bytes.
pub fn inclusive_scan_temp(items: u64, value: u64) -> u64 {
    scan_temp(items, value, if value == 8 { 128 * 7 } else { 128 * 15 })
}

/// Temporary storage of `DeviceReduce::Sum` of flags into int32: 1 byte where one block does it all.
pub fn flag_sum_temp(items: u64, dev: &KernelDevice) -> u64 {
    if items <= 4096 {
        return 1;
    }
    let blocks = u64::from(dev.sm_count) * u64::from(dev.max_threads_per_sm / 256) * 5;
    aliased(&[blocks * 4])
}

/// Temporary storage of `DeviceSelect::Flagged` over counted int64 positions.
pub fn select_temp(items: u64, dev: &KernelDevice) -> u64 {
    let tile = match dev.capability {
        (9, _) => 384 * 11,
        (8, 0) => 128 * 18,
        _ => 128 * 5,
    };
    aliased(&[tile_state(items.div_ceil(tile), 8), 1])
}

/// Temporary storage of `DeviceSelect::UniqueByKey` with int64 keys and counted values.
pub fn unique_by_key_temp(items: u64, dev: &KernelDevice) -> u64 {
    let tile = match dev.capability {
        (9, _) => 448 * 5,
        (8, 0) => 128 * 7,
        _ => 32 * 5,
    };
    aliased(&[tile_state(items.div_ceil(tile), 8), 1, 1])
}
