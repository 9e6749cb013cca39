//! A log of any size in bounded memory.

use super::text::floor;
use super::{ANCHORS, LogSeries, Message, Site};
use serde::Serialize;

/// A parser sees this much after its anchor.
const AHEAD: usize = 8 << 10;
/// The text that is held at once.
const HELD: usize = 256 << 10;
/// Distinct messages that are kept.
const KEPT: usize = 256;

/// A message of a log.
#[derive(Clone, Debug, Serialize)]
pub struct Error {
    /// Where it is first, from 1.
    pub line: u64,
    /// How often the same text is there (tracebacks print it twice, every rank prints it).
    pub times: u64,
    #[serde(flatten)]
    pub message: Message,
    /// What the log's own memory figures said up to here, where they grow.
    #[serde(skip)]
    pub leak: Option<crate::leak::Verdict>,
}

/// What a log has.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub errors: Vec<Error>,
    /// Further distinct messages that were only counted.
    pub more: u64,
    pub lines: u64,
    pub bytes: u64,
    /// Memory figures in the log's lines.
    pub series: LogSeries,
}

/// Takes a log in pieces.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    text: String,
    /// Bytes of a character that is not complete yet.
    partial: Vec<u8>,
    /// A terminal's escape sequence is being skipped.
    escape: u8,
    /// UTF-16 as PowerShell writes it.
    wide: Option<bool>,
    found: Found,
    line: u64,
    context: String,
}

fn of_interest(line: &str) -> bool {
    // every anchor has one of these
    let b = line.as_bytes();
    let mut i = 0;
    while i + 3 <= b.len() {
        match b[i] {
            b'e' if b[i..].starts_with(b"emory") => return true,
            b'a' | b'A' | b'L' | b'l' if b[i..].len() >= 4 => {
                let w = &b[i..i + 4];
                if w.eq_ignore_ascii_case(b"allo") || w == b"LLOC" || w == b"lloc" {
                    return true;
                }
            }
            b'M' if b[i..].starts_with(b"MEMORY") || b[i..].starts_with(b"Memory") => return true,
            b'O' if b[i..].starts_with(b"OOM") => return true,
            b'm' if b[i..].starts_with(b"max seq len") || b[i..].starts_with(b"mem") => {
                return true;
            }
            b'_' if b[i..].starts_with(b"_STATUS_") => return true,
            b'N' if b[i..].starts_with(b"NCCL") => return true,
            b'b' if b[i..].starts_with(b"buffer size") || b[i..].starts_with(b"by remat") => {
                return true;
            }
            b'K' if b[i..].starts_with(b"Killed") => return true,
            b'k' if b[i..].starts_with(b"killed by") => return true,
            b'C' if b[i..].starts_with(b"CUDA") || b[i..].starts_with(b"Capture") => return true,
            b'c' if b[i..].starts_with(b"cuda graph") => return true,
            b't' if b[i..].starts_with(b"to reserve") => return true,
            _ => {}
        }
        i += 1;
    }
    false
}

