//! What a run asked its card, so that the run of another card follows without running again.
//!
//! A run depends on the card through the answers to a few questions alone: scripts of scratch buffers, and choices (which attention
//! kernel, how many splits). Everything else is the same on all cards. So where another card's choices are the same and its scripts
//! differ in bytes only, its events are this run's with those bytes in place; where an answer differs in more, nothing is said and that
//! card's run has to be made. `tests/asked.rs` of the planner compares with the cards' own runs.

use crate::context::Cx;
use crate::kernels::{KernelDevice, Step, Steps};
use crate::tensor::GHOST;
use crate::timeline::{Event, EventKind};
use rustc_hash::{FxHashMap, FxHasher};
use std::any::Any;
use std::hash::{Hash, Hasher};

/// What a card answers.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// The script of an operator.
    Script(Steps),
    /// A choice: other code runs after another one.
    Choice(u64),
}

impl Answer {
    /// The bytes of this script's temporaries, where the two differ in nothing else.
    fn bytes_beside(&self, other: &Answer) -> Option<Vec<u64>> {
        let (Answer::Script(a), Answer::Script(b)) = (self, other) else {
            return None;
        };
        let (a, b) = (a.as_slice(), b.as_slice());
        let same = |x: &Step, y: &Step| match (x, y) {
            (Step::Alloc(i, _), Step::Alloc(k, _)) => i == k,
            (x, y) => x == y,
        };
        (a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(x, y))).then(|| {
            let bytes = |s: &Step| match s {
                Step::Alloc(_, n) => Some(*n),
                _ => None,
            };
            a.iter().filter_map(bytes).collect()
        })
    }
}

trait Question: Any + Send + Sync {
    fn answer(&self, card: &KernelDevice) -> Answer;
    fn is(&self, other: &dyn Any) -> bool;
}

struct Asking<T, A> {
    args: T,
    rule: fn(&T, &KernelDevice) -> A,
    answer: fn(A) -> Answer,
}

impl<T: PartialEq + Send + Sync + 'static, A: 'static> Question for Asking<T, A> {
    fn answer(&self, card: &KernelDevice) -> Answer {
        (self.answer)((self.rule)(&self.args, card))
    }
    fn is(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<Self>().is_some_and(|o| {
            std::ptr::fn_addr_eq(self.rule, o.rule)
                && std::ptr::fn_addr_eq(self.answer, o.answer)
                && self.args == o.args
        })
    }
}

/// A script that was played: which question it answers, and where the numbers of its temporaries begin.
#[derive(Clone, Copy)]
struct Played {
    question: u32,
    first: u32,
}

/// The questions of a run, each once, and the allocations that answer them.
#[derive(Default)]
pub struct Asked {
    questions: Vec<(Box<dyn Question>, Answer)>,
    by_hash: FxHashMap<u64, Vec<u32>>,
    played: Vec<Played>,
    ids: Vec<u32>,
    /// Events before the first question: they are the same on every card.
    before: Option<usize>,
}

/// Other bytes for some allocations, by their numbers, ascending.
pub type Patch = Vec<(u32, u64)>;

impl Asked {
    fn add<T: Hash + PartialEq + Send + Sync + 'static, A: 'static>(
        &mut self,
        ask: Asking<T, A>,
        events: usize,
        answer: impl FnOnce() -> Answer,
    ) -> u32 {
        let mut h = FxHasher::default();
        (ask.rule as usize).hash(&mut h);
        ask.args.hash(&mut h);
        let same_hash = self.by_hash.entry(h.finish()).or_default();
        let known = same_hash
            .iter()
            .find(|i| self.questions[**i as usize].0.is(&ask));
        if let Some(i) = known {
            return *i;
        }
        let i = self.questions.len() as u32;
        self.before.get_or_insert(events);
        same_hash.push(i);
        self.questions.push((Box::new(ask), answer()));
        i
    }

    /// How many of the first events are the same on every card.
    pub fn common(&self) -> usize {
        self.before.unwrap_or(usize::MAX)
    }

    /// What another card's run has in other sizes; `None`: it differs in more than sizes.
    pub fn on(&self, card: &KernelDevice) -> Option<Patch> {
        let mut other: Vec<Option<Vec<u64>>> = Vec::with_capacity(self.questions.len());
        for (q, mine) in &self.questions {
            let theirs = q.answer(card);
            other.push(if theirs == *mine {
                None
            } else {
                Some(theirs.bytes_beside(mine)?)
            });
        }
        let mut patch = Patch::new();
        for p in &self.played {
            if let Some(bytes) = &other[p.question as usize] {
                let ids = &self.ids[p.first as usize..];
                patch.extend(ids.iter().copied().zip(bytes.iter().copied()));
            }
        }
        patch.sort_unstable();
        Some(patch)
    }
}

/// The events with a patch in place.
pub fn patched(events: &[Event], patch: &Patch) -> Vec<Event> {
    let mut events = events.to_vec();
    let mut next = patch.iter();
    let mut wanted = next.next();
    // allocations are numbered in the order of their events
    for e in &mut events {
        let Some((id, bytes)) = wanted else { break };
        if matches!(e.kind(), EventKind::Alloc { id: i } if i == *id) {
            e.bytes = *bytes;
            wanted = next.next();
        }
    }
    events
}

impl Cx {
    /// From here on, what is asked of the card is noted.
    pub fn note_questions(&self) {
        *self.0.asked.borrow_mut() = Some(Box::default());
    }

    /// Is it noted?
    pub(crate) fn questions_noted(&self) -> bool {
        self.0.asked.borrow().is_some()
    }

    /// What was asked since [`Cx::note_questions`].
    pub fn take_questions(&self) -> Option<Box<Asked>> {
        self.0.asked.borrow_mut().take()
    }

    /// A choice that depends on the card; `rule` knows nothing but its arguments.
    #[inline]
    pub fn choice<T: Hash + PartialEq + Send + Sync + 'static>(
        &self,
        args: T,
        rule: fn(&T, &KernelDevice) -> u64,
    ) -> u64 {
        let n = rule(&args, &self.0.device.kernel);
        if let Some(asked) = self.0.asked.borrow_mut().as_mut() {
            let answer = Answer::Choice;
            let ask = Asking { args, rule, answer };
            asked.add(ask, self.0.events.borrow().len(), || Answer::Choice(n));
        }
        n
    }

    /// The script of an operator on the card, for [`Cx::play`]; `rule` knows nothing but its arguments.
    #[inline]
    pub fn script<T: Hash + PartialEq + Send + Sync + 'static>(
        &self,
        args: T,
        rule: fn(&T, &KernelDevice) -> Steps,
    ) -> Steps {
        let mut steps = rule(&args, &self.0.device.kernel);
        if let Some(asked) = self.0.asked.borrow_mut().as_mut() {
            let answer = Answer::Script;
            let ask = Asking { args, rule, answer };
            let at = self.0.events.borrow().len();
            let n = asked.add(ask, at, || Answer::Script(steps.clone()));
            steps.set_question(n);
        }
        steps
    }

    /// A script's temporaries were allocated under these numbers.
    pub(crate) fn note_played(&self, steps: &Steps, ids: impl Iterator<Item = u32>) {
        if let (Some(question), Some(asked)) =
            (steps.question(), self.0.asked.borrow_mut().as_mut())
        {
            let first = asked.ids.len() as u32;
            // while nothing is simulated, nothing is allocated
            asked.ids.extend(ids.filter(|id| *id != GHOST));
            if asked.ids.len() as u32 > first {
                asked.played.push(Played { question, first });
            }
        }
    }
}
