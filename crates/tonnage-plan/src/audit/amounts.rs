//! Amounts in running text: `~2.5-3 GB`, `24GB+`, `560 MB`, `50%`, `30.12M`.

use super::claim::Unit;

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    pub low: f64,
    /// `None`: open-ended ("24 GB+", "over 12 GB").
    pub high: Option<f64>,
    pub unit: Unit,
    /// Bytes of the text where it begins and ends.
    pub from: usize,
    pub to: usize,
}

/// The number at the start of a text, and its length. Thousands may be set off by commas.
fn number(text: &str) -> Option<(f64, usize)> {
    let b = text.as_bytes();
    let mut end = 0;
    let mut dot = false;
    while end < b.len() {
        let more = b.get(end + 1).is_some_and(u8::is_ascii_digit);
        match b[end] {
            b'0'..=b'9' => {}
            b'.' if !dot && end > 0 && more => dot = true,
            b',' if end > 0
                && more
                && b[end + 1..].len() >= 3
                && b[end + 1..end + 4].iter().all(u8::is_ascii_digit) => {}
            _ => break,
        }
        end += 1;
    }
    let n = text[..end].replace(',', "").parse().ok()?;
    Some((n, end))
}

/// The dash between the ends of a range, and its length with spaces.
fn dash(text: &str) -> Option<usize> {
    let trimmed = text.trim_start();
    let gap = text.len() - trimmed.len();
    let sign = ["-", "\u{2013}", "\u{2014}", "~", "to "]
        .iter()
        .find(|d| trimmed.starts_with(**d))?;
    let rest = &trimmed[sign.len()..];
    Some(gap + sign.len() + (rest.len() - rest.trim_start().len()))
}

/// The unit word at the start of a text, and its length. `letters`: units of bytes and percent only, so that "8 samples" or "32 heads" is no amount.
fn unit(text: &str) -> Option<(Unit, usize)> {
    let trimmed = text.trim_start_matches([' ', '\u{a0}']);
    let gap = text.len() - trimmed.len();
    if trimmed.starts_with('%') {
        return Some((Unit::Percent, gap + 1));
    }
    let end = trimmed
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(trimmed.len());
    let word = &trimmed[..end];
    let known = [
        "GB", "GiB", "MB", "MiB", "TB", "TiB", "KB", "kB", "KiB", "G", "gb", "mb", "Gb",
    ];
    let known = known.contains(&word) && (word != "G" || gap == 0);
    if !known {
        return None;
    }
    Unit::parse(word).map(|u| (u, gap + end))
}

/// All amounts of memory and percentages of a text.
pub fn amounts(text: &str) -> Vec<Amount> {
    let mut out: Vec<Amount> = Vec::new();
    let mut at = 0;
    let mut before = ' ';
    while at < text.len() {
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else { break };
        // digits inside a word ("RTX3060", "v2") are no amounts
        if !c.is_ascii_digit() || before.is_alphanumeric() || before == '_' || before == '.' {
            (at, before) = (at + c.len_utf8(), c);
            continue;
        }
        match amount(rest) {
            Some((mut a, used)) => {
                let lead = text[..at].trim_end().to_ascii_lowercase();
                let lead = lead.trim_end_matches(['~', '\u{2248}']).trim_end();
                let open = [
                    "over",
                    "more than",
                    "above",
                    "at least",
                    ">",
                    ">=",
                    "\u{2265}",
                ];
                if a.high == Some(a.low) && open.iter().any(|w| lead.ends_with(w)) {
                    a.high = None;
                }
                let under = [
                    "under",
                    "below",
                    "less than",
                    "up to",
                    "at most",
                    "<",
                    "<=",
                    "\u{2264}",
                ];
                if a.high == Some(a.low) && under.iter().any(|w| lead.ends_with(w)) {
                    a.low = 0.0;
                }
                (a.from, a.to) = (at, at + used);
                out.push(a);
                at += used;
                before = ' ';
            }
            None => {
                let len = number(rest).map_or(1, |n| n.1);
                at += len;
                before = '0';
            }
        }
    }
    out
}

/// An amount at the start of a text, and the bytes it takes.
fn amount(text: &str) -> Option<(Amount, usize)> {
    let (low, mut used) = number(text)?;
    let first = unit(&text[used..]);
    if let Some((_, len)) = first {
        used += len;
    }
    let mut high = Some(low);
    let mut last = first;
    if let Some(gap) = dash(&text[used..])
        && let Some((h, len)) = number(&text[used + gap..])
        && let Some((u, ulen)) = unit(&text[used + gap + len..])
        && h >= low
    {
        (high, last) = (Some(h), Some((u, 0)));
        used += gap + len + ulen;
    }
    if text[used..].starts_with('+') {
        (high, used) = (None, used + 1);
        if last.is_none() {
            let (u, len) = unit(&text[used..])?;
            (last, used) = (Some((u, 0)), used + len);
        }
    }
    let (unit, _) = last?;
    let at = Amount {
        low,
        high,
        unit,
        from: 0,
        to: 0,
    };
    Some((at, used))
}

/// A card's name and the memory printed with it: `RTX 3060 12GB` is (`RTX 3060`, 12).
pub fn card(text: &str) -> (String, Option<f64>) {
    let plain = text.split('+').next().unwrap_or(text).trim();
    let plain = plain.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    let plain = plain.strip_prefix("x ").unwrap_or(plain);
    match amounts(plain).first() {
        Some(a) => {
            let name = plain[..a.from].trim().trim_end_matches('(').trim();
            (name.into(), Some(a.low))
        }
        None => (plain.into(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<(f64, Option<f64>, &'static str)> {
        amounts(text)
            .iter()
            .map(|a| (a.low, a.high, a.unit.name()))
            .collect()
    }

    #[test]
    fn amounts_in_sentences() {
        assert_eq!(all("about ~2.5-3GB for batch 8"), [(2.5, Some(3.0), "GB")]);
        assert_eq!(all("31 MB \u{2013} 98 MB"), [(31.0, Some(98.0), "MB")]);
        assert_eq!(
            all("needs 24GB+ or more than 40 GiB"),
            [(24.0, None, "GB"), (40.0, None, "GiB")]
        );
        assert_eq!(
            all("RTX 3060 12GB saves 50% of 1,200 MB"),
            [
                (12.0, Some(12.0), "GB"),
                (50.0, Some(50.0), "%"),
                (1200.0, Some(1200.0), "MB"),
            ]
        );
        assert_eq!(all("GPT-2 has 12 layers, 7B, v2.5, step 3"), []);
    }

    #[test]
    fn cards_with_their_memory() {
        assert_eq!(card("RTX 3060 12GB"), ("RTX 3060".into(), Some(12.0)));
        assert_eq!(card("A10G 24GB + LoRA"), ("A10G".into(), Some(24.0)));
        assert_eq!(card("4x A100 80GB"), ("A100".into(), Some(80.0)));
        assert_eq!(card("GTX 1650"), ("GTX 1650".into(), None));
    }
}
