//! Ranks in other processes: small values that collectives carry travel through files of the run's own directory.
//!
//! Each rank of a communicator appends to its own file: eight bytes with the number of collectives it has issued, then
//! records {tag, length, bytes}. Nobody waits when a collective is issued; a read of its output waits.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a read waits for another rank.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records outside the count of collectives (splits, messages between two ranks).
pub const ASIDE: u64 = 1 << 62;

/// One rank's way to the others of a communicator.
#[derive(Debug)]
pub struct Mailbox {
    dir: PathBuf,
    name: String,
    rank: usize,
    own: Mutex<Option<(File, u64)>>,
}

impl Mailbox {
    /// The mailbox of a rank; the name is the communicator's, the same in all ranks.
    pub fn new(dir: &Path, name: String, rank: usize) -> Mailbox {
        let path = dir.join(format!("{name}.{rank}"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .ok();
        let own = file.and_then(|mut f| f.write_all(&[0; 8]).ok().map(|()| (f, 8)));
        Mailbox {
            dir: dir.to_path_buf(),
            name,
            rank,
            own: Mutex::new(own),
        }
    }

    /// Writes a record, then counts the collective (`issued`), so that whoever sees the count sees the record.
    pub fn post(&self, tag: u64, bytes: Option<&[u8]>, issued: Option<u64>) {
        let mut own = self
            .own
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((file, end)) = own.as_mut() else {
            return;
        };
        if let Some(bytes) = bytes {
            let mut record = Vec::with_capacity(16 + bytes.len());
            record.extend(tag.to_le_bytes());
            record.extend((bytes.len() as u64).to_le_bytes());
            record.extend(bytes);
            if file.write_all_at(&record, *end).is_err() {
                return;
            }
            *end += record.len() as u64;
        }
        if let Some(issued) = issued {
            let _ = file.write_all_at(&issued.to_le_bytes(), 0);
        }
    }

    /// A rank's record; waits until the rank has issued collective `issued`, or (None) until the record is there.
    /// None: it sent something that it did not know, or never came.
    pub fn read(&self, rank: usize, tag: u64, issued: Option<u64>) -> Option<Vec<u8>> {
        let path = self.dir.join(format!("{}.{rank}", self.name));
        let start = Instant::now();
        loop {
            let mut all = Vec::new();
            if File::open(&path)
                .and_then(|mut f| f.read_to_end(&mut all))
                .is_ok()
                && all.len() >= 8
            {
                let found = record(&all, tag);
                let count = u64::from_le_bytes(all[..8].try_into().ok()?);
                if found.is_some() || issued.is_some_and(|n| count >= n) {
                    return found;
                }
            }
            if start.elapsed() > PATIENCE {
                crate::state::say(&format!(
                    "rank {rank} did not answer rank {} within {PATIENCE:?}",
                    self.rank
                ));
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn record(all: &[u8], tag: u64) -> Option<Vec<u8>> {
    let mut at = 8;
    let word = |at: usize| Some(u64::from_le_bytes(all.get(at..at + 8)?.try_into().ok()?));
    while let (Some(t), Some(len)) = (word(at), word(at + 8)) {
        let bytes = all.get(at + 16..at + 16 + len as usize)?;
        if t == tag {
            return Some(bytes.to_vec());
        }
        at += 16 + len as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_find_each_others_records() {
        let dir = std::env::temp_dir().join(format!("tonnage-null-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (a, b) = (
            Mailbox::new(&dir, "c".into(), 0),
            Mailbox::new(&dir, "c".into(), 1),
        );
        a.post(1, Some(b"one"), Some(1));
        a.post(2, None, Some(2));
        assert_eq!(b.read(0, 1, Some(1)).as_deref(), Some(&b"one"[..]));
        assert_eq!(
            b.read(0, 2, Some(2)),
            None,
            "issued, with a value that nobody knows"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
