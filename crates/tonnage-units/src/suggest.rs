//! The nearest known word to a misspelt one.

/// The candidate nearest to `word`, when it is near enough to be worth naming.
///
/// Distance is edits (insert, delete, replace, swap of neighbours); a wrong case costs less than an
/// edit. "Near enough" is at most a third of the longer word's characters, and at least one. Ties go
/// to the earlier candidate. Words over 64 characters have no suggestion (the cost is quadratic).
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const MAX: usize = 64;
    let word: Vec<char> = word.chars().take(MAX + 1).collect();
    if word.is_empty() || word.len() > MAX {
        return None;
    }
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other: Vec<char> = candidate.chars().take(MAX + 1).collect();
        let longer = word.len().max(other.len());
        if longer > MAX {
            continue;
        }
        let cost = distance(&word, &other);
        // case changes come on top of the edits
        if cost < EDIT * ((longer / 3).max(1) + 1) && best.is_none_or(|(b, _)| cost < b) {
            best = Some((cost, candidate));
        }
    }
    best.map(|(_, c)| c)
}

/// Cost of one edit; a difference of case alone costs 1.
const EDIT: usize = 4;

/// Optimal string alignment distance with cheap case changes.
fn distance(a: &[char], b: &[char]) -> usize {
    let replace = |x: char, y: char| match x == y {
        true => 0,
        false if x.eq_ignore_ascii_case(&y) => 1,
        false => EDIT,
    };
    let width = b.len() + 1;
    let mut rows = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i * width + j] = if i == 0 {
                j * EDIT
            } else if j == 0 {
                i * EDIT
            } else {
                let mut cost = (rows[(i - 1) * width + j] + EDIT)
                    .min(rows[i * width + j - 1] + EDIT)
                    .min(rows[(i - 1) * width + j - 1] + replace(a[i - 1], b[j - 1]));
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    cost = cost.min(rows[(i - 2) * width + j - 2] + EDIT);
                }
                cost
            };
        }
    }
    rows[rows.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_near_one_only() {
        let keys = ["micro_batch_size", "seq_len", "zero_stage"];
        assert_eq!(nearest("micro_batchsize", keys), Some("micro_batch_size"));
        assert_eq!(nearest("sqe_len", keys), Some("seq_len"));
        assert_eq!(nearest("SEQ_LEN", keys), Some("seq_len"));
        assert_eq!(nearest("learning_rate", keys), None);
        assert_eq!(nearest("", keys), None);
    }

    #[test]
    fn case_is_cheaper_than_an_edit() {
        assert_eq!(nearest("gb", ["B", "GiB", "GB"]), Some("GB"));
        assert_eq!(nearest("gib", ["GB", "GiB"]), Some("GiB"));
    }
}
