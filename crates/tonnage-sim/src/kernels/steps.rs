//! The script of an operator: what it allocates and frees, in order.
use smallvec::SmallVec;

/// A temporary of one operator; numbered from 0 in order of allocation.
pub type Slot = u16;

/// One thing that an operator does to the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Allocate a temporary of so many bytes.
    Alloc(Slot, u64),
    /// Give a temporary back.
    Free(Slot),
    /// Allocate the operator's i-th result (its bytes follow from its shape).
    Output(u8),
}

/// The script of one operator call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    list: SmallVec<[Step; 8]>,
    next: Slot,
    /// The question that it answers, plus one ([`crate::asked`]); 0: none, or it was not noted.
    question: u32,
}

impl Steps {
    /// An empty script.
    pub fn new() -> Self {
        Self::default()
    }
    /// The script of an operator that only allocates `n` results, in order.
    pub fn outputs(n: u8) -> Self {
        let mut s = Self::new();
        for i in 0..n {
            s.output(i);
        }
        s
    }
    /// The script that allocates one block; zero bytes allocate nothing.
    pub fn block(bytes: u64) -> Self {
        let mut s = Self::new();
        s.alloc(bytes);
        s
    }
    /// Allocates a temporary; zero bytes allocate nothing (and freeing that slot does nothing).
    pub fn alloc(&mut self, bytes: u64) -> Option<Slot> {
        if bytes == 0 {
            return None;
        }
        let slot = self.next;
        self.next += 1;
        self.list.push(Step::Alloc(slot, bytes));
        Some(slot)
    }
    /// Frees a temporary.
    pub fn free(&mut self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.list.push(Step::Free(slot));
        }
    }
    /// Allocates and at once frees a temporary.
    pub fn scratch(&mut self, bytes: u64) {
        let s = self.alloc(bytes);
        self.free(s);
    }
    /// Allocates the i-th result.
    pub fn output(&mut self, i: u8) {
        self.list.push(Step::Output(i));
    }
    /// Plays another script inside this one; its result i becomes a temporary of `sizes[i]` bytes,
    /// whose slots are returned in the order of the results (`None` where it was not allocated).
    pub fn inline(&mut self, other: &Steps, sizes: &[u64]) -> SmallVec<[Option<Slot>; 4]> {
        let mut slots: SmallVec<[Option<Slot>; 16]> =
            SmallVec::from_elem(None, other.next as usize);
        let mut results: SmallVec<[Option<Slot>; 4]> = SmallVec::from_elem(None, sizes.len());
        for step in &other.list {
            match *step {
                Step::Alloc(s, b) => slots[s as usize] = self.alloc(b),
                Step::Free(s) => self.free(slots[s as usize]),
                Step::Output(i) => results[i as usize] = self.alloc(sizes[i as usize]),
            }
        }
        results
    }
    /// Appends another script whose results are this one's, shifted by `first_output`.
    pub fn extend(&mut self, other: &Steps, first_output: u8) {
        let base = self.next;
        self.next += other.next;
        self.list.extend(other.list.iter().map(|step| match *step {
            Step::Alloc(s, b) => Step::Alloc(base + s, b),
            Step::Free(s) => Step::Free(base + s),
            Step::Output(i) => Step::Output(i + first_output),
        }));
    }
    pub(crate) fn set_question(&mut self, n: u32) {
        self.question = n + 1;
    }
    pub(crate) fn question(&self) -> Option<u32> {
        self.question.checked_sub(1)
    }
    /// The steps, in order.
    pub fn as_slice(&self) -> &[Step] {
        &self.list
    }
    /// Whether nothing is allocated at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    /// How many temporaries the script has.
    pub fn temporaries(&self) -> usize {
        self.next as usize
    }
    /// The largest sum of requested bytes of live temporaries (results not counted).
    pub fn peak_temporary_bytes(&self) -> u64 {
        let mut sizes: SmallVec<[u64; 16]> = SmallVec::from_elem(0, self.next as usize);
        let (mut now, mut peak) = (0, 0);
        for step in &self.list {
            match *step {
                Step::Alloc(s, b) => {
                    sizes[s as usize] = b;
                    now += b;
                    peak = peak.max(now);
                }
                Step::Free(s) => now -= sizes[s as usize],
                Step::Output(_) => {}
            }
        }
        peak
    }
}

impl<'a> IntoIterator for &'a Steps {
    type Item = &'a Step;
    type IntoIter = std::slice::Iter<'a, Step>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}
