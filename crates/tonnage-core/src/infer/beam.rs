//! Beam search (`_beam_search`; transformers 5.17 and 4.57.6 have the same one).

use super::call::{Calls, Inputs, Kwargs};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// The sizes of a search.
struct Search<'a, 'b> {
    c: &'a Calls<'b>,
    batch: u64,
    beams: u64,
    /// Candidates of a step: twice the beams.
    keep: u64,
    longest: u64,
    new: u64,
}

/// The best sequences so far, running or finished.
struct Best {
    sequences: Tensor,
    scores: Tensor,
    indices: Tensor,
}

/// Runs the search from the flattened prompts `ids`; returns the sequences.
pub fn search(c: &Calls, mut kw: Kwargs, ids: Tensor) -> Tensor {
    let (beams, batch) = (c.how.beams, c.spec.batch);
    let s = Search {
        c,
        batch,
        beams,
        keep: 2 * beams,
        longest: c.prompt + c.how.new,
        new: c.how.new,
    };
    let top = c.bools(OpId::TO_COPY, &[s.keep]);
    kw.cache_position = c.first_places();
    let shape = [batch, beams, s.longest];
    let running_sequences = c.i64s(OpId::FULL, &shape);
    let sequences = c.i64s(OpId::CLONE, &shape);
    let running_scores = c.f32s(OpId::ZEROS, &[batch, beams]);
    let scores = c.f32s(OpId::FULL, &[batch, beams]);
    let mut sent = c.bools(OpId::ZEROS, &[batch, beams]);
    let mut improvable = c.bools(OpId::FULL, &[batch, 1]);
    let mut hits = c.bools(OpId::ZEROS, &[batch, beams]);
    let running_indices = s.i32s(OpId::FULL, beams);
    let indices = s.i32s(OpId::CLONE, beams);
    let mut running = Best {
        sequences: running_sequences,
        scores: running_scores,
        indices: running_indices,
    };
    let mut done = Best {
        sequences,
        scores,
        indices,
    };
    // a view of the running sequences, or the prompt
    let mut flat = ids;
    let mut inputs = Inputs::default();
    let mut logits: Option<Tensor> = None;
    let mut sums: Option<Tensor> = None;
    let mut candidates: Option<Best> = None;
    let mut beam_idx: Option<Tensor> = None;
    for i in 0..c.how.new {
        if i > 0 || !c.five {
            flat = running.sequences.clone();
        }
        let prepared = c.prepare(&kw, c.prompt + i);
        drop(std::mem::replace(&mut inputs, prepared));
        let out = c.call(&inputs, i == 0);
        if i == 0 && c.five {
            inputs = Inputs::default();
        }
        c.update(&mut kw);
        let copy = c.copied(&out);
        let probabilities = {
            drop(logits.replace(copy));
            let copy = logits.as_ref().expect("just set");
            ops::log_softmax(c.cx, copy)
        };
        drop(sums.take());
        drop(out);
        let vocab = probabilities.size(-1);
        let total = c.f32s(OpId::ADD, &[batch, beams, vocab]);
        drop(probabilities);
        let flat_total = ops::view(c.cx, &total, Shape::new(&[batch, beams * vocab]));
        drop(total);
        let found = s.continuations(&flat_total, &running);
        sums = Some(flat_total);
        if let Some(old) = candidates.replace(found) {
            drop(old.scores);
            drop(old.sequences);
            drop(old.indices);
        }
        let found = candidates.as_ref().expect("just set");
        let stopped = c.stopped(batch * s.keep);
        drop(std::mem::replace(&mut hits, stopped));
        let next = s.running(found);
        let old = std::mem::replace(&mut running, next);
        drop(old.sequences);
        drop(old.scores);
        drop(old.indices);
        let (next, next_sent) = s.finished(&done, found, &sent);
        let old = std::mem::replace(&mut done, next);
        drop(old.sequences);
        drop(old.scores);
        drop(old.indices);
        drop(std::mem::replace(&mut sent, next_sent));
        if let Some(cache) = c.run.cache() {
            drop(beam_idx.replace(running.indices.clone()));
            cache.reorder(c.run, c.rows);
        }
        let next = s.improvable();
        drop(std::mem::replace(&mut improvable, next));
        s.has_unfinished();
    }
    let sequences = done.sequences.clone();
    let generated = s.generated();
    kw.release();
    drop(top);
    drop(done.indices);
    drop(running.sequences);
    drop(done.sequences);
    drop(running.scores);
    drop(done.scores);
    drop(sent);
    drop(improvable);
    drop(hits);
    drop(running.indices);
    drop(flat);
    drop(inputs);
    drop(logits);
    drop(sums);
    if let Some(f) = candidates {
        drop(f.scores);
        drop(f.sequences);
        drop(f.indices);
    }
    drop(beam_idx);
    drop(generated.0);
    drop(generated.1);
    sequences
}

