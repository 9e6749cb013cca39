//! Device memory as bookkeeping: addresses, what each allocation costs, what is left. No effects beyond the reserved
//! address ranges, which nobody can touch.
//!
//! A device gives memory in pages of 2 MiB, each allocation its own, except that requests up to 1 MiB share pages in
//! steps of 512 bytes. Addresses rise until the range is used up, then gaps are filled from the front.

use crate::types::{INVALID_VALUE, OUT_OF_MEMORY};
use std::collections::{BTreeMap, HashMap};

/// The device's page.
pub const PAGE: u64 = 2 << 20;
const SMALL: u64 = 1 << 20;
const SMALL_STEP: u64 = 512;

/// A refusal, with what the report says about it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Refusal {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes that were free.
    pub free: u64,
}

#[derive(Debug)]
struct Block {
    len: u64,
    charged: u64,
    /// Page that a small block shares.
    shared: Option<u64>,
}

#[derive(Debug, Default)]
struct SharedPage {
    next: u64,
    live: u32,
}

/// Physical memory made by `cuMemCreate`.
#[derive(Debug)]
struct Physical {
    bytes: u64,
    /// References to the handle; the memory stays while it is mapped, too.
    held: u32,
    mapped: u32,
    /// Memory of the host is not charged.
    on_device: bool,
}

/// One device's memory in this process.
#[derive(Debug)]
pub struct DeviceMemory {
    total: u64,
    others: u64,
    context: u64,
    context_made: bool,
    base: u64,
    end: u64,
    cursor: u64,
    blocks: BTreeMap<u64, Block>,
    shared: BTreeMap<u64, SharedPage>,
    reserved: BTreeMap<u64, u64>,
    mapped: BTreeMap<u64, (u64, u64)>,
    physical: HashMap<u64, Physical>,
    next_handle: u64,
    used: u64,
    peak: u64,
    noted: u64,
}

fn round_up(n: u64, to: u64) -> Option<u64> {
    Some(n.checked_add(to - 1)? / to * to)
}

impl DeviceMemory {
    /// A device without context or addresses. Sizes are bytes; `others` is held outside this process.
    pub fn new(total: u64, context: u64, others: u64) -> DeviceMemory {
        DeviceMemory {
            total,
            others,
            context,
            context_made: false,
            base: 0,
            end: 0,
            cursor: 0,
            blocks: BTreeMap::new(),
            shared: BTreeMap::new(),
            reserved: BTreeMap::new(),
            mapped: BTreeMap::new(),
            physical: HashMap::new(),
            next_handle: 1,
            used: 0,
            peak: 0,
            noted: 0,
        }
    }

    /// The addresses to give out; once.
    pub fn set_range(&mut self, base: u64, len: u64) {
        self.base = base.div_ceil(PAGE) * PAGE;
        self.end = (base + len) / PAGE * PAGE;
        self.cursor = self.base;
    }

    /// False until `set_range`.
    pub fn has_range(&self) -> bool {
        self.end != 0
    }

    /// Charges the context; true the first time.
    pub fn make_context(&mut self) -> bool {
        !std::mem::replace(&mut self.context_made, true)
    }

    /// Bytes that are neither the context's nor allocated here or elsewhere.
    pub fn free(&self) -> u64 {
        let context = if self.context_made { self.context } else { 0 };
        self.total.saturating_sub(self.others + context + self.used)
    }

    /// What is held outside this process, as it is now.
    pub fn set_others(&mut self, bytes: u64) {
        self.others = bytes;
    }

    /// The card's total.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Peak of allocated bytes.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Charged for the context so far.
    pub fn context(&self) -> u64 {
        if self.context_made { self.context } else { 0 }
    }

    /// The peak, when it is far enough above the one noted before to be worth a line.
    pub fn peak_to_note(&mut self) -> Option<u64> {
        let step = (self.noted / 100).max(1 << 20);
        (self.peak >= self.noted.saturating_add(step)).then(|| {
            self.noted = self.peak;
            self.peak
        })
    }

