//! Instances from files other than the built-in table: the user's own rows, and SkyPilot's catalogs.

use crate::csv;
use crate::gpu::Gpus;
use crate::instance::{GpuCount, Instance, Price, instance};
use crate::lookup::{LookupError, nearest};

/// The columns of an instance file, as in `catalog/instances.csv`.
pub const COLUMNS: [&str; 14] = [
    "provider",
    "instance",
    "gpu_id",
    "gpu_count",
    "gpu_memory_total_gb",
    "vcpus",
    "ram_gb",
    "interconnect",
    "on_demand_usd_per_hour",
    "spot_usd_per_hour",
    "region",
    "price_date",
    "source",
    "notes",
];

/// Why a file of instances cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceFileError {
    /// A column that is none of [`COLUMNS`].
    #[error("unknown column \"{column}\"{}", nearest.as_ref().map_or(String::new(), |n| format!("; did you mean {n}?")))]
    UnknownColumn {
        /// As written.
        column: String,
        /// The most similar one.
        nearest: Option<String>,
    },
    /// A column that must be there.
    #[error("the column \"{0}\" is missing")]
    MissingColumn(&'static str),
    /// A line that is not one of these columns.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// The rows of a CSV of instances: a header with columns of [`COLUMNS`] in any order, of which `provider`, `instance`, `gpu_id`,
/// `gpu_count` and `source` must be there. A price needs `price_date`.
///
/// # Errors
/// The first line that cannot be taken; a GPU that `gpus` does not have is one.
pub fn parse(text: &str, gpus: &Gpus) -> Result<Vec<Instance>, InstanceFileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate();
    let wrong = |line: usize, problem: String| InstanceFileError::Line { line, problem };
    let header = lines.next().map_or("", |(_, l)| l);
    let header = csv::fields(header).ok_or_else(|| wrong(1, "a quote is left open".into()))?;
    let mut place = Vec::new();
    for c in &header {
        let c = c.trim();
        let Some(n) = COLUMNS.iter().position(|k| *k == c) else {
            let all = COLUMNS.iter().map(|k| (*k, (*k).to_owned()));
            return Err(InstanceFileError::UnknownColumn {
                column: c.to_owned(),
                nearest: nearest(c, all).into_iter().next(),
            });
        };
        place.push(n);
    }
    for c in ["provider", "instance", "gpu_id", "gpu_count", "source"] {
        if !place.iter().any(|n| COLUMNS[*n] == c) {
            return Err(InstanceFileError::MissingColumn(c));
        }
    }
    let mut out = Vec::new();
    for (n, text) in lines {
        let line = n + 1;
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        let found = csv::fields(text).ok_or_else(|| wrong(line, "a quote is left open".into()))?;
        if found.len() != place.len() {
            return Err(wrong(
                line,
                format!("{} fields, {} columns", found.len(), place.len()),
            ));
        }
        let mut fields: [String; 14] = Default::default();
        for (value, n) in found.into_iter().zip(&place) {
            fields[*n] = value.trim().to_owned();
        }
        for n in [0, 1, 2, 3, 12] {
            if fields[n].is_empty() {
                return Err(wrong(line, format!("{} is empty", COLUMNS[n])));
            }
        }
        let gpu = gpus
            .find(&fields[2])
            .map_err(|e| wrong(line, e.to_string()))?;
        fields[2] = gpu.id;
        let i = Instance::from_fields(fields)
            .ok_or_else(|| wrong(line, "a number is not a number".into()))?;
        if i.undated_price {
            return Err(wrong(line, "a price needs price_date and source".into()));
        }
        out.push(i);
    }
    Ok(out)
}

/// What was read of a SkyPilot catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sky {
    /// One row for each instance type with GPUs, with its lowest price over the regions.
    pub instances: Vec<Instance>,
    /// Accelerators that are no GPU of the catalog, or stand for several: name and why, each once.
    pub unresolved: Vec<(String, String)>,
}

/// MiB of one GPU, from the column `GpuInfo` (a Python dictionary, as text).
fn size_mib(info: &str) -> Option<u64> {
    let rest = info.split("SizeInMiB").nth(1)?;
    let digits: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok().filter(|n| *n > 0)
}

fn accelerator(
    provider: &str,
    name: &str,
    acc: &str,
    info: &str,
    gpus: &Gpus,
) -> Result<String, LookupError> {
    if let Ok(known) = instance(&format!("{provider}/{name}")) {
        return Ok(known.gpu_id);
    }
    match gpus.find(acc) {
        Ok(g) => Ok(g.id),
        Err(e) => match size_mib(info) {
            Some(mib) => gpus.find_driver(acc, mib).map(|g| g.id).map_err(|_| e),
            None => Err(e),
        },
    }
}

