//! Amounts of memory.
use crate::decimal::{self, MAX_U64};
use crate::error::{UnitError, shown};
use crate::suggest::nearest;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

/// An exact amount of memory.
///
/// Text always has a unit: `"80 GB"` is 80 * 10^9, `"80 GiB"` is 80 * 2^30, `"80"` is an error. A
/// decimal number of a larger unit is rounded to the nearest byte, halves up (`"0.1 GiB"` =
/// 107374182.4 = 107374182 bytes); a fraction of `B` itself is an error.
///
/// `+` and `Sum` stop at [`Bytes::MAX`] (16 EiB, which fits nowhere) instead of wrapping; the
/// `checked_` forms tell. `-` gives a [`ByteDelta`], which holds every difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A signed difference of two amounts of memory. Text as for [`Bytes`], with a sign: `"-1.50 GiB"`;
/// printed with its sign always (`"+512 B"`), zero without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteDelta(pub i128);

/// How amounts are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum ByteStyle {
    /// Binary units: `14.96 GiB`.
    #[default]
    Iec,
    /// Decimal units: `16.06 GB`.
    Si,
    /// Both: `14.96 GiB (16.06 GB)`.
    Both,
}

impl FromStr for ByteStyle {
    type Err = UnitError;
    /// `iec`, `si` or `both`.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text {
            "iec" => Ok(ByteStyle::Iec),
            "si" => Ok(ByteStyle::Si),
            "both" => Ok(ByteStyle::Both),
            _ => Err(UnitError::UnknownUnit {
                unit: shown(text),
                suggestion: Some(
                    nearest(text, ["iec", "si", "both"])
                        .map_or_else(|| "iec, si or both".to_owned(), |n| format!("`{n}`")),
                ),
            }),
        }
    }
}

const UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("EB", 1_000_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
];
const SI: &[(&str, u64)] = UNITS.split_at(7).0;
const IEC: &[(&str, u64)] = UNITS.split_at(7).1;
const EXAMPLE: &str = "`80 GB` (decimal) or `80 GiB` (binary)";

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);
    /// 2^64 - 1 bytes.
    pub const MAX: Bytes = Bytes(u64::MAX);

    /// 2^10 bytes times `n`, stopping at [`Bytes::MAX`].
    pub const fn kib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 10))
    }
    /// 2^20 bytes times `n`, stopping at [`Bytes::MAX`].
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 20))
    }
    /// 2^30 bytes times `n`, stopping at [`Bytes::MAX`].
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 30))
    }
    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// None where the sum is more than [`Bytes::MAX`].
    pub fn checked_add(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_add(other.0).map(Bytes)
    }
    /// None where `other` is the larger.
    pub fn checked_sub(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_sub(other.0).map(Bytes)
    }
    /// None where the product is more than [`Bytes::MAX`].
    pub fn checked_mul(self, n: u64) -> Option<Bytes> {
        self.0.checked_mul(n).map(Bytes)
    }
    /// At most [`Bytes::MAX`].
    pub const fn saturating_add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
    /// Zero where `other` is the larger.
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
    /// At most [`Bytes::MAX`].
    pub const fn saturating_mul(self, n: u64) -> Bytes {
        Bytes(self.0.saturating_mul(n))
    }
    /// None where the result is negative or too large.
    pub fn checked_add_delta(self, delta: ByteDelta) -> Option<Bytes> {
        let sum = i128::from(self.0).checked_add(delta.0)?;
        u64::try_from(sum).ok().map(Bytes)
    }
    /// None where the sum is more than [`Bytes::MAX`].
    pub fn checked_sum(amounts: impl IntoIterator<Item = Bytes>) -> Option<Bytes> {
        amounts
            .into_iter()
            .try_fold(Bytes::ZERO, Bytes::checked_add)
    }
    /// The next multiple of `step`, or itself; None for a step of zero or on overflow.
    pub fn checked_round_up(self, step: Bytes) -> Option<Bytes> {
        self.0.checked_next_multiple_of(step.0).map(Bytes)
    }

    /// Printable in `style`, two decimals: `14.96 GiB (16.06 GB)`. Below 1 KiB (1 kB), and in no
    /// other case, the bytes themselves: `512 B`.
    pub fn display(self, style: ByteStyle) -> impl fmt::Display {
        Styled {
            sign: "",
            bytes: self.0.into(),
            style,
        }
    }

    /// Text that parses back to exactly this amount, in the largest unit that divides it:
    /// `80 GB`, `24 GiB`, `16063177687 B`.
    pub fn exact(self) -> String {
        let (name, unit) = UNITS
            .iter()
            .filter(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit))
            .max_by_key(|(_, unit)| *unit)
            .unwrap_or(&UNITS[0]);
        format!("{} {name}", self.0 / unit)
    }
}

