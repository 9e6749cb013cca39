//! A growing list that never copies what it has.

const BITS: usize = 16;
const SIZE: usize = 1 << BITS;

/// A list in pieces.
#[derive(Debug)]
pub struct Chunked<T> {
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunked<T> {
    fn default() -> Chunked<T> {
        Chunked {
            pieces: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Chunked<T> {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one.
    #[inline]
    pub fn push(&mut self, v: T) {
        if self.len & (SIZE - 1) == 0 {
            // small files stay small
            let room = if self.len == 0 { 64 } else { SIZE };
            self.pieces.push(Vec::with_capacity(room));
        }
        let last = self.len >> BITS;
        self.pieces[last].push(v);
        self.len += 1;
    }

    /// The one at `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&T> {
        self.pieces.get(i >> BITS)?.get(i & (SIZE - 1))
    }

    /// The one at `i`, to change.
    #[inline]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        self.pieces.get_mut(i >> BITS)?.get_mut(i & (SIZE - 1))
    }

    /// Those of a range, clipped to what there is.
    pub fn range(&self, r: std::ops::Range<usize>) -> impl Iterator<Item = &T> {
        let end = r.end.min(self.len);
        let start = r.start.min(end);
        self.pieces
            .iter()
            .skip(start >> BITS)
            .flatten()
            .skip(start & (SIZE - 1))
            .take(end - start)
    }
}