/// The GPU instances of one provider's `vms.csv` of a SkyPilot catalog (schema v5 and later: `InstanceType`, `AcceleratorName`,
/// `AcceleratorCount`, `vCPUs`, `MemoryGiB`, `Price`, `Region`, `GpuInfo`, `SpotPrice`; other columns are ignored). The file has no
/// date: the caller gives the day on which it was fetched.
///
/// # Errors
/// The file is not such a table.
pub fn skypilot(
    provider: &str,
    text: &str,
    date: &str,
    source: &str,
    gpus: &Gpus,
) -> Result<Sky, InstanceFileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate();
    let header = lines
        .next()
        .and_then(|(_, l)| csv::fields(l))
        .unwrap_or_default();
    let column = |name: &'static str| {
        header
            .iter()
            .position(|h| h.trim().eq_ignore_ascii_case(name))
            .ok_or(InstanceFileError::MissingColumn(name))
    };
    let (kind, acc, count) = (
        column("InstanceType")?,
        column("AcceleratorName")?,
        column("AcceleratorCount")?,
    );
    let (price, region) = (column("Price")?, column("Region")?);
    let optional = [
        column("vCPUs"),
        column("MemoryGiB"),
        column("SpotPrice"),
        column("GpuInfo"),
    ]
    .map(Result::ok);
    let mut out = Sky::default();
    let mut place = std::collections::HashMap::new();
    for (n, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let f = csv::fields(line)
            .filter(|f| f.len() == header.len())
            .ok_or_else(|| InstanceFileError::Line {
                line: n + 1,
                problem: format!("not {} fields", header.len()),
            })?;
        let get = |i: usize| f[i].trim();
        let maybe = |k: usize| optional[k].map_or("", get);
        let (name, accelerator_name) = (get(kind), get(acc));
        if name.is_empty() || accelerator_name.is_empty() {
            continue;
        }
        // floats with any number of digits; prices beyond a millionth do not matter
        let number = |t: &str, scale: f64| {
            t.parse::<f64>()
                .ok()
                .filter(|x| x.is_finite() && *x > 0.0)
                .map(|x| (x * scale).round() as u64)
        };
        let Some(gpus_of) = number(get(count), 10_000.0).and_then(|n| u32::try_from(n).ok()) else {
            continue;
        };
        let on_demand = number(get(price), 1e6);
        let spot = number(maybe(2), 1e6);
        let lower = |i: &Instance| match (&i.price, on_demand) {
            (Some(p), Some(n)) => n < p.on_demand,
            (None, Some(_)) => true,
            _ => false,
        };
        let new_price = on_demand
            .filter(|_| !date.is_empty())
            .map(|on_demand| Price {
                on_demand,
                spot,
                region: get(region).to_owned(),
                date: date.to_owned(),
                source: source.to_owned(),
            });
        if let Some(&at) = place.get(name) {
            let i: &mut Instance = &mut out.instances[at];
            if lower(i) {
                i.price = new_price;
            }
            continue;
        }
        let gpu_id = match accelerator(provider, name, accelerator_name, maybe(3), gpus) {
            Ok(id) => id,
            Err(e) => {
                if !out.unresolved.iter().any(|u| u.0 == accelerator_name) {
                    out.unresolved
                        .push((accelerator_name.to_owned(), e.to_string()));
                }
                continue;
            }
        };
        place.insert(name.to_owned(), out.instances.len());
        out.instances.push(Instance {
            provider: provider.to_owned(),
            name: name.to_owned(),
            gpu_id,
            gpus: GpuCount(gpus_of),
            vcpus: number(maybe(0), 1.0).and_then(|n| u32::try_from(n).ok()),
            ram_milli_gb: number(maybe(1), 1000.0 * 1.073_741_824),
            interconnect: String::new(),
            price: new_price,
            undated_price: false,
            source: source.to_owned(),
            notes: String::new(),
        });
    }
    Ok(out)
}

/// Instances by name: the caller's before the built-in ones, which they replace.
#[derive(Clone, Debug, Default)]
pub struct Instances {
    own: Vec<Instance>,
}