/// Prints in binary units; see [`Bytes::display`] for the others.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display(ByteStyle::Iec).fmt(f)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (negative, magnitude) = amount(text)?;
        if negative {
            return Err(UnitError::Negative {
                input: shown(text.trim()),
                suggestion: shown(text.trim().trim_start_matches(['-', ' '])),
            });
        }
        u64::try_from(magnitude)
            .map(Bytes)
            .map_err(|_| too_large(text))
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        self.saturating_add(other)
    }
}
impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}
impl Sub for Bytes {
    type Output = ByteDelta;
    fn sub(self, other: Bytes) -> ByteDelta {
        ByteDelta(i128::from(self.0) - i128::from(other.0))
    }
}
impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(amounts: I) -> Bytes {
        amounts.fold(Bytes::ZERO, Add::add)
    }
}
impl<'a> Sum<&'a Bytes> for Bytes {
    fn sum<I: Iterator<Item = &'a Bytes>>(amounts: I) -> Bytes {
        amounts.copied().sum()
    }
}

impl ByteDelta {
    /// No difference.
    pub const ZERO: ByteDelta = ByteDelta(0);

    /// The size of the difference, stopping at [`Bytes::MAX`].
    pub fn magnitude(self) -> Bytes {
        Bytes(u64::try_from(self.0.unsigned_abs()).unwrap_or(u64::MAX))
    }
    /// None where the sum is more than 128 bits hold.
    pub fn checked_add(self, other: ByteDelta) -> Option<ByteDelta> {
        self.0.checked_add(other.0).map(ByteDelta)
    }
    /// Stops at what 128 bits hold.
    pub const fn saturating_add(self, other: ByteDelta) -> ByteDelta {
        ByteDelta(self.0.saturating_add(other.0))
    }
    /// Printable in `style` with its sign: `+1.50 GiB`.
    pub fn display(self, style: ByteStyle) -> impl fmt::Display {
        Styled {
            sign: match self.0 {
                0 => "",
                1.. => "+",
                _ => "-",
            },
            bytes: self.0.unsigned_abs(),
            style,
        }
    }
    /// Text that parses back to exactly this difference (in bytes).
    pub fn exact(self) -> String {
        format!("{} B", self.0)
    }
}

/// Prints in binary units with a sign.
impl fmt::Display for ByteDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display(ByteStyle::Iec).fmt(f)
    }
}

impl FromStr for ByteDelta {
    type Err = UnitError;
    /// As [`Bytes`], with an optional `-` or `+` before the number; at most 2^64 - 1 bytes either way.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let unsigned = text.trim();
        let unsigned = unsigned.strip_prefix('+').unwrap_or(unsigned);
        let (negative, magnitude) = amount(unsigned)?;
        if negative && unsigned.len() < text.trim().len() {
            return Err(UnitError::NotANumber {
                input: shown(text.trim()),
                reason: "it has two signs",
                suggestion: None,
            });
        }
        let magnitude = u64::try_from(magnitude).map_err(|_| too_large(text))?;
        let value = i128::from(magnitude);
        Ok(ByteDelta(if negative { -value } else { value }))
    }
}

impl Add for ByteDelta {
    type Output = ByteDelta;
    fn add(self, other: ByteDelta) -> ByteDelta {
        self.saturating_add(other)
    }
}
impl Sum for ByteDelta {
    fn sum<I: Iterator<Item = ByteDelta>>(deltas: I) -> ByteDelta {
        deltas.fold(ByteDelta::ZERO, Add::add)
    }
}

struct Styled {
    sign: &'static str,
    bytes: u128,
    style: ByteStyle,
}

impl fmt::Display for Styled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.style {
            ByteStyle::Iec => self.in_units(IEC),
            ByteStyle::Si => self.in_units(&SI[1..]),
            ByteStyle::Both => {
                let (iec, si) = (self.in_units(IEC), self.in_units(&SI[1..]));
                match iec == si {
                    true => iec, // both are the bytes
                    false => format!("{iec} ({si})"),
                }
            }
        };
        f.pad(&text) // width and alignment, for tables
    }
}

impl Styled {
    fn in_units(&self, units: &[(&str, u64)]) -> String {
        let sign = self.sign;
        let base = u128::from(units[0].1);
        if self.bytes < base {
            return format!("{sign}{} B", self.bytes);
        }
        let hundredths = |unit: u64| {
            let unit = u128::from(unit);
            // split first: a difference may be large
            let (whole, rest) = (self.bytes / unit, self.bytes % unit);
            (whole.saturating_mul(100)).saturating_add((rest * 100 + unit / 2) / unit)
        };
        // the first unit in which the *printed* number is below the next one: 1023.999 MiB is 1.00 GiB
        let (name, amount) = units
            .iter()
            .map(|(name, unit)| (*name, hundredths(*unit)))
            .find(|(_, amount)| *amount < base * 100)
            .unwrap_or_else(|| {
                let (name, unit) = units[units.len() - 1];
                (name, hundredths(unit))
            });
        format!("{sign}{}.{:02} {name}", amount / 100, amount % 100)
    }
}

