//! Speeds.
use crate::bytes::{ByteStyle, Bytes};
use crate::error::{UnitError, shown};
use std::fmt;
use std::str::FromStr;

/// Bytes in a second: a bandwidth. Text is an amount of memory and `/s`: `3.35 TB/s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BytesPerSecond(pub u64);

/// Tokens in a second; finite and not negative. Text is a plain number and `tok/s` or `tokens/s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct TokensPerSecond(f64);

impl BytesPerSecond {
    /// Printable in `style`: `3.35 TB/s`.
    pub fn display(self, style: ByteStyle) -> String {
        let one = |style| format!("{}/s", Bytes(self.0).display(style));
        match style {
            ByteStyle::Both => format!("{} ({})", one(ByteStyle::Iec), one(ByteStyle::Si)),
            style => one(style),
        }
    }
    /// Seconds to move `amount`; None at zero speed.
    pub fn seconds(self, amount: Bytes) -> Option<f64> {
        (self.0 > 0).then(|| amount.0 as f64 / self.0 as f64)
    }
}

/// Prints in decimal units, as bandwidths are sold.
impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.display(ByteStyle::Si))
    }
}

impl FromStr for BytesPerSecond {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some(amount) = text.trim().strip_suffix("/s") else {
            return Err(UnitError::MissingUnit {
                input: shown(text.trim()),
                suggestion: "a speed such as `900 GB/s`".to_owned(),
            });
        };
        amount.parse::<Bytes>().map(|b| BytesPerSecond(b.0))
    }
}

impl TokensPerSecond {
    /// None for a negative, infinite or NaN speed.
    pub fn new(speed: f64) -> Option<TokensPerSecond> {
        (speed.is_finite() && speed >= 0.0).then_some(TokensPerSecond(speed))
    }
    /// The number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// Prints three significant digits below a hundred, whole tokens above: `12.3 tok/s`, `1234 tok/s`.
impl fmt::Display for TokensPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0 {
            x if x < 9.995 => 2,
            x if x < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{:.digits$} tok/s", self.0))
    }
}

impl FromStr for TokensPerSecond {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXAMPLE: &str = "`1200 tok/s`";
        let written = crate::decimal::split(text, EXAMPLE)?;
        let input = || shown(text.trim());
        if written.negative {
            return Err(UnitError::Negative {
                input: input(),
                suggestion: shown(text.trim().trim_start_matches(['-', ' '])),
            });
        }
        match written.unit {
            "tok/s" | "tokens/s" => {}
            "" => {
                return Err(UnitError::MissingUnit {
                    input: input(),
                    suggestion: format!("`{} tok/s`", shown(written.digits)),
                });
            }
            unit => {
                return Err(UnitError::UnknownUnit {
                    unit: shown(unit),
                    suggestion: Some("tok/s".to_owned()),
                });
            }
        }
        let digits = written.digits.replace('_', "");
        let speed = digits.parse().ok().and_then(TokensPerSecond::new);
        speed.ok_or_else(|| UnitError::NotFinite {
            input: input(),
            example: EXAMPLE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths() {
        assert_eq!("3.35 TB/s".parse(), Ok(BytesPerSecond(3_350_000_000_000)));
        assert_eq!(BytesPerSecond(3_350_000_000_000).to_string(), "3.35 TB/s");
        assert_eq!(
            BytesPerSecond(1 << 30).display(ByteStyle::Both),
            "1.00 GiB/s (1.07 GB/s)"
        );
        assert!("900 GB".parse::<BytesPerSecond>().is_err());
        assert!("900/s".parse::<BytesPerSecond>().is_err());
        assert_eq!(BytesPerSecond(1000).seconds(Bytes(500)), Some(0.5));
        assert_eq!(BytesPerSecond(0).seconds(Bytes(500)), None);
    }

    #[test]
    fn token_rates() {
        assert_eq!(
            "1_200.5 tok/s"
                .parse::<TokensPerSecond>()
                .map(TokensPerSecond::get),
            Ok(1200.5)
        );
        assert_eq!(
            "12 tokens/s"
                .parse::<TokensPerSecond>()
                .unwrap()
                .to_string(),
            "12.0 tok/s"
        );
        assert_eq!(
            TokensPerSecond::new(1234.4).unwrap().to_string(),
            "1234 tok/s"
        );
        assert_eq!(TokensPerSecond::new(f64::NAN), None);
        assert_eq!(TokensPerSecond::new(-1.0), None);
        for bad in ["12", "12 t/s", "-1 tok/s", "nan tok/s", ""] {
            assert!(bad.parse::<TokensPerSecond>().is_err(), "{bad}");
        }
    }
}
