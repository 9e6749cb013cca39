//! Written decimal numbers, exactly: integers only, one rounding rule.
use crate::error::{UnitError, shown};

/// Digits after the point that are read. With the largest multiplier (2^60) the product of all
/// digits still fits 128 bits.
const MAX_FRACTION: usize = 18;

/// An unsigned decimal number: `digits / 10^scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    whole: u128,
    /// Digits after the point, without trailing zeros, as an integer below `10^scale`.
    fraction: u128,
    scale: u32,
}

/// An amount split into its sign, its digits and what follows them.
#[derive(Debug)]
pub(crate) struct Written<'a> {
    pub negative: bool,
    pub number: Decimal,
    /// The number as written, without its sign.
    pub digits: &'a str,
    /// What follows the number, trimmed.
    pub unit: &'a str,
}

impl Decimal {
    /// `self * multiplier`, to the nearest integer, halves up (away from zero for a signed caller).
    /// None on overflow of 128 bits.
    pub fn times(self, multiplier: u128) -> Option<u128> {
        let ten = 10u128.pow(self.scale);
        let part = self.fraction.checked_mul(multiplier)?;
        let rounded = part / ten + u128::from(part % ten >= ten.div_ceil(2));
        self.whole.checked_mul(multiplier)?.checked_add(rounded)
    }

    /// `self * multiplier` is an integer.
    pub fn is_whole_times(self, multiplier: u128) -> bool {
        match self.fraction.checked_mul(multiplier) {
            Some(part) => part % 10u128.pow(self.scale) == 0,
            None => false,
        }
    }
}

/// Splits `input` into a number and its unit. `example` is what an empty input should have been.
///
/// A number is digits, single underscores between digits, and at most one point with digits on both
/// sides. No exponent, no thousands comma, no plus sign.
pub(crate) fn split<'a>(input: &'a str, example: &'static str) -> Result<Written<'a>, UnitError> {
    let text = input.trim();
    if text.is_empty() {
        return Err(UnitError::Empty { example });
    }
    let not = |reason, suggestion| UnitError::NotANumber {
        input: shown(text),
        reason,
        suggestion,
    };
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    };
    if body.starts_with('+') || text.starts_with('+') {
        return Err(not("no plus sign here", None));
    }
    let first_word = body
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    if ["nan", "inf", "infinity"].contains(&first_word.to_ascii_lowercase().as_str()) {
        return Err(UnitError::NotFinite {
            input: shown(text),
            example,
        });
    }
    let end = body
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_' | ',')))
        .unwrap_or(body.len());
    let (digits, rest) = body.split_at(end);
    if digits.is_empty() {
        return Err(not("it does not start with a digit", None));
    }
    if digits.contains(',') {
        let plain = digits.replace(',', "_");
        return Err(not(
            "a comma is a decimal point to some readers and a separator to others",
            (!plain.starts_with('_')).then(|| format!("`{plain}{rest}`")),
        ));
    }
    let mut exponent = rest.chars();
    if matches!(exponent.next(), Some('e' | 'E'))
        && matches!(exponent.next(), Some('0'..='9' | '-' | '+'))
    {
        return Err(not("write it without an exponent", None));
    }
    let (whole, fraction) = match digits.split_once('.') {
        Some((w, f)) => (w, Some(f)),
        None => (digits, None),
    };
    let whole_value = integer(whole).map_err(|bad| match bad {
        Bad::Overflow => UnitError::Overflow {
            input: shown(text),
            max: MAX_U64,
        },
        Bad::Form(reason) => not(reason, None),
    })?;
    let (fraction_value, scale) = match fraction {
        None => (0, 0),
        Some(f) => {
            let kept = f.trim_end_matches('0');
            // all zeros: keep one digit, so that the form is still checked
            let kept = if kept.is_empty() && !f.is_empty() {
                "0"
            } else {
                kept
            };
            if kept.bytes().filter(u8::is_ascii_digit).count() > MAX_FRACTION {
                return Err(UnitError::TooPrecise { input: shown(text) });
            }
            // trimming zeros must not hide a bad form: `1._00`
            let value =
                integer(kept).map_err(|_| not("digits go on both sides of one point", None))?;
            let scale = kept.bytes().filter(u8::is_ascii_digit).count();
            (value, u32::try_from(scale).unwrap_or(u32::MAX))
        }
    };
    Ok(Written {
        negative,
        number: Decimal {
            whole: whole_value,
            fraction: fraction_value,
            scale,
        },
        digits,
        unit: rest.trim(),
    })
}

/// The largest [`crate::Bytes`] or [`crate::Count`], as errors name it.
pub(crate) const MAX_U64: &str = "18446744073709551615";

enum Bad {
    Form(&'static str),
    Overflow,
}

fn integer(text: &str) -> Result<u128, Bad> {
    if text.is_empty() || text.contains('.') {
        return Err(Bad::Form("digits go on both sides of one point"));
    }
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return Err(Bad::Form("underscores go singly between digits"));
    }
    text.bytes()
        .filter(|b| *b != b'_')
        .try_fold(0u128, |n, b| {
            n.checked_mul(10)?.checked_add(u128::from(b - b'0'))
        })
        .ok_or(Bad::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(text: &str, by: u128) -> Option<u128> {
        split(text, "1").ok().and_then(|w| w.number.times(by))
    }

    #[test]
    fn halves_round_up_and_nothing_else_does() {
        assert_eq!(times("0.5", 1), Some(1));
        assert_eq!(times("0.4999", 1), Some(0));
        assert_eq!(times("2.5", 1), Some(3));
        assert_eq!(times("0.1", 1 << 30), Some(107_374_182)); // 107374182.4
        assert_eq!(times("14.96", 1 << 30), Some(16_063_177_687)); // ...687.04
        assert_eq!(times("0.000000000000000001", 1 << 60), Some(1)); // 1.15
    }

    #[test]
    fn forms() {
        for good in ["1", "1_000", "0.5", "1.50", "1.000", "10.0"] {
            assert!(split(good, "1").is_ok(), "{good}");
        }
        for bad in [
            "", ".5", "1.", "1..2", "1.2.3", "_1", "1_", "1__0", "1,000", "1e9", "1E-3", "+1",
            "--1", "-+1", "1._5", "1.5_", "x", "nan", "-inf", "1.00_", "1.0_", "1._00", "1.0.0",
        ] {
            assert!(split(bad, "1").is_err(), "{bad}");
        }
    }
}
