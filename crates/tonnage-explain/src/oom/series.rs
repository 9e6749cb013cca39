//! Memory figures in the lines of a training log, over its steps.

use super::text::{after, amount, integer};
use crate::leak::Series;

/// The series of one kind of line: `step: 10 ... memory: 45.12GiB(56.71%)`, `Epoch [1][100/7330] ... memory: 5326` (MiB),
/// `iter 20 ... gpu_mem 12.3G`. Lines without a step are counted.
#[derive(Clone, Debug, Default)]
pub struct LogSeries {
    series: Series,
    lines: u64,
    last: f64,
    base: f64,
    rank: Option<i64>,
    stepped: bool,
}

fn lower_after<'a>(line: &'a str, lower: &str, word: &str) -> Option<&'a str> {
    lower.find(word).map(|i| &line[i + word.len()..])
}

impl LogSeries {
    /// Looks at a line; says whether it had a figure.
    pub fn observe(&mut self, line: &str) -> bool {
        if line.len() > 4000 || !line.is_ascii() {
            return false;
        }
        let lower = line.to_ascii_lowercase();
        let Some(bytes) = memory(line, &lower) else {
            return false;
        };
        // one process of several
        let rank = super::text::rank(line);
        if self.lines > 0 && rank != self.rank {
            return false;
        }
        self.rank = rank;
        self.lines += 1;
        let step = ["global_step", "step", "iteration", "iter"]
            .iter()
            .find_map(|w| lower_after(line, &lower, w))
            .map(|r| r.trim_start_matches([' ', ':', '=', '[', '"', '\'', '#']))
            .and_then(integer)
            .map(|n| n.0 as f64);
        let at = match step {
            Some(s) => {
                self.stepped = true;
                // counters begin anew with each epoch
                if s + self.base < self.last {
                    self.base = self.last;
                }
                s + self.base
            }
            None => self.last + 1.0,
        };
        self.last = at;
        self.series.push(at, bytes);
        true
    }

    /// What was found.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// `step`, or `line` where the lines name no step.
    pub fn unit(&self) -> &'static str {
        if self.stepped { "step" } else { "line" }
    }
}

fn memory(line: &str, lower: &str) -> Option<u64> {
    for (i, _) in lower.match_indices("mem") {
        let tail = &line[i..];
        let n = tail
            .find(|c: char| {
                !(c.is_ascii_alphabetic()
                    || matches!(c, '_' | ' ' | ':' | '=' | '"' | '\'' | '/' | '('))
            })
            .unwrap_or(tail.len());
        if n > 48 || !tail[n..].starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        if let Some((a, _)) = amount(&tail[n..]) {
            // a number of bytes below a MiB is no device's memory
            return u64::try_from(a.bytes).ok().filter(|b| *b >= 1 << 20);
        }
        // OpenMMLab's and Detectron's counters are MiB
        let (v, rest) = integer(&tail[n..])?;
        let mib = ["memory: ", "max_mem: ", "mem: "]
            .iter()
            .any(|w| lower[i.saturating_sub(4)..].starts_with(w) || after(lower, w).is_some());
        if mib && (64..=2_000_000).contains(&v) && !rest.starts_with('%') && !rest.starts_with('.')
        {
            return Some(v as u64 * (1 << 20));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_trainers() {
        for (line, bytes) in [
            (
                "step: 10  loss: 8.1  memory: 45.12GiB(56.71%)  tps: 4,000",
                48447231099u64,
            ),
            (
                "2024 - mmdet - INFO - Epoch [1][50/7330] lr: 1e-3, time: 0.4, memory: 5326, loss: 1.2",
                5326 << 20,
            ),
            ("iter 20 loss 3.2 gpu_mem 12.5G", 13421772800),
        ] {
            let mut s = LogSeries::default();
            assert!(s.observe(line), "{line}");
            assert_eq!(
                memory(line, &line.to_ascii_lowercase()),
                Some(bytes),
                "{line}"
            );
        }
        let mut s = LogSeries::default();
        assert!(!s.observe("loaded 3 members in 12 s"));
        assert!(!s.observe("memory pinned: 12 buffers"));
    }
}
