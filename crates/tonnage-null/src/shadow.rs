//! Values of device memory, where they must be right: small arrays that came from the host and went through a
//! collective (object collectives, the shape check of data-parallel wrappers, random states). Everything else reads as
//! zeros.
//!
//! A value is believed for a while only, counted in kernels launched, because a kernel may have written over it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

/// Values above this are not kept.
pub const LARGEST: usize = 1 << 20;
const FROM_HOST_LIVES: u64 = 256;
const FROM_COLLECTIVE_LIVES: u64 = 4096;
/// Entries kept, and bytes in them.
const MOST: usize = 512;
const MOST_BYTES: usize = 32 << 20;

/// Where a collective's output comes from.
#[derive(Clone)]
pub enum Value {
    /// Bytes known now.
    Known(Arc<[u8]>),
    /// Bytes that other processes will have written by the time somebody reads; None where nobody knew them.
    Later(Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>),
}

#[derive(Clone)]
struct Entry {
    at: usize,
    len: usize,
    value: Value,
    stamp: u64,
    collective: bool,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    ENTRIES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn now() -> u64 {
    crate::state::state().launches.load(Relaxed)
}

fn forget(list: &mut Vec<Entry>, at: usize, len: usize) {
    list.retain(|e| e.at + e.len <= at || at + len <= e.at);
}

fn put(at: usize, len: usize, value: Option<Value>, collective: bool) {
    let mut list = entries();
    if !list.is_empty() {
        forget(&mut list, at, len);
    }
    let Some(value) = value.filter(|_| len > 0 && len <= LARGEST) else {
        return;
    };
    if list.len() >= MOST || list.iter().map(|e| e.len).sum::<usize>() + len > MOST_BYTES {
        let now = now();
        list.retain(|e| fresh(e, now));
        let half = list.len().div_ceil(2);
        if list.len() >= MOST || list.iter().map(|e| e.len).sum::<usize>() + len > MOST_BYTES {
            list.drain(..half);
        }
    }
    list.push(Entry {
        at,
        len,
        value,
        stamp: now(),
        collective,
    });
}

fn fresh(e: &Entry, now: u64) -> bool {
    now - e.stamp.min(now)
        <= if e.collective {
            FROM_COLLECTIVE_LIVES
        } else {
            FROM_HOST_LIVES
        }
}

fn find(at: usize, len: usize, collective_only: bool) -> Option<(Entry, usize)> {
    let now = now();
    let list = entries();
    let e = list
        .iter()
        .rev()
        .find(|e| e.at <= at && at + len <= e.at + e.len)?;
    (fresh(e, now) && (e.collective || !collective_only)).then(|| (e.clone(), at - e.at))
}

fn resolve(found: (Entry, usize), len: usize) -> Option<Vec<u8>> {
    let (entry, offset) = found;
    match entry.value {
        Value::Known(bytes) => Some(bytes.get(offset..offset + len)?.to_vec()),
        Value::Later(read) => Some(read()?.get(offset..offset + len)?.to_vec()),
    }
}

/// The host wrote here.
pub fn from_host(at: usize, bytes: Option<&[u8]>) -> Option<()> {
    let bytes = bytes?;
    put(at, bytes.len(), Some(Value::Known(bytes.into())), false);
    Some(())
}

/// Something wrote here, nobody knows what.
pub fn unknown(at: usize, len: usize) {
    put(at, len, None, false);
}

/// Device memory was copied.
pub fn moved(to: usize, from: usize, len: usize) {
    match find(from, len, false) {
        Some(found) => {
            let collective = found.0.collective;
            put(
                to,
                len,
                resolve(found, len).map(|b| Value::Known(b.into())),
                collective,
            );
        }
        None => put(to, len, None, false),
    }
}

/// What a collective sends, where its start is known; what lies behind the known part is zeros (object collectives send
/// arrays that were made longer on the device).
pub fn sent(at: usize, len: usize) -> Option<Vec<u8>> {
    if len == 0 || len > LARGEST {
        return None;
    }
    let found = find(at, len, false).or_else(|| find(at, 1, false))?;
    let known = len.min(found.0.len - found.1);
    let mut bytes = resolve(found, known)?;
    bytes.resize(len, 0);
    Some(bytes)
}

/// A collective's output.
pub fn received(at: usize, len: usize, value: Option<Value>) {
    put(at, len, value, true);
}

/// What a read of device memory gives, where a collective made it known.
pub fn read(at: usize, len: usize) -> Option<Vec<u8>> {
    if len == 0 || len > LARGEST {
        return None;
    }
    resolve(find(at, len, true)?, len)
}
