//! Independent work on as many threads as the caller allows.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `f` of every item, in order. At most `threads` at once; with 0 or 1 the caller's own thread does all.
pub(super) fn spread<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    f: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let workers = threads.min(items.len());
    if workers < 2 {
        return items.iter().map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let work = || {
        while let Some((i, x)) = take(&next, items) {
            let r = f(x);
            if let Ok(mut d) = done.lock() {
                d.push((i, r));
            }
        }
    };
    std::thread::scope(|s| {
        for _ in 1..workers {
            s.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, r)| r).collect()
}

fn take<'a, T>(next: &AtomicUsize, items: &'a [T]) -> Option<(usize, &'a T)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    items.get(i).map(|x| (i, x))
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn every_item_once_and_in_order() {
        let items: Vec<u64> = (0..100).collect();
        let want: Vec<u64> = items.iter().map(|x| x * x).collect();
        for threads in [0, 1, 2, 7, 200] {
            assert_eq!(spread(threads, &items, |x| x * x), want);
        }
        assert!(spread(4, &[] as &[u64], |x| *x).is_empty());
    }
}
