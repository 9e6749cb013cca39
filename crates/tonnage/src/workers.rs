//! Simulations on every core of this machine.

use std::sync::atomic::{AtomicUsize, Ordering};
use tonnage_core::workers::Workers;

/// How many threads simulations may take.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One thread a core.
pub struct Threads;

impl Workers for Threads {
    fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        let threads = threads().min(n);
        let next = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n {
                            break;
                        }
                        f(i);
                    }
                });
            }
        });
    }
}