impl Search<'_, '_> {
    /// [B, rows, new tokens] int32
    fn i32s(&self, op: OpId, rows: u64) -> Tensor {
        let shape = Shape::new(&[self.batch, rows, self.new]);
        self.c.cx.empty(op, shape, ScalarType::I32)
    }

    /// `_gather_beams`: `take_along_dim`, with the indices' own tensor of the result's size.
    fn gather(&self, dims: &[u64], dtype: ScalarType) -> Tensor {
        let index = self.c.i64s(OpId::INDEX, dims);
        let out = self.c.cx.empty(OpId::INDEX, Shape::new(dims), dtype);
        drop(index);
        out
    }

    fn gather_all(&self, rows: u64) -> Best {
        Best {
            sequences: self.gather(&[self.batch, rows, self.longest], ScalarType::I64),
            scores: self.gather(&[self.batch, rows], ScalarType::F32),
            indices: self.gather(&[self.batch, rows, self.new], ScalarType::I32),
        }
    }

    /// `torch.topk(x, k)[1]`.
    fn best(&self, x: &Tensor, k: u64) -> Tensor {
        let (values, indices) = ops::topk(self.c.cx, x, k);
        drop(values);
        indices
    }

    /// `_get_top_k_continuations`.
    fn continuations(&self, sums: &Tensor, _running: &Best) -> Best {
        let (c, b, keep) = (self.c, self.batch, self.keep);
        let (scores, picked) = ops::topk(c.cx, sums, keep);
        let current = c.i64s(OpId::DIV, &[b, keep]);
        let indices = self.gather(&[b, keep, self.new], ScalarType::I32);
        let sequences = self.gather(&[b, keep, self.longest], ScalarType::I64);
        let tokens = c.i64s(OpId::REMAINDER, &[b, keep]);
        let range = c.i64s(OpId::ARANGE, &[b]);
        let offset = c.i64s(OpId::MUL, &[b]);
        drop(range);
        let modified = c.i64s(OpId::ADD, &[b, keep]);
        drop(picked);
        drop(current);
        drop(tokens);
        drop(offset);
        drop(modified);
        Best {
            sequences,
            scores,
            indices,
        }
    }

    /// `_get_running_beams_for_next_iteration`.
    fn running(&self, found: &Best) -> Best {
        let c = self.c;
        let dims = [self.batch, self.keep];
        let flags = c.f32s(OpId::TO_COPY, &dims);
        let penalty = ops::plain(c.cx, OpId::MUL, &flags, ScalarType::F32);
        drop(flags);
        let scores = ops::plain(c.cx, OpId::ADD, &found.scores, ScalarType::F32);
        drop(penalty);
        let next = self.best(&scores, self.beams);
        let out = self.gather_all(self.beams);
        drop(scores);
        drop(next);
        out
    }

