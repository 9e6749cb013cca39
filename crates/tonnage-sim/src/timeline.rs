//! What a simulation or a recording produces: allocations and frees in order, with phase marks.

const FREE: u32 = 1 << 31;
const EMPTY_CACHE: u32 = u32::MAX;

/// One allocator event. `id` counts allocations from 0; a free names the allocation it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    id_and_kind: u32,
    /// Packed owner: module in the high 20 bits, operator in the low 12 ([`crate::ops::op::OpId`]).
    pub owner: u32,
    /// Bytes asked for (before any rounding); also set on the free.
    pub bytes: u64,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Alloc {
        id: u32,
    },
    Free {
        id: u32,
    },
    /// The framework's `empty_cache`: wholly free segments go back to the driver.
    EmptyCache,
}

impl Event {
    /// Allocation number `id` of `bytes`.
    pub fn alloc(id: u32, bytes: u64, owner: u32) -> Event {
        Event {
            id_and_kind: id,
            owner,
            bytes,
        }
    }
    /// The end of allocation `id`.
    pub fn free(id: u32, bytes: u64) -> Event {
        Event {
            id_and_kind: id | FREE,
            owner: 0,
            bytes,
        }
    }
    /// `torch.cuda.empty_cache()`.
    pub fn empty_cache() -> Event {
        Event {
            id_and_kind: EMPTY_CACHE,
            owner: 0,
            bytes: 0,
        }
    }
    /// The same with allocation `id + by` in place of `id`.
    #[inline]
    pub fn renumbered(&self, by: u32) -> Event {
        match self.kind() {
            EventKind::EmptyCache => *self,
            _ => Event {
                id_and_kind: self.id_and_kind.wrapping_add(by),
                ..*self
            },
        }
    }
    /// What happened.
    #[inline]
    pub fn kind(&self) -> EventKind {
        if self.id_and_kind == EMPTY_CACHE {
            EventKind::EmptyCache
        } else if self.id_and_kind & FREE != 0 {
            EventKind::Free {
                id: self.id_and_kind & !FREE,
            }
        } else {
            EventKind::Alloc {
                id: self.id_and_kind,
            }
        }
    }
}

/// The phases of a job, as the ground truth names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Load,
    KbitPrepare,
    Peft,
    Between,
    Input,
    Forward,
    Backward,
    Clip,
    Optimizer,
    ZeroGrad,
    Prefill,
    Decode,
    /// A plain call's output is alive and nothing runs.
    Hold,
    End,
}

impl Phase {
    /// The spelling used in records and reports.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Load => "load",
            Phase::KbitPrepare => "kbit_prepare",
            Phase::Peft => "peft",
            Phase::Between => "between",
            Phase::Input => "input",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Clip => "clip",
            Phase::Optimizer => "optimizer",
            Phase::ZeroGrad => "zero_grad",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
            Phase::Hold => "hold",
            Phase::End => "end",
        }
    }
}

/// A phase starts before event number `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub at: usize,
    /// -1 while loading.
    pub step: i32,
    pub micro_batch: u32,
    pub phase: Phase,
}

/// A tagged allocation: what it is, told by the loop that made it (parameters, gradients, optimizer states, inputs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub id: u32,
    pub category: Category,
}

/// What a block holds; the classes of the recorded breakdowns, in the words of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    Parameters,
    Buffers,
    QuantState,
    Gradients,
    OptimizerState,
    Inputs,
    /// Keys and values of past tokens.
    KvCache,
    /// A weight's copy in the autocast type.
    AutocastCopy,
    Workspace,
}

/// Events, marks and tags of one run.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    pub events: Vec<Event>,
    pub marks: Vec<Mark>,
    pub tags: Vec<Tag>,
}
