//! Numbers of things: parameters, tokens.
use crate::decimal::{self, MAX_U64};
use crate::error::{UnitError, shown};
use crate::suggest::nearest;
use std::fmt;
use std::str::FromStr;

/// A number of parameters or tokens.
///
/// Text is a whole number (`1_000`) or a decimal one with a suffix of thousands: `150M`, `7B`,
/// `1.3B`, `2T`. The suffix must leave a whole number (`1.2345K` is an error).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Count(pub u64);

const SUFFIXES: [(&str, u64); 4] = [
    ("K", 1_000),
    ("M", 1_000_000),
    ("B", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl Count {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Every digit, in groups: `6_738_415_616`. Parses back to the same count.
    pub fn grouped(self) -> String {
        let digits = self.0.to_string();
        let mut out = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                out.push('_');
            }
            out.push(digit);
        }
        out
    }

    /// Text that parses back to exactly this count, as short as may be: `7B`, `1.3B`, `6_738_415_616`.
    pub fn exact(self) -> String {
        for (suffix, unit) in SUFFIXES.iter().rev() {
            // at most two decimals: a longer one is no easier to read than the digits
            if self.0 >= *unit && self.0.is_multiple_of(unit / 100) {
                return format!("{}{suffix}", trimmed(self.0 / (unit / 100)));
            }
        }
        self.grouped()
    }
}

/// `hundredths / 100` without trailing zeros.
fn trimmed(hundredths: u64) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prints to two decimals of its suffix: `6.74B`, `124.44M`, `999`.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = u128::from(self.0);
        if n < 1000 {
            return f.pad(&self.0.to_string());
        }
        let hundredths = |unit: u64| (n * 100 + u128::from(unit / 2)) / u128::from(unit);
        let (suffix, amount) = SUFFIXES
            .iter()
            .map(|(suffix, unit)| (*suffix, hundredths(*unit)))
            .find(|(_, amount)| *amount < 100_000)
            .unwrap_or(("T", hundredths(SUFFIXES[3].1)));
        let text = trimmed(u64::try_from(amount).unwrap_or(u64::MAX));
        f.pad(&format!("{text}{suffix}"))
    }
}

impl FromStr for Count {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let written = decimal::split(text, "`7B`, `150M` or `1_000`")?;
        let input = || shown(text.trim());
        if written.negative {
            return Err(UnitError::Negative {
                input: input(),
                suggestion: shown(text.trim().trim_start_matches(['-', ' '])),
            });
        }
        let unit = match written.unit {
            "" => 1,
            suffix => SUFFIXES
                .iter()
                .find(|(name, _)| *name == suffix)
                .map(|(_, unit)| *unit)
                .ok_or_else(|| UnitError::UnknownSuffix {
                    suffix: shown(suffix),
                    suggestion: match suffix {
                        // "1 G parameters" is not said; the suffix is B
                        "G" | "g" | "bn" => Some("B".to_owned()),
                        _ => nearest(suffix, SUFFIXES.map(|(n, _)| n)).map(str::to_owned),
                    },
                })?,
        };
        let overflow = || UnitError::Overflow {
            input: input(),
            max: MAX_U64,
        };
        let value = written.number.times(unit.into()).ok_or_else(overflow)?;
        let value = u64::try_from(value).map_err(|_| overflow())?;
        if !written.number.is_whole_times(unit.into()) {
            return Err(UnitError::Fractional {
                input: input(),
                of: "things",
                suggestion: Count(value).grouped(),
            });
        }
        Ok(Count(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, n, printed) in [
            ("1.3B", 1_300_000_000, "1.3B"),
            ("7B", 7_000_000_000, "7B"),
            ("150M", 150_000_000, "150M"),
            ("1_000", 1000, "1K"),
            ("0", 0, "0"),
            ("124439808", 124_439_808, "124.44M"),
            ("6_738_415_616", 6_738_415_616, "6.74B"),
            ("999_999", 999_999, "1M"),
            ("1.5T", 1_500_000_000_000, "1.5T"),
        ] {
            assert_eq!(text.parse(), Ok(Count(n)));
            assert_eq!(Count(n).to_string(), printed);
        }
        assert_eq!(Count(36_929_536).grouped(), "36_929_536");
        assert_eq!(Count(1_540_000_000).exact(), "1.54B");
        assert_eq!(Count(36_929_536).exact(), "36_929_536");
        assert_eq!(Count(u64::MAX).to_string(), "18446744.07T");
    }

    #[test]
    fn refuses_with_a_fix() {
        for (text, fix) in [
            ("7b", "B"),
            ("7G", "B"),
            ("1.2345K", "1_235"),
            ("1.5", "2"),
            ("-7B", "7B"),
            ("20000000000000000000", MAX_U64),
            ("1,000", "`1_000`"),
        ] {
            let error = text.parse::<Count>().unwrap_err();
            assert_eq!(error.suggestion(), Some(fix), "{text}: {error}");
        }
        for text in ["", "B", "nan", "1e9", "7 XB", "7BB_"] {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
    }
}
