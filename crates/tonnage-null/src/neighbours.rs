//! Processes of one run that share a device: what each holds, in a table that all of them map
//! (`devices` in the run's directory, `TONNAGE_NULL_WORLD_DIR`).

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Processes that the table has room for.
const ROWS: usize = 256;
/// Process number, then the bytes held on each device.
const COLUMNS: usize = 1 + crate::MAX_DEVICES;

/// This process's row in the table.
#[derive(Debug)]
pub struct Neighbours {
    table: &'static [AtomicU64],
    row: usize,
}

fn alive(pid: u64) -> bool {
    // SAFETY: signal 0 only asks whether the process exists.
    pid != 0 && unsafe { libc::kill(pid as libc::pid_t, 0) } == 0
}

impl Neighbours {
    /// Maps the table and takes a row, one of a dead process if there is no other. None where that is impossible.
    pub fn join(dir: &Path) -> Option<Neighbours> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("devices"))
            .ok()?;
        let bytes = ROWS * COLUMNS * size_of::<AtomicU64>();
        file.set_len(bytes as u64).ok()?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a fresh mapping of a file of that length, kept for the life of the process.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is aligned to pages, zeroed at first, as long as the slice, and never unmapped.
        let table = unsafe { std::slice::from_raw_parts(p.cast::<AtomicU64>(), ROWS * COLUMNS) };
        let own = std::process::id() as u64;
        let row = (0..ROWS).find(|&r| {
            let pid = table[r * COLUMNS].load(SeqCst);
            !alive(pid)
                && table[r * COLUMNS]
                    .compare_exchange(pid, own, SeqCst, SeqCst)
                    .is_ok()
        })?;
        table[row * COLUMNS + 1..(row + 1) * COLUMNS]
            .iter()
            .for_each(|cell| cell.store(0, SeqCst));
        Some(Neighbours { table, row })
    }

    /// Bytes that other living processes hold on a device.
    pub fn others(&self, device: usize) -> u64 {
        (0..ROWS)
            .filter(|&r| r != self.row && self.table[r * COLUMNS + 1 + device].load(SeqCst) != 0)
            .filter(|&r| alive(self.table[r * COLUMNS].load(SeqCst)))
            .map(|r| self.table[r * COLUMNS + 1 + device].load(SeqCst))
            .sum()
    }

    /// States what this process holds on a device.
    pub fn state(&self, device: usize, bytes: u64) {
        self.table[self.row * COLUMNS + 1 + device].store(bytes, SeqCst);
    }
}
