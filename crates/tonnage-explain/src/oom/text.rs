//! Reading amounts and numbers out of sentences.

/// An amount as displayed: bytes rounded to one, and half of its last displayed digit in bytes (0 where it was bytes).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    pub bytes: i64,
    pub half_digit: f64,
}

/// 1024-based, whatever the label says: every framework here divides by powers of 1024, also where it prints `GB`.
fn unit(word: &str) -> Option<u64> {
    Some(match word {
        "bytes" | "byte" | "Bytes" | "B" => 1,
        "KiB" | "KB" | "kB" | "kiB" | "K" => 1 << 10,
        "MiB" | "MB" | "M" => 1 << 20,
        "GiB" | "GB" | "G" => 1 << 30,
        "TiB" | "TB" | "T" => 1 << 40,
        _ => return None,
    })
}

/// `digits[.digits]` without a float; None where it does not fit.
fn scaled(whole: &str, fraction: &str, unit: u64, negative: bool) -> Option<Amount> {
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let value = digits.checked_mul(u128::from(unit))?;
    // half away from zero
    let rounded = i64::try_from((value.checked_mul(2)? + scale) / (2 * scale)).ok()?;
    let exact = unit == 1 && fraction.is_empty();
    Some(Amount {
        bytes: if negative { -rounded } else { rounded },
        half_digit: if exact {
            0.0
        } else {
            unit as f64 / scale as f64 / 2.0
        },
    })
}

/// The number at the beginning, as (text of whole part without thousands separators, fraction, rest).
fn number(s: &str) -> Option<(String, &str, &str)> {
    let end = s
        .find(|c: char| !c.is_ascii_digit() && c != ',')
        .unwrap_or(s.len());
    let mut whole = &s[..end];
    // a comma that ends the number is punctuation, not a separator
    while whole.ends_with(',') {
        whole = &whole[..whole.len() - 1];
    }
    if whole.is_empty() || !whole.as_bytes()[0].is_ascii_digit() || whole.len() > 40 {
        return None;
    }
    let parts: Vec<&str> = whole.split(',').collect();
    if parts.len() > 1 && parts[1..].iter().any(|p| p.len() != 3) {
        // "1,2": two numbers
        whole = parts[0];
    }
    let rest = &s[whole.len()..];
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(r) if r.starts_with(|c: char| c.is_ascii_digit()) => {
            let n = r.find(|c: char| !c.is_ascii_digit()).unwrap_or(r.len());
            (&r[..n], &r[n..])
        }
        _ => ("", rest),
    };
    (fraction.len() <= 20).then(|| (whole.replace(',', ""), fraction, rest))
}

/// `1.25 GiB`, `1.25GiB`, `41.74G`, `512 bytes` at the beginning (spaces allowed ahead), and the rest.
pub fn amount(s: &str) -> Option<(Amount, &str)> {
    let s = s.trim_start();
    let (negative, s) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s),
    };
    let (whole, fraction, rest) = number(s)?;
    let r = rest.trim_start_matches(' ');
    let n = r
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(r.len());
    let u = unit(&r[..n])?;
    Some((scaled(&whole, fraction, u, negative)?, &r[n..]))
}

/// As [`amount`], but a number without a unit is bytes.
pub fn bytes(s: &str) -> Option<(Amount, &str)> {
    amount(s).or_else(|| {
        let (n, rest) = integer(s)?;
        Some((
            Amount {
                bytes: n,
                half_digit: 0.0,
            },
            rest,
        ))
    })
}

/// The whole number at the beginning, and the rest.
pub fn integer(s: &str) -> Option<(i64, &str)> {
    let s = s.trim_start();
    let (negative, t) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s),
    };
    let (whole, _, _) = number(t)?;
    let digits = t.find(|c: char| !c.is_ascii_digit() && c != ',');
    let rest = &t[digits.unwrap_or(t.len())..];
    let n: i64 = whole.parse().ok()?;
    Some((if negative { -n } else { n }, rest))
}

/// The number at the beginning as a float.
pub fn float(s: &str) -> Option<f64> {
    let (whole, fraction, _) = number(s.trim_start())?;
    format!("{whole}.{fraction}0").parse().ok()
}

/// The text after the first `what`.
pub fn after<'a>(s: &'a str, what: &str) -> Option<&'a str> {
    s.find(what).map(|i| &s[i + what.len()..])
}

/// The amount right after the first `what`.
pub fn amount_after(s: &str, what: &str) -> Option<Amount> {
    Some(amount(after(s, what)?)?.0)
}

/// The amount right before the first `what` that has one before it: `1.72 GiB already allocated`.
pub fn amount_before(s: &str, what: &str) -> Option<Amount> {
    for (i, _) in s.match_indices(what) {
        let head = &s[..i];
        let window = floor(head, head.len().saturating_sub(40));
        let tail = &head[window..];
        // the longest amount that ends where `what` begins
        for (j, c) in tail.char_indices() {
            let boundary = j == 0
                || !tail[..j].ends_with(|c: char| c.is_ascii_digit() || c == '.' || c == ',');
            if c.is_ascii_digit()
                && boundary
                && let Some((a, rest)) = amount(&tail[j..])
                && rest.is_empty()
            {
                return Some(a);
            }
        }
    }
    None
}