    fn charge(&mut self, bytes: u64, requested: u64) -> Result<(), Refusal> {
        let free = self.free();
        if bytes > free {
            return Err(Refusal { requested, free });
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        Ok(())
    }

    /// A free stretch of addresses.
    fn addresses(&mut self, len: u64) -> Option<u64> {
        if self.end - self.cursor >= len {
            self.cursor += len;
            return Some(self.cursor - len);
        }
        let mut taken: Vec<(u64, u64)> = Vec::new();
        taken.extend(
            self.blocks
                .iter()
                .filter(|(_, b)| b.shared.is_none())
                .map(|(&a, b)| (a, b.charged.max(PAGE))),
        );
        taken.extend(self.shared.keys().map(|&a| (a, PAGE)));
        taken.extend(self.reserved.iter().map(|(&a, &n)| (a, n)));
        taken.sort_unstable();
        let mut at = self.base;
        for (start, n) in taken {
            if start.saturating_sub(at) >= len {
                return Some(at);
            }
            at = at.max(start + n);
        }
        (self.end.saturating_sub(at) >= len).then_some(at)
    }

    /// `cudaMalloc`: the address.
    pub fn allocate(&mut self, len: u64) -> Result<u64, Refusal> {
        let free = self.free();
        let refusal = Refusal {
            requested: len,
            free,
        };
        if len <= SMALL {
            let step = round_up(len.max(1), SMALL_STEP).ok_or(refusal)?;
            let room = self.shared.iter_mut().find(|(_, p)| p.next + step <= PAGE);
            let page = match room {
                Some((&page, _)) => page,
                None => {
                    self.charge(PAGE, len)?;
                    let Some(page) = self.addresses(PAGE) else {
                        self.used -= PAGE;
                        return Err(refusal);
                    };
                    self.shared.insert(page, SharedPage::default());
                    page
                }
            };
            let shared = self.shared.entry(page).or_default();
            let address = page + shared.next;
            shared.next += step;
            shared.live += 1;
            self.blocks.insert(
                address,
                Block {
                    len,
                    charged: 0,
                    shared: Some(page),
                },
            );
            return Ok(address);
        }
        let charged = round_up(len, PAGE).ok_or(refusal)?;
        self.charge(charged, len)?;
        let Some(address) = self.addresses(charged) else {
            self.used -= charged;
            return Err(refusal);
        };
        self.blocks.insert(
            address,
            Block {
                len,
                charged,
                shared: None,
            },
        );
        Ok(address)
    }

    /// `cudaFree`; false for an address that is not the start of a live allocation.
    pub fn release(&mut self, address: u64) -> bool {
        let Some(block) = self.blocks.remove(&address) else {
            return false;
        };
        self.used -= block.charged;
        if let Some(page) = block.shared
            && let Some(shared) = self.shared.get_mut(&page)
        {
            shared.live -= 1;
            if shared.live == 0 {
                self.shared.remove(&page);
                self.used -= PAGE;
            }
        }
        true
    }

    /// Start and length of the allocation or mapping that holds an address.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let block = self
            .blocks
            .range(..=address)
            .next_back()
            .map(|(&a, b)| (a, b.len.max(1)));
        let mapping = self
            .mapped
            .range(..=address)
            .next_back()
            .map(|(&a, &(n, _))| (a, n));
        [block, mapping]
            .into_iter()
            .flatten()
            .find(|&(a, n)| address < a + n)
    }

    /// True for any address of this device's range, allocated or not.
    pub fn owns(&self, address: u64) -> bool {
        (self.base..self.end).contains(&address)
    }

