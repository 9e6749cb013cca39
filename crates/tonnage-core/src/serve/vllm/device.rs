//! One rank's device memory while vLLM starts: PyTorch's allocator with the settings that vLLM gives it, and handles that own blocks.

use std::cell::RefCell;
use std::rc::Rc;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator};

/// `max_split_size_mb` during load and profile run (vLLM 0.33.0, `v1/worker/gpu_worker.py`).
const MAX_SPLIT: u64 = 20 << 20;

struct Inner {
    allocator: CachingAllocator,
    spare: Vec<u32>,
    next: u32,
}

/// The device.
#[derive(Clone)]
pub(super) struct Device(Rc<RefCell<Inner>>);

/// A tensor's block; dropping it frees it, as Python's last reference does.
pub(super) struct Tensor {
    device: Device,
    id: u32,
    pub bytes: u64,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut d = self.device.0.borrow_mut();
        d.allocator.free(self.id);
        d.spare.push(self.id);
    }
}

impl Device {
    pub fn new() -> Device {
        Device::with(AllocatorConfig {
            max_split_size: Some(MAX_SPLIT),
            ..AllocatorConfig::default()
        })
    }

    /// With the allocator's defaults, as after the profile run.
    pub fn plain() -> Device {
        Device::with(AllocatorConfig::default())
    }

    fn with(config: AllocatorConfig) -> Device {
        Device(Rc::new(RefCell::new(Inner {
            allocator: CachingAllocator::new(config, None),
            spare: vec![],
            next: 0,
        })))
    }

    /// A tensor of `bytes`. The device has no limit here: what does not fit shows in the sums.
    pub fn tensor(&self, bytes: u64) -> Tensor {
        let mut d = self.0.borrow_mut();
        let id = d.spare.pop().unwrap_or_else(|| {
            d.next += 1;
            d.next
        });
        let bytes = bytes.min(1 << 50);
        // without a capacity only more than 1 PiB is refused
        let _ = d.allocator.malloc(id, bytes);
        Tensor {
            device: self.clone(),
            id,
            bytes,
        }
    }

    pub fn allocated(&self) -> u64 {
        self.0.borrow().allocator.stats().allocated.current
    }

    pub fn peak(&self) -> u64 {
        self.0.borrow().allocator.stats().allocated.peak
    }

    pub fn reserved(&self) -> u64 {
        self.0.borrow().allocator.stats().reserved.current
    }

    pub fn reset_peaks(&self) {
        self.0.borrow_mut().allocator.reset_peaks();
    }

    pub fn empty_cache(&self) {
        self.0.borrow_mut().allocator.empty_cache();
    }
}
