//! Cloud instances: one row of `catalog/instances.csv` each.

use crate::csv;
use crate::lookup::{LookupError, equal_range, nearest};

static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/instances.csv"));
static KEYS: &[(&str, u8, u16)] = include!(concat!(env!("OUT_DIR"), "/instances_keys.rs"));
static ROWS: &[(u32, u32)] = include!(concat!(env!("OUT_DIR"), "/instances_rows.rs"));

/// A number of GPUs in ten-thousandths: some instances rent a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuCount(pub u32);

impl GpuCount {
    /// The number, when it is whole.
    pub fn whole(self) -> Option<u32> {
        self.0.is_multiple_of(10_000).then_some(self.0 / 10_000)
    }
}

/// A price, in millionths of a US dollar per hour, with what makes it checkable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// On demand.
    pub on_demand: u64,
    /// Spot, where known.
    pub spot: Option<u64>,
    /// Region of the price.
    pub region: String,
    /// Date of the price (ISO, day or month).
    pub date: String,
    /// Where it was read.
    pub source: String,
}

/// One instance type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// e.g. `aws`.
    pub provider: String,
    /// The provider's name for it.
    pub name: String,
    /// A GPU id of this catalog.
    pub gpu_id: String,
    /// How many.
    pub gpus: GpuCount,
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Host memory in thousandths of the provider's GB.
    pub ram_milli_gb: Option<u64>,
    /// Links, in words.
    pub interconnect: String,
    /// The on-demand price. `None` when the source has none, or when it is without a date: an undated price is not shown.
    pub price: Option<Price>,
    /// The table has a price without a date.
    pub undated_price: bool,
    /// Where the row is from.
    pub source: String,
    /// Remarks.
    pub notes: String,
}

impl Instance {
    /// `provider/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.provider, self.name)
    }
}

/// A decimal number with at most `digits` digits after the point, as a count of its last digit.
fn fixed(text: &str, digits: u32) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > digits as usize || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = 10u64.checked_pow(digits)?;
    let part: u64 = format!("{part:0<width$}", width = digits as usize)
        .parse()
        .ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(part)
}

fn optional<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() {
        Some(None)
    } else {
        parse(text).map(Some)
    }
}

/// Row `n` of the table; `None` only where the table is broken (a test reads every row).
fn row(n: usize) -> Option<Instance> {
    let &(a, b) = ROWS.get(n)?;
    let f = csv::fields(&TEXT[a as usize..b as usize])?;
    Instance::from_fields(<[String; 14]>::try_from(f).ok()?)
}

impl Instance {
    /// From the columns of `catalog/instances.csv`; `None` where a number is not one.
    pub(crate) fn from_fields(fields: [String; 14]) -> Option<Instance> {
        let [
            provider,
            name,
            gpu_id,
            count,
            _,
            vcpus,
            ram,
            interconnect,
            demand,
            spot,
            region,
            date,
            source,
            notes,
        ] = fields;
        let on_demand = optional(&demand, |t| fixed(t, 6))?;
        let spot = optional(&spot, |t| fixed(t, 6))?;
        let dated = !date.is_empty() && !source.is_empty();
        let whole = |t: &str| t.parse().ok();
        Some(Instance {
            gpus: GpuCount(fixed(&count, 4)?.try_into().ok()?),
            vcpus: optional(&vcpus, whole)?,
            ram_milli_gb: optional(&ram, |t| fixed(t, 3))?,
            price: on_demand.filter(|_| dated).map(|on_demand| Price {
                on_demand,
                spot,
                region,
                date,
                source: source.clone(),
            }),
            undated_price: on_demand.is_some() && !dated,
            provider,
            name,
            gpu_id,
            interconnect,
            source,
            notes,
        })
    }
}

/// Every instance, parsed as the iterator goes.
pub fn instances() -> impl Iterator<Item = Instance> {
    (0..ROWS.len()).filter_map(row)
}

/// The instance named `provider/name`, or `name` where one provider has it. Case does not matter.
///
/// # Errors
/// [`LookupError::Ambiguous`] when several providers have the name, [`LookupError::Unknown`] when none has.
pub fn instance(name: &str) -> Result<Instance, LookupError> {
    let key = name.trim().to_lowercase();
    let hits = equal_range(KEYS, &key);
    let mut found: Vec<Instance> = hits.iter().filter_map(|h| row(usize::from(h.2))).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(LookupError::Unknown {
            what: "instance",
            name: name.to_owned(),
            nearest: nearest(
                &key,
                KEYS.iter()
                    .filter_map(|k| Some((k.0, row(usize::from(k.2))?.id()))),
            ),
        }),
        _ => Err(LookupError::Ambiguous {
            what: "instance",
            name: name.to_owned(),
            candidates: found.iter().map(Instance::id).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_parses() {
        let bad: Vec<usize> = (0..ROWS.len())
            .filter(|n| row(*n).is_none())
            .map(|n| n + 2)
            .collect();
        assert!(bad.is_empty(), "catalog/instances.csv: lines {bad:?}");
        assert!(ROWS.len() >= 254);
    }

    #[test]
    fn decimals_are_exact() {
        assert_eq!(fixed("0.526", 6), Some(526_000));
        assert_eq!(fixed("29.3871", 6), Some(29_387_100));
        assert_eq!(fixed("0.25", 3), Some(250));
        assert_eq!(fixed("1e3", 6), None);
        assert_eq!(fixed("1.0000001", 6), None);
        assert_eq!(fixed("-1", 6), None);
    }
}