impl Instances {
    /// The built-in table with these rows before it; of rows with the same provider and name the first counts.
    pub fn with(own: Vec<Instance>) -> Instances {
        let mut seen = std::collections::HashSet::new();
        Instances {
            own: own
                .into_iter()
                .filter(|i| seen.insert(i.id().to_lowercase()))
                .collect(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Instance> + '_ {
        let replaced: std::collections::HashSet<String> =
            self.own.iter().map(|i| i.id().to_lowercase()).collect();
        self.own
            .iter()
            .cloned()
            .chain(crate::instances().filter(move |i| !replaced.contains(&i.id().to_lowercase())))
    }

    /// The instance named `provider/name`, or `name` where one provider has it. Case does not matter, nor Azure's `Standard_`;
    /// `MACHINE + CARD` is the machine with one of the card.
    ///
    /// # Errors
    /// As [`instance`].
    pub fn find(&self, name: &str) -> Result<Instance, LookupError> {
        let key = name.trim().to_lowercase().replace(" + ", "+");
        // as people write them: Azure's sizes without their first word, one card added to a machine without its number
        let names = [
            key.clone(),
            format!("standard_{key}"),
            key.replace('+', "+1x"),
        ];
        let mut found: Vec<Instance> = self
            .iter()
            .filter(|i| {
                let (id, own) = (i.id().to_lowercase(), i.name.to_lowercase());
                names.iter().any(|n| *n == id || *n == own)
            })
            .collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => instance(name),
            _ => Err(LookupError::Ambiguous {
                what: "instance",
                name: name.to_owned(),
                candidates: found.iter().map(Instance::id).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKY: &str = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,AvailabilityZone\n\
        p4d.24xlarge,A100,8.0,96.0,1152.0,32.7726,us-east-1,\"{'Gpus': [{'Name': 'A100', 'Count': 8, 'MemoryInfo': {'SizeInMiB': 40960}}]}\",9.8,us-east-1a\n\
        p4d.24xlarge,A100,8.0,96.0,1152.0,21.9577,eu-north-1,\"{'Gpus': [{'Name': 'A100', 'Count': 8, 'MemoryInfo': {'SizeInMiB': 40960}}]}\",9.1,eu-north-1a\n\
        m5.large,,,2.0,8.0,0.096,us-east-1,,0.03,us-east-1a\n\
        x9.new,T4,1.0,4.0,16.0,0.5,us-east-1,,,us-east-1a\n\
        x9.odd,NoSuchCard,1.0,4.0,16.0,0.5,us-east-1,,,us-east-1a\n";

    #[test]
    fn skypilot_rows_become_instances_with_their_lowest_price() {
        let s = skypilot("aws", SKY, "2026-11-01", "SkyPilot v8", &Gpus::builtin()).unwrap();
        let names: Vec<_> = s
            .instances
            .iter()
            .map(|i| (i.name.as_str(), i.gpu_id.as_str(), i.gpus.whole()))
            .collect();
        assert_eq!(
            names,
            [
                ("p4d.24xlarge", "a100-sxm4-40gb", Some(8)),
                ("x9.new", "t4", Some(1))
            ]
        );
        let p = s.instances[0].price.as_ref().unwrap();
        assert_eq!(
            (p.on_demand, p.region.as_str(), p.date.as_str()),
            (21_957_700, "eu-north-1", "2026-11-01")
        );
        assert_eq!(s.unresolved.len(), 1);
        assert!(skypilot("aws", "a,b\n", "", "", &Gpus::builtin()).is_err());
    }

    #[test]
    fn own_rows_come_first_and_prices_need_a_date() {
        let g = Gpus::builtin();
        let text = "provider,instance,gpu_id,gpu_count,on_demand_usd_per_hour,price_date,source\nmine,box,rtx-4090,2,0.4,2026-11-20,my bill\naws,p4d.24xlarge,a100-sxm4-40gb,8,10,2026-11-20,my contract\n";
        let all = Instances::with(parse(text, &g).unwrap());
        assert_eq!(all.find("box").unwrap().gpus.whole(), Some(2));
        assert_eq!(
            all.find("aws/p4d.24xlarge")
                .unwrap()
                .price
                .unwrap()
                .on_demand,
            10_000_000
        );
        assert_eq!(all.find("P4D.24xlarge").unwrap().source, "my contract");
        assert_eq!(all.iter().count(), crate::instances().count() + 1);
        let undated = parse(
            "provider,instance,gpu_id,gpu_count,on_demand_usd_per_hour,source\nmine,box,rtx-4090,2,0.4,x\n",
            &g,
        );
        assert!(undated.unwrap_err().to_string().contains("price_date"));
        let unknown =
            parse("provider,instance,gpu_id,gpu_count,source,prise_date\n", &g).unwrap_err();
        assert!(unknown.to_string().contains("price_date"), "{unknown}");
        assert!(
            parse(
                "provider,instance,gpu_id,gpu_count,source\nmine,box,rtx-409,1,x\n",
                &g
            )
            .is_err()
        );
    }
}
