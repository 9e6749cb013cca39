//! Over a grid of jobs: requested bytes grow with batch and length within one kernel choice, more memory never gives a smaller answer, and
//! the quick grid of verdicts says what every card's own simulation says.

mod common;
use common::*;
use tonnage_catalog::gpu;
use tonnage_core::Job;
use tonnage_core::verdict::Outcome;
use tonnage_plan::cards::{Here, Tried, grid, of_memory};

fn jobs() -> Vec<(&'static str, Job)> {
    let g = gpt2();
    vec![
        ("gpt2 autocast", g.clone()),
        (
            "gpt2 fp32 eager",
            with(
                &g,
                &[
                    ("train.precision", "fp32"),
                    ("train.attention", "eager"),
                    ("train.optimizer", "adamw_fused"),
                ],
            ),
        ),
        (
            "gpt2 checkpointed",
            with(
                &g,
                &[
                    ("train.activation_checkpointing", "full"),
                    ("train.gradient_accumulation_steps", "2"),
                ],
            ),
        ),
        ("llama", llama()),
        (
            "llama lora",
            with(
                &llama(),
                &[
                    ("lora.r", "16"),
                    ("lora.targets", "all-linear"),
                    ("train.precision", "bf16-mixed"),
                ],
            ),
        ),
        (
            "llama qlora",
            with(
                &llama(),
                &[
                    ("lora.r", "16"),
                    ("lora.targets", "all-linear"),
                    ("quant.format", "nf4"),
                    ("model.dtype", "bf16"),
                    ("train.precision", "bf16-mixed"),
                ],
            ),
        ),
    ]
}

#[test]
fn requested_bytes_grow_with_batch_and_length() {
    let g = gpu("rtx-4090").unwrap();
    for (name, job) in jobs() {
        let requested = |b: u64, s: u64| {
            let j = with(
                &job,
                &[
                    ("train.micro_batch_size", &b.to_string()),
                    ("train.seq_len", &s.to_string()),
                ],
            );
            Tried::new(&j, &g)
                .unwrap_or_else(|e| panic!("{name}: {}", shown(&e)))
                .requested()
        };
        // multiples of 8: one choice of attention kernel
        let (batches, lengths) = ([1u64, 2, 3, 4, 6, 8, 12], [64u64, 128, 256, 384, 512, 768]);
        let grid: Vec<Vec<u64>> = batches
            .iter()
            .map(|b| lengths.iter().map(|s| requested(*b, *s)).collect())
            .collect();
        for (i, row) in grid.iter().enumerate() {
            for (k, n) in row.iter().enumerate() {
                if i > 0 {
                    assert!(
                        grid[i - 1][k] <= *n,
                        "{name}: batch {} of {}: {} then {n}",
                        batches[i],
                        lengths[k],
                        grid[i - 1][k]
                    );
                }
                if k > 0 {
                    assert!(
                        row[k - 1] <= *n,
                        "{name}: length {} at batch {}: {} then {n}",
                        lengths[k],
                        batches[i],
                        row[k - 1]
                    );
                }
            }
        }
    }
}

#[test]
fn what_fits_fits_with_more_memory_too() {
    let like = gpu("rtx-4090").unwrap();
    for (name, job) in jobs() {
        let t = Tried::new(&job, &like).unwrap();
        let most = (t.wanted() >> 20) + 1024;
        let mut best = Outcome::No;
        for mib in (t.requested() >> 20..most).step_by(16) {
            let d = of_memory(&like, mib << 20, Here::default()).unwrap();
            let o = t.outcome(&d);
            // what fits goes on to fit. Between `no` and `fits` the allocator itself is not monotone: which blocks it gives back first
            // depends on when it runs out, and a little more memory can leave a worse layout
            assert!(
                best != Outcome::Fits || o == Outcome::Fits,
                "{name}: {mib} MiB is {o:?} after {best:?}"
            );
            assert_eq!(o, t.verdict(&d).outcome, "{name} at {mib} MiB");
            best = o;
        }
        assert_eq!(best, Outcome::Fits, "{name}");
    }
}

#[test]
fn the_quick_grid_says_what_every_cards_own_simulation_says() {
    let classes = all();
    let (mut own, mut cards, mut seen) = (0, 0, std::collections::BTreeMap::new());
    for (name, job) in jobs() {
        for batch in ["1", "8", "40"] {
            let job = with(&job, &[("train.micro_batch_size", batch)]);
            let quick = grid::outcomes(&job, &classes, &mut own)
                .unwrap_or_else(|b| panic!("{}", shown(&b)));
            for (c, outcomes) in classes.iter().zip(&quick) {
                let t = Tried::new(&job, &c.cards[0].gpu).unwrap();
                for (d, o) in c.cards.iter().zip(outcomes) {
                    assert_eq!(*o, t.outcome(d), "{name} batch {batch} on {}", d.gpu.id);
                    *seen.entry(*o).or_insert(0) += 1;
                    cards += 1;
                }
            }
        }
    }
    // it is worth its name, and both answers occur
    assert!(
        own * 3 < 18 * classes.len(),
        "{own} simulations for {cards} verdicts"
    );
    assert!(
        seen[&Outcome::Fits] > 50 && seen[&Outcome::No] > 10,
        "{seen:?}"
    );
}