    /// `_update_finished_beams`: the finished sequences, and which of them are sentences.
    fn finished(&self, done: &Best, found: &Best, sent: &Tensor) -> (Best, Tensor) {
        let (c, cx) = (self.c, self.c.cx);
        let (b, keep, beams) = (self.batch, self.keep, self.beams);
        let just = c.bools(OpId::BITWISE, &[b, keep]);
        let scores = ops::plain(cx, OpId::DIV, &found.scores, ScalarType::F32);
        let all = c.bools(OpId::ALL, &[b, 1]);
        let full = c.bools(OpId::BITWISE, &[b, 1]);
        drop(all);
        let column = || {
            let wide = c.f32s(OpId::TO_COPY, &[b, 1]);
            let product = c.f32s(OpId::MUL, &[b, 1]);
            drop(wide);
            product
        };
        drop(column());
        let not = c.bools(OpId::BITWISE, &[b, 1]);
        let wide = c.f32s(OpId::TO_COPY, &[b, 1]);
        drop(not);
        let product = c.f32s(OpId::MUL, &[b, 1]);
        drop(wide);
        drop(product);
        let not = c.bools(OpId::BITWISE, &[b, keep]);
        let product = c.f32s(OpId::MUL, &[b, keep]);
        drop(not);
        drop(product);
        let merged_sequences = ops::cat(cx, &[&done.sequences, &found.sequences], 1);
        let merged_scores = ops::cat(cx, &[&done.scores, &scores], 1);
        let merged_indices = ops::cat(cx, &[&done.indices, &found.indices], 1);
        let merged_sent = ops::cat(cx, &[sent, &just], 1);
        let next = self.best(&merged_scores, beams);
        let best = self.gather_all(beams);
        let finished = self.gather(&[b, beams], ScalarType::Bool);
        drop(scores);
        drop(just);
        drop(full);
        drop(merged_sequences);
        drop(merged_scores);
        drop(merged_indices);
        drop(merged_sent);
        drop(next);
        (best, finished)
    }

    /// `_check_early_stop_heuristic`.
    fn improvable(&self) -> Tensor {
        let (c, b, beams) = (self.c, self.batch, self.beams);
        let possible = c.f32s(OpId::DIV, &[b, 1]);
        let values = c.f32s(OpId::MAX, &[b, 1]);
        let places = c.i64s(OpId::MAX, &[b, 1]);
        drop(places);
        let number = c.f32s(OpId::SCALAR_TENSOR, &[]);
        let worst = c.f32s(OpId::WHERE, &[b, beams]);
        drop(number);
        drop(values);
        let better = c.bools(OpId::COMPARE, &[b, beams]);
        let any = c.bools(OpId::ANY, &[b, 1]);
        drop(better);
        let out = c.bools(OpId::BITWISE, &[b, 1]);
        drop(any);
        drop(possible);
        drop(worst);
        out
    }

    /// `_beam_search_has_unfinished_sequences`.
    fn has_unfinished(&self) {
        let flag = |op| self.c.bools(op, &[]);
        let possible = flag(OpId::ANY);
        let all = flag(OpId::ALL);
        let both = flag(OpId::BITWISE);
        drop(all);
        let open = flag(OpId::BITWISE);
        drop(both);
        let all = flag(OpId::ALL);
        let valid = flag(OpId::BITWISE);
        drop(all);
        let first = flag(OpId::BITWISE);
        let out = flag(OpId::BITWISE);
        drop(first);
        drop(possible);
        drop(open);
        drop(valid);
        drop(out);
    }

    /// `((beam_indices + 1).bool()).sum(dim=1).max()`, and the output's length.
    fn generated(&self) -> (Tensor, Tensor) {
        let (c, cx) = (self.c, self.c.cx);
        let dims = [self.batch, self.new];
        let shape = Shape::new(&dims);
        let plus = cx.empty(OpId::ADD, shape, ScalarType::I32);
        let bools = c.bools(OpId::TO_COPY, &dims);
        drop(plus);
        let sums = ops::sum(cx, &bools, &[1], false);
        drop(bools);
        let max = ops::max(cx, &sums);
        drop(sums);
        let length = c.i64s(OpId::ADD, &[]);
        (max, length)
    }
}
