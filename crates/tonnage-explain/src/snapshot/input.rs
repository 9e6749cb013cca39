//! A stream's bytes, read ahead, with the place in the file.

use super::SnapshotError;
use std::io::Read;

/// Texts longer than this are cut: nothing in a snapshot needs more.
const LONGEST: usize = 1 << 20;

/// Bytes of a stream, read ahead.
pub(super) struct Input<R> {
    from: R,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    /// Offset of the buffer in the file.
    base: u64,
    limit: u64,
}

impl<R: Read> Input<R> {
    /// At most `limit` bytes of it.
    pub(super) fn new(from: R, limit: u64) -> Input<R> {
        Input {
            from,
            buffer: vec![0; 1 << 18],
            at: 0,
            end: 0,
            base: 0,
            limit,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    #[cold]
    fn fill(&mut self, need: usize) -> Result<(), SnapshotError> {
        self.buffer.copy_within(self.at..self.end, 0);
        self.base += self.at as u64;
        self.end -= self.at;
        self.at = 0;
        if self.buffer.len() < need {
            self.buffer.resize(need, 0);
        }
        while self.end < need {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    return Err(SnapshotError::Bad(
                        self.base + self.end as u64,
                        "the file ends in the middle".into(),
                    ));
                }
                Ok(n) => self.end += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.base > self.limit {
            return Err(SnapshotError::Limit(self.limit, "bytes"));
        }
        Ok(())
    }

    #[inline]
    pub(super) fn take(&mut self, n: usize) -> Result<&[u8], SnapshotError> {
        if self.end - self.at < n {
            self.fill(n)?;
        }
        self.at += n;
        Ok(&self.buffer[self.at - n..self.at])
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, SnapshotError> {
        if self.at == self.end {
            self.fill(1)?;
        }
        self.at += 1;
        Ok(self.buffer[self.at - 1])
    }

    pub(super) fn u16(&mut self) -> Result<usize, SnapshotError> {
        let b = self.take(2)?;
        Ok(usize::from(b[0]) | usize::from(b[1]) << 8)
    }

    pub(super) fn u32(&mut self) -> Result<u32, SnapshotError> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<u64, SnapshotError> {
        let b = self.take(8)?;
        Ok(b.iter().rev().fold(0, |a, b| a << 8 | u64::from(*b)))
    }

    pub(super) fn skip(&mut self, mut n: u64) -> Result<(), SnapshotError> {
        while n > 0 {
            let step = n.min(1 << 16) as usize;
            self.take(step)?;
            n -= step as u64;
        }
        Ok(())
    }

    /// `n` bytes of which at most [`LONGEST`] are kept.
    pub(super) fn text(&mut self, n: u64) -> Result<String, SnapshotError> {
        let kept = n.min(LONGEST as u64) as usize;
        let s = match std::str::from_utf8(self.take(kept)?) {
            Ok(s) => s.to_string(),
            Err(_) => String::from_utf8_lossy(&self.buffer[self.at - kept..self.at]).into_owned(),
        };
        self.skip(n - kept as u64)?;
        Ok(s)
    }

    pub(super) fn line(&mut self) -> Result<String, SnapshotError> {
        let mut out = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&out).into_owned()),
                _ if out.len() > 4096 => {
                    return Err(SnapshotError::Bad(self.offset(), "an endless name".into()));
                }
                b => out.push(b),
            }
        }
    }
}