    /// `cuMemAddressReserve`: addresses without memory.
    pub fn reserve(&mut self, len: u64) -> Result<u64, i32> {
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(INVALID_VALUE);
        }
        let address = self.addresses(len).ok_or(OUT_OF_MEMORY)?;
        self.reserved.insert(address, len);
        Ok(address)
    }

    /// `cuMemAddressFree`; the whole reservation, with nothing mapped in it.
    pub fn unreserve(&mut self, address: u64, len: u64) -> Result<(), i32> {
        if self.reserved.get(&address) != Some(&len)
            || self.mapped.range(address..address + len).next().is_some()
        {
            return Err(INVALID_VALUE);
        }
        self.reserved.remove(&address);
        Ok(())
    }

    /// `cuMemCreate`: a handle, unique on this device.
    pub fn create(&mut self, len: u64, on_device: bool) -> Result<u64, Option<Refusal>> {
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(None);
        }
        if on_device {
            self.charge(len, len).map_err(Some)?;
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.physical.insert(
            handle,
            Physical {
                bytes: len,
                held: 1,
                mapped: 0,
                on_device,
            },
        );
        Ok(handle)
    }

    fn drop_unused(&mut self, handle: u64) {
        if let Some(p) = self.physical.get(&handle)
            && p.held == 0
            && p.mapped == 0
        {
            if p.on_device {
                self.used -= p.bytes;
            }
            self.physical.remove(&handle);
        }
    }

    /// `cuMemRelease`.
    pub fn release_handle(&mut self, handle: u64) -> Result<(), i32> {
        let p = self
            .physical
            .get_mut(&handle)
            .filter(|p| p.held > 0)
            .ok_or(INVALID_VALUE)?;
        p.held -= 1;
        self.drop_unused(handle);
        Ok(())
    }

    /// `cuMemMap`: the whole handle at an address inside one reservation, over nothing mapped.
    pub fn map(&mut self, address: u64, len: u64, handle: u64) -> Result<(), i32> {
        let inside = self
            .reserved
            .range(..=address)
            .next_back()
            .is_some_and(|(&a, &n)| address + len <= a + n);
        let before = self
            .mapped
            .range(..address)
            .next_back()
            .is_some_and(|(&a, &(n, _))| a + n > address);
        let within = self.mapped.range(address..address + len).next().is_some();
        let p = self
            .physical
            .get_mut(&handle)
            .filter(|p| p.held > 0 && p.bytes == len)
            .ok_or(INVALID_VALUE)?;
        if !inside || before || within {
            return Err(INVALID_VALUE);
        }
        p.mapped += 1;
        self.mapped.insert(address, (len, handle));
        Ok(())
    }

    /// `cuMemUnmap`: whole mappings only.
    pub fn unmap(&mut self, address: u64, len: u64) -> Result<(), i32> {
        let inside: Vec<(u64, u64, u64)> = self
            .mapped
            .range(address..address.saturating_add(len))
            .map(|(&a, &(n, h))| (a, n, h))
            .collect();
        if inside.iter().map(|&(_, n, _)| n).sum::<u64>() != len {
            return Err(INVALID_VALUE);
        }
        for (a, _, handle) in inside {
            self.mapped.remove(&a);
            if let Some(p) = self.physical.get_mut(&handle) {
                p.mapped -= 1;
            }
            self.drop_unused(handle);
        }
        Ok(())
    }

    /// `cuMemRetainAllocationHandle`: one more reference to the handle mapped at an address.
    pub fn retain(&mut self, address: u64) -> Option<u64> {
        let (&a, &(n, handle)) = self.mapped.range(..=address).next_back()?;
        let p = self.physical.get_mut(&handle).filter(|_| address < a + n)?;
        p.held += 1;
        Some(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceMemory {
        let mut d = DeviceMemory::new(100 * PAGE, 10 * PAGE, 5 * PAGE);
        d.set_range(1 << 40, 1 << 30);
        d.make_context();
        d
    }

    #[test]
    fn pages_and_capacity() {
        let mut d = device();
        assert_eq!(d.free(), 85 * PAGE);
        let a = d.allocate(3 << 20).unwrap();
        assert_eq!(d.free(), 83 * PAGE);
        assert_eq!(
            d.allocate(84 * PAGE),
            Err(Refusal {
                requested: 84 * PAGE,
                free: 83 * PAGE
            })
        );
        let b = d.allocate(83 * PAGE).unwrap();
        assert_eq!(d.free(), 0);
        assert!(d.release(a) && !d.release(a) && d.release(b));
        assert_eq!((d.used(), d.peak()), (0, 85 * PAGE));
        assert_eq!(
            d.allocate(u64::MAX - 5).unwrap_err().requested,
            u64::MAX - 5
        );
    }

    #[test]
    fn small_allocations_share_a_page() {
        let mut d = device();
        let (a, b) = (d.allocate(1).unwrap(), d.allocate(1000).unwrap());
        assert_eq!((b - a, d.used()), (512, PAGE));
        assert!(d.release(a));
        assert_eq!(d.used(), PAGE);
        assert!(d.release(b));
        assert_eq!(d.used(), 0);
    }

    #[test]
    fn addresses_come_again_when_the_range_is_used_up() {
        let mut d = device();
        for _ in 0..200 {
            let a = d.allocate(10 * PAGE).unwrap();
            assert!(d.owns(a) && d.find(a + 5) == Some((a, 10 * PAGE)));
            assert!(d.release(a));
            assert_eq!(d.find(a), None);
        }
    }

    #[test]
    fn virtual_memory() {
        let mut d = device();
        let va = d.reserve(50 * PAGE).unwrap();
        assert_eq!(d.free(), 85 * PAGE);
        let h = d.create(PAGE, true).unwrap();
        assert_eq!(d.map(va + PAGE, PAGE, h), Ok(()));
        assert_eq!(
            d.map(va + PAGE, PAGE, h),
            Err(INVALID_VALUE),
            "over a mapping"
        );
        assert_eq!(d.release_handle(h), Ok(()));
        assert_eq!(d.free(), 84 * PAGE, "mapped memory outlives its handle");
        assert_eq!(d.release_handle(h), Err(INVALID_VALUE), "released twice");
        assert_eq!(
            d.unreserve(va, 50 * PAGE),
            Err(INVALID_VALUE),
            "still mapped"
        );
        assert_eq!(d.unmap(va, PAGE), Err(INVALID_VALUE), "nothing there");
        assert_eq!(d.unmap(va + PAGE, PAGE), Ok(()));
        assert_eq!(d.free(), 85 * PAGE);
        assert_eq!(d.unreserve(va, 50 * PAGE), Ok(()));
        assert!(d.create(1, true).unwrap_err().is_none());
        assert!(d.create(86 * PAGE, true).unwrap_err().is_some());
        assert!(
            d.create(86 * PAGE, false).is_ok(),
            "memory of the host is not the device's"
        );
    }

    #[test]
    fn peaks_are_noted_in_steps() {
        let mut d = device();
        d.allocate(PAGE).unwrap();
        assert_eq!(d.peak_to_note(), Some(PAGE));
        assert_eq!(d.peak_to_note(), None);
    }
}