/// Sign and magnitude in bytes of a written amount.
fn amount(text: &str) -> Result<(bool, u128), UnitError> {
    let written = decimal::split(text, EXAMPLE)?;
    if written.unit.is_empty() {
        let digits = shown(written.digits);
        return Err(UnitError::MissingUnit {
            input: shown(text.trim()),
            suggestion: format!("`{digits} GB` (decimal), `{digits} GiB` (binary) or `{digits} B`"),
        });
    }
    let Some((_, unit)) = UNITS.iter().find(|(name, _)| *name == written.unit) else {
        return Err(UnitError::UnknownUnit {
            unit: shown(written.unit),
            suggestion: near_unit(written.unit),
        });
    };
    let unit = u128::from(*unit);
    if unit == 1 && !written.number.is_whole_times(1) {
        let whole = written.number.times(1).ok_or_else(|| too_large(text))?;
        return Err(UnitError::Fractional {
            input: shown(text.trim()),
            of: "bytes",
            suggestion: format!("{whole} B"),
        });
    }
    let magnitude = written.number.times(unit).ok_or_else(|| too_large(text))?;
    Ok((written.negative, magnitude))
}

fn too_large(text: &str) -> UnitError {
    UnitError::Overflow {
        input: shown(text.trim()),
        max: MAX_U64,
    }
}

fn near_unit(unit: &str) -> Option<String> {
    // names that mean different amounts to different people: say both
    let both = match unit {
        "KB" | "kb" | "K" | "k" => Some(("kB", "KiB")),
        "M" | "m" | "Mb" | "Mbit" | "megabytes" => Some(("MB", "MiB")),
        "G" | "g" | "Gb" | "Gbit" | "gigs" | "gigabytes" | "gb" => Some(("GB", "GiB")),
        "T" | "t" | "Tb" | "Tbit" | "terabytes" => Some(("TB", "TiB")),
        _ => None,
    };
    if let Some((si, iec)) = both {
        let (a, b) = match unit {
            // one case slip away: name it first, keep the other visible
            "K" | "k" | "KB" | "kb" => ("1000 B", "1024 B"),
            _ => ("decimal", "binary"),
        };
        return Some(format!("{si} ({a}) or {iec} ({b})"));
    }
    let exact = match unit {
        "Ki" | "ki" => Some("KiB"),
        "Mi" | "mi" => Some("MiB"),
        "Gi" | "gi" => Some("GiB"),
        "Ti" | "ti" => Some("TiB"),
        "b" | "byte" | "bytes" | "Byte" | "Bytes" => Some("B"),
        _ => nearest(unit, UNITS.map(|(name, _)| name)),
    };
    exact.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_number_moves_up_a_unit_when_it_rounds_there() {
        assert_eq!(Bytes((1 << 30) - 1).to_string(), "1.00 GiB");
        assert_eq!(Bytes(1023 * 1024).to_string(), "1023.00 KiB");
        assert_eq!(Bytes(999_999).display(ByteStyle::Si).to_string(), "1.00 MB");
        assert_eq!(Bytes(u64::MAX).to_string(), "16.00 EiB");
        assert_eq!(
            Bytes(1000).display(ByteStyle::Both).to_string(),
            "1000 B (1.00 kB)"
        );
        assert_eq!(Bytes(512).display(ByteStyle::Both).to_string(), "512 B");
    }

    #[test]
    fn padding_is_the_callers() {
        assert_eq!(format!("[{:>10}]", Bytes(512)), "[     512 B]");
    }

    #[test]
    fn deltas() {
        assert_eq!((Bytes(1) - Bytes(513)).to_string(), "-512 B");
        assert_eq!((Bytes::gib(3) - Bytes::gib(1)).to_string(), "+2.00 GiB");
        assert_eq!(ByteDelta::ZERO.to_string(), "0 B");
        assert_eq!(Bytes(0) - Bytes::MAX, ByteDelta(-i128::from(u64::MAX)));
        assert_eq!("-1.5 GiB".parse(), Ok(ByteDelta(-1_610_612_736)));
        assert_eq!("+1 kB".parse(), Ok(ByteDelta(1000)));
        assert!("+-1 kB".parse::<ByteDelta>().is_err());
        assert_eq!(ByteDelta(i128::MIN).magnitude(), Bytes::MAX);
        assert!(ByteDelta(i128::MAX).to_string().ends_with(" EiB"));
    }

    #[test]
    fn arithmetic() {
        assert_eq!(Bytes(1) + Bytes::MAX, Bytes::MAX);
        assert_eq!(Bytes(1).checked_add(Bytes::MAX), None);
        assert_eq!([Bytes(1), Bytes(2)].iter().sum::<Bytes>(), Bytes(3));
        assert_eq!(Bytes::checked_sum([Bytes::MAX, Bytes(1)]), None);
        assert_eq!(Bytes(3).checked_sub(Bytes(4)), None);
        assert_eq!(Bytes(1).checked_round_up(Bytes(512)), Some(Bytes(512)));
        assert_eq!(Bytes(1).checked_round_up(Bytes(0)), None);
        assert_eq!(Bytes::MAX.checked_round_up(Bytes(512)), None);
        assert_eq!(Bytes(5).checked_add_delta(ByteDelta(-6)), None);
        assert_eq!(Bytes(5).checked_add_delta(ByteDelta(-5)), Some(Bytes(0)));
    }
}