impl Scanner {
    /// Takes the next piece, of any length.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.found.bytes += bytes.len() as u64;
        for piece in bytes.chunks(HELD) {
            self.decode(piece);
            if self.text.len() >= HELD {
                self.scan(false);
            }
        }
    }

    /// The log has ended.
    pub fn finish(mut self) -> Found {
        if !self.partial.is_empty() && self.wide != Some(true) {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.scan(true);
        self.found.lines = self.line + 1;
        self.found
    }

    fn decode(&mut self, piece: &[u8]) {
        let mut data = std::mem::take(&mut self.partial);
        data.extend_from_slice(piece);
        if self.wide.is_none() && data.len() >= 2 {
            self.wide = Some(data.starts_with(&[0xff, 0xfe]));
        }
        if self.wide == Some(true) {
            let units = data
                .chunks_exact(2)
                .map(|c| u16::from_le_bytes([c[0], c[1]]));
            let text: String = char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect();
            self.partial = data[data.len() / 2 * 2..].to_vec();
            self.plain(&text);
            return;
        }
        let mut rest = &data[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(s) => {
                    self.plain(s);
                    return;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    self.plain(std::str::from_utf8(good).unwrap_or(""));
                    match e.error_len() {
                        Some(n) => {
                            self.text.push(char::REPLACEMENT_CHARACTER);
                            rest = &bad[n..];
                        }
                        None => {
                            self.partial = bad.to_vec();
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Adds text without the terminal's colours; carriage returns end lines.
    fn plain(&mut self, s: &str) {
        if self.escape == 0 && !s.contains(['\u{1b}', '\r', '\u{feff}']) {
            self.text.push_str(s);
            return;
        }
        for c in s.chars() {
            match (self.escape, c) {
                (0, '\u{1b}') => self.escape = 1,
                (0, '\r') => {
                    // progress bars rewrite their line; files of Windows end lines with both
                    if !self.text.ends_with('\n') {
                        self.text.push('\n');
                    }
                    self.escape = 3;
                }
                (3, '\n') => self.escape = 0,
                (3, '\u{1b}') => self.escape = 1,
                (0, '\u{feff}') => {}
                (1, '[') => self.escape = 2,
                (1, _) => self.escape = 0,
                (2, '@'..='~') => self.escape = 0,
                (2, _) => {}
                (_, c) => {
                    self.escape = 0;
                    self.text.push(c);
                }
            }
        }
    }

    fn scan(&mut self, last: bool) {
        let text = std::mem::take(&mut self.text);
        let limit = if last {
            text.len()
        } else {
            floor(&text, text.len().saturating_sub(AHEAD))
        };
        let mut at = 0;
        // what an earlier line's parser already used
        let mut used = 0;
        while at < limit {
            let end = text[at..].find('\n').map(|i| at + i);
            // an endless line is read in parts
            let stop = match end {
                Some(e) if e - at <= HELD / 2 => e,
                _ => floor(&text, (at + HELD / 4).min(text.len())),
            };
            if stop > limit && !last && stop == text.len() {
                break;
            }
            let line = &text[at..stop];
            if of_interest(line) {
                used = self.line_of(&text, at, stop, used);
            }
            if end == Some(stop) {
                self.line += 1;
                at = stop + 1;
            } else {
                if stop == at {
                    break;
                }
                at = stop;
            }
        }
        let at = at.min(text.len());
        self.context = text[floor(&text, at.saturating_sub(400))..at].to_string();
        self.text = text[at..].to_string();
    }

    fn line_of(&mut self, text: &str, start: usize, stop: usize, used: usize) -> usize {
        let mut from = start.max(used.min(stop));
        let mut used = used;
        let mut any = false;
        // anchors of the line in their order; of two at one place the list's order
        let mut places: Vec<(usize, usize)> = Vec::new();
        for (k, (word, _)) in ANCHORS.iter().enumerate() {
            for (i, _) in text[start..stop].match_indices(word).take(16) {
                places.push((start + i, k));
            }
        }
        places.sort_unstable();
        for (i, k) in places {
            if i < from {
                continue;
            }
            let ahead = floor(text, (i + AHEAD).min(text.len()));
            let near = floor(text, i.saturating_sub(400));
            let joined;
            let context = if i < 400 && !self.context.is_empty() {
                joined = format!("{}{}", self.context, &text[..i]);
                &joined[..]
            } else {
                &text[near..i]
            };
            let site = Site {
                before: &text[floor(text, start.max(i.saturating_sub(600)))..i],
                context,
                text: &text[i..ahead],
            };
            if let Some((m, n)) = (ANCHORS[k].1)(&site) {
                from = i + n.max(1);
                used = used.max(from);
                any = true;
                self.keep(m);
            }
        }
        if !any {
            self.found.series.observe(&text[start..stop]);
        }
        used
    }

    fn keep(&mut self, m: Message) {
        let same = |e: &&mut Error| {
            let differ = |k: &&&str| **k != "rank" && **k != "gpu_index";
            e.message.framework == m.framework
                && e.message.format == m.format
                && e.message.figures.keys().filter(differ).count()
                    == m.figures.keys().filter(differ).count()
                && m.figures
                    .iter()
                    .all(|(k, v)| *k == "rank" || e.message.figures.get(k) == Some(v))
        };
        if let Some(e) = self.found.errors.iter_mut().rev().take(64).find(same) {
            e.times += 1;
            return;
        }
        if self.found.errors.len() >= KEPT {
            self.found.more += 1;
            return;
        }
        let v = self.found.series.series().verdict();
        self.found.errors.push(Error {
            line: self.line + 1,
            times: 1,
            message: m,
            leak: v.is_leak().then_some(v),
        });
    }
}
