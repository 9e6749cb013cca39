//! The temporary pool of each device after a prefill.

use super::build::{self, Batch, Inputs};
use super::cache::{self, Memory};
use super::ggml::pool::{self, Chip};
use super::ggml::{pad, sched};
use super::{Api, Error, Settings, backends, hparams, weights};
use tonnage_model::readers::gguf::Gguf;

/// Cells that attention sees grow in steps (`llama_kv_cache::get_n_kv`).
const CELLS: u64 = 256;

/// Bytes of a temporary pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// With the blocks that a recorded device runs at once; the record is met to the byte.
    pub expected: u64,
    /// The least and the most with other answers of the driver.
    pub low: u64,
    pub high: u64,
}

/// The temporary pool of each device once `tokens` of one sequence have been computed, batch by batch, and one row of logits asked
/// for. `flash_attention` as the estimate says. None for Vulkan, and where a node's need is not known.
///
/// # Errors
/// As [`super::estimate`].
pub fn pools(
    gguf: &Gguf,
    s: &Settings,
    flash_attention: bool,
    tokens: u64,
) -> Result<Vec<Option<Pool>>, Error> {
    let h = hparams::read(gguf)?;
    let c = cache::context(&h, s)?;
    let w = weights::place(gguf, &h, s)?;
    let m = cache::memory(&h, s, &c, &w)?;
    let b = backends(&h, s);
    let chips: Vec<Option<[Chip; 3]>> = s.devices.iter().map(|d| chips(d.api)).collect();
    let mut out: Vec<Option<[u64; 3]>> = chips.iter().map(|c| c.map(|_| [0; 3])).collect();
    for (n_tokens, seen) in steps(tokens, c.n_batch, c.n_ubatch) {
        let m = upto(&m, seen);
        let inputs = Inputs {
            h: &h,
            s,
            w: &w,
            c: &c,
            m: &m,
            b: &b,
            flash_attention,
        };
        let batch = Batch {
            n_tokens,
            n_seqs: 1,
            n_outputs: 1,
        };
        let mut built = build::build(inputs, batch)?;
        let placed = sched::split(&mut built.graph, &b);
        let g = &built.graph;
        for (i, (most, chip)) in out.iter_mut().zip(&chips).enumerate() {
            let (Some(had), Some(chips)) = (*most, *chip) else {
                continue;
            };
            let of = |(had, chip): (u64, Chip)| {
                let here = placed.nodes.iter().filter(|n| n.1 == i);
                let b = pool::bytes(g, here.map(|n| g.get(n.0)), chip)?;
                Some(b.max(had))
            };
            let all: Option<Vec<u64>> = had.into_iter().zip(chips).map(of).collect();
            *most = all.and_then(|v| v.try_into().ok());
        }
    }
    let pool = |n: [u64; 3]| Pool {
        expected: n[1],
        low: n.into_iter().min().unwrap_or(0),
        high: n.into_iter().max().unwrap_or(0),
    };
    Ok(out.into_iter().map(|o| o.map(pool)).collect())
}

/// A device as it is expected, and with other answers of the driver; one whose multiprocessors are not known among the smallest and the largest.
fn chips(api: Api) -> Option<[Chip; 3]> {
    let Api::Cuda {
        compute_capability: cc,
        multiprocessors,
    } = api
    else {
        return None;
    };
    let chip = |multiprocessors: u32, occupancy: u64| Chip {
        cc,
        multiprocessors: multiprocessors.into(),
        occupancy,
    };
    Some(match multiprocessors {
        Some(n) => pool::OCCUPANCY.map(|o| chip(n, o)),
        None => [chip(16, 1), chip(128, 2), chip(192, 4)],
    })
}

/// The calls that can need most: of each size the last, which sees most cells. As tokens and how many have been stored then.
fn steps(tokens: u64, n_batch: u64, n_ubatch: u64) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    let (batch, step) = (n_batch.max(1), n_ubatch.max(1));
    let whole = tokens / batch * batch;
    let mut note = |n: u64, seen: u64| {
        if n == 0 {
            return;
        }
        match out.iter_mut().find(|x| x.0 == n) {
            Some(x) => x.1 = x.1.max(seen),
            None => out.push((n, seen)),
        }
    };
    // of whole batches the last, and what is left
    for (from, len) in [
        (whole.saturating_sub(batch), batch.min(whole)),
        (whole, tokens - whole),
    ] {
        let full = len / step * step;
        note(step.min(full), from + full);
        note(len - full, from + len);
    }
    out
}

/// The caches as attention sees them once so many tokens of one sequence are stored.
fn upto(m: &Memory, seen: u64) -> Memory {
    let mut m = m.clone();
    for c in &mut m.caches {
        c.streams = 1;
        c.cells = c.cells.min(pad(seen, CELLS).max(CELLS));
    }
    m
}

#[cfg(test)]
mod tests {
    use super::steps;

    #[test]
    fn of_each_size_the_last() {
        assert_eq!(steps(8184, 2048, 512), [(512, 7680), (504, 8184)]);
        assert_eq!(steps(4096, 2048, 512), [(512, 4096)]);
        assert_eq!(steps(504, 2048, 512), [(504, 504)]);
        assert_eq!(steps(1000, 300, 128), [(128, 856), (44, 900), (100, 1000)]);
        assert_eq!(steps(0, 2048, 512), []);
    }
}