/// The largest char boundary not above `i`.
pub fn floor(s: &str, mut i: usize) -> usize {
    i = i.min(s.len());
    while !s.is_char_boundary(i) {
        i -= 1;
    }
    i
}

/// What log shippers and launchers put ahead of a line: `[rank6]:`, `(EngineCore pid=1)`, `ERROR 04-05 01:12:55 [core.py:390]`, `name-1  |`,
/// timestamps, `E `, `>`.
pub fn strip_prefix(line: &str) -> &str {
    let mut s = line.trim_start();
    for _ in 0..12 {
        let before = s;
        for (open, close) in [('[', ']'), ('(', ')')] {
            if s.starts_with(open)
                && let Some(i) = s.find(close)
                && i < 100
            {
                let inside = &s[1..i];
                let label = open == '['
                    || inside.contains("pid=")
                    || inside.contains("rank=")
                    || inside.contains("ip=");
                if label && !inside.contains("GiB") {
                    s = s[i + 1..].trim_start_matches([':', ' ', '\t']);
                }
            }
        }
        let word = s.split_whitespace().next().unwrap_or("");
        let level = matches!(
            word.trim_end_matches(':'),
            "ERROR"
                | "WARNING"
                | "WARN"
                | "INFO"
                | "DEBUG"
                | "CRITICAL"
                | "FATAL"
                | "E"
                | "W"
                | "I"
                | ">"
                | "|"
                | "#"
        );
        let stamp = word.len() >= 5
            && word.starts_with(|c: char| c.is_ascii_digit())
            && word.contains([':', '-', '/'])
            && word.chars().all(|c| {
                c.is_ascii_digit() || matches!(c, ':' | '-' | '/' | '.' | ',' | 'T' | 'Z' | '+')
            });
        if level || stamp {
            s = s[word.len()..].trim_start();
        } else if !word.is_empty()
            && word.len() <= 60
            && s[word.len()..].trim_start().starts_with('|')
        {
            let r = s[word.len()..].trim_start();
            s = r[1..].trim_start();
        }
        if s == before {
            break;
        }
    }
    s
}

/// One line of words with single spaces: line prefixes gone, escaped line ends (`\n` inside of JSON or of a repr) as spaces.
pub fn flatten(text: &str) -> String {
    let text = text.replace("\\n", "\n").replace("\\\"", "\"");
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.lines().enumerate() {
        let line = if i == 0 { line } else { strip_prefix(line) };
        for word in line.split_whitespace() {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(word);
        }
    }
    out
}

/// A rank named ahead of a message.
pub fn rank(prefix: &str) -> Option<i64> {
    for mark in [
        "[rank", "[Rank ", "[RANK ", "rank=", "Rank=", "rank:", "Rank ",
    ] {
        if let Some(n) = after(prefix, mark).and_then(integer) {
            return Some(n.0);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_rounded_without_floats() {
        let a = amount("2.74 GiB (").unwrap();
        assert_eq!((a.0.bytes, a.1), (2942052598, " ("));
        assert_eq!(amount(" -0.3 GiB").unwrap().0.bytes, -322122547);
        assert_eq!(amount("41.74G of").unwrap().0.bytes, 44817983734);
        assert_eq!(amount("0 bytes").unwrap().0.bytes, 0);
        assert!(amount("12 monkeys").is_none());
        assert!(amount("99999999999999999999999999999999999 GiB").is_none());
        assert!(amount("17179869184.00 GiB").is_none());
        assert_eq!(integer("1,234,567 tokens").unwrap().0, 1234567);
        assert_eq!(integer("12,").unwrap(), (12, ""));
    }

    #[test]
    fn an_amount_ends_where_its_word_begins() {
        let s = "GPU 0; 7.93 GiB total capacity; 1130.35 MiB already allocated; 0 bytes free";
        assert_eq!(
            amount_before(s, " already allocated").unwrap().bytes,
            1185257882
        );
        assert_eq!(amount_before(s, " free").unwrap().bytes, 0);
        assert!(amount_before(s, " cached").is_none());
    }

    #[test]
    fn prefixes_of_lines() {
        for (line, rest) in [
            ("[rank6]: torch.Out", "torch.Out"),
            (
                "(EngineCore_DP0 pid=1094) ERROR 04-05 01:12:55 [core.py:390] ValueError",
                "ValueError",
            ),
            ("deep-seek-1  | ggml_gallocr", "ggml_gallocr"),
            ("2025-11-12T11:25:13.4961658Z FAILED", "FAILED"),
            ("(3.18 GiB)", "(3.18 GiB)"),
            ("GPU 0 has", "GPU 0 has"),
        ] {
            assert_eq!(strip_prefix(line), rest);
        }
    }
}
