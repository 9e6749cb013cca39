//! Independent parts of a calculation: the caller has the threads.

use std::sync::Mutex;

/// Runs parts of a calculation.
pub trait Workers: Sync {
    /// Calls `f` once for each number below `n`, in any order, and returns when all are done.
    fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync));
}

/// One after the other.
pub struct Sequential;

impl Workers for Sequential {
    fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(f);
    }
}

/// The caller's workers, in options that are copied about. By default one part after the other.
#[derive(Clone, Copy)]
pub struct Crew(pub &'static dyn Workers);

impl Default for Crew {
    fn default() -> Crew {
        Crew(&Sequential)
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crew")
    }
}

impl Crew {
    /// `f` of every item, in order.
    pub(crate) fn each_of<T: Sync, R: Send>(
        self,
        items: &[T],
        f: impl Fn(&T) -> R + Sync,
    ) -> Vec<R> {
        let done = Mutex::new(Vec::with_capacity(items.len()));
        self.0.each(items.len(), &|i| {
            let r = f(&items[i]);
            if let Ok(mut d) = done.lock() {
                d.push((i, r));
            }
        });
        let mut done = done.into_inner().unwrap_or_default();
        done.sort_unstable_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, r)| r).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Backwards;

    impl Workers for Backwards {
        fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
            (0..n).rev().for_each(f);
        }
    }

    #[test]
    fn every_item_once_and_in_order() {
        let items = [3u64, 1, 4, 1, 5];
        for crew in [Crew::default(), Crew(&Backwards)] {
            assert_eq!(crew.each_of(&items, |x| x * x), [9, 1, 16, 1, 25]);
            assert!(crew.each_of(&[] as &[u64], |x| *x).is_empty());
        }
    }
}
