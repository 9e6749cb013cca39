//! The user's own cards, instances and prices: a file of theirs, and SkyPilot's catalogs where SkyPilot is in use.
//!
//! `docs/catalogs.md` says where they are looked for and how they are written.

use crate::jobs::read_text;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tonnage_catalog::{Gpus, Instance, Instances, Sky, instance_file, skypilot};
use tonnage_core::Diagnostic;
use tonnage_core::doc::{Doc, Node, Value};

/// A variable of the environment, where it is set and not empty.
fn var(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

fn home() -> Option<PathBuf> {
    var("HOME")
        .or_else(|| var("USERPROFILE"))
        .map(PathBuf::from)
}

/// Where the user's own file is: `$XDG_CONFIG_HOME/tonnage/gpus.toml`, else `~/.config/tonnage/gpus.toml`.
pub fn own_file() -> Option<PathBuf> {
    let config = var("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = config.or_else(|| home().map(|h| h.join(".config")))?;
    Some(folder.join("tonnage").join("gpus.toml"))
}

/// The catalogs as this user sees them.
#[derive(Clone, Debug, Default)]
pub struct Catalogs {
    pub gpus: Gpus,
    /// The files of `--catalog`, for a process of our own.
    pub files: Vec<PathBuf>,
    /// The user's own instances.
    own: Vec<Instance>,
}

impl Catalogs {
    /// With the files of `--catalog`, else with the user's own file, where there is one.
    ///
    /// # Errors
    /// A file cannot be read, or says something that cannot be taken.
    pub fn new(files: &[PathBuf]) -> Result<Catalogs, Vec<Diagnostic>> {
        let own = own_file().filter(|p| files.is_empty() && p.exists());
        let mut tables = Tables::default();
        for f in files.iter().chain(&own) {
            tables.read(f)?;
        }
        Ok(Catalogs {
            files: files.to_vec(),
            ..tables.catalogs()?
        })
    }

    /// All instances: the user's own, SkyPilot's, the built-in ones. What SkyPilot's files say is not understood comes with them.
    pub fn instances(&self) -> (Instances, Vec<String>) {
        let mut rows = self.own.clone();
        let mut notes = vec![];
        for (provider, file) in sky_files() {
            let (sky, said) = sky(&provider, &file, &self.gpus);
            rows.extend(sky.instances);
            notes.extend(said);
        }
        (Instances::with(rows), notes)
    }
}

/// Rows of the user's files, as the catalog's tables.
#[derive(Default)]
struct Tables {
    gpus: Vec<(PathBuf, String)>,
    instances: Vec<(PathBuf, String)>,
}

impl Tables {
    fn read(&mut self, path: &Path) -> Result<(), Vec<Diagnostic>> {
        let text = read_text(path)?;
        let name = path.display().to_string();
        if path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("csv"))
        {
            let header = text.lines().next().unwrap_or_default();
            let instances = header.split(',').any(|c| c.trim() == "provider");
            let table = if instances {
                &mut self.instances
            } else {
                &mut self.gpus
            };
            table.push((path.into(), text));
            return Ok(());
        }
        let doc = Doc::parse(&name, &text).map_err(|d| vec![d])?;
        for (key, node) in doc.root.table().unwrap_or_default() {
            let table = match key.name.as_str() {
                "gpu" => &mut self.gpus,
                "instance" => &mut self.instances,
                other => {
                    let d = Diagnostic::error(
                        "unknown-key",
                        format!("`{other}` is not a table of a catalog file"),
                    );
                    return Err(vec![
                        d.at(doc.place(&key.span)).help("[[gpu]] and [[instance]]"),
                    ]);
                }
            };
            let Value::List(rows) = &node.value else {
                let d =
                    Diagnostic::error("wrong-type", format!("`{}` is a list of tables", key.name));
                return Err(vec![
                    d.at(doc.place(&node.span))
                        .help(format!("[[{}]]", key.name)),
                ]);
            };
            for row in rows {
                table.push((path.into(), csv(row, &doc)?));
            }
        }
        Ok(())
    }

    fn catalogs(self) -> Result<Catalogs, Vec<Diagnostic>> {
        let wrong = |p: &Path, e: String| {
            vec![Diagnostic::error(
                "bad-catalog",
                format!("{}: {e}", p.display()),
            )]
        };
        let mut gpus = Gpus::builtin();
        for (path, text) in &self.gpus {
            let more = Gpus::with_overlay(text).map_err(|e| wrong(path, e.to_string()))?;
            gpus = gpus.and(more).map_err(|e| wrong(path, e.to_string()))?;
        }
        let mut own = vec![];
        for (path, text) in &self.instances {
            own.extend(instance_file::parse(text, &gpus).map_err(|e| wrong(path, e.to_string()))?);
        }
        Ok(Catalogs {
            gpus,
            own,
            files: vec![],
        })
    }
}

/// One table of a TOML file as a CSV of one row.
fn csv(row: &Node, doc: &Doc) -> Result<String, Vec<Diagnostic>> {
    let quoted = |t: &str| format!("\"{}\"", t.replace('"', "\"\"").replace(['\n', '\r'], " "));
    let (mut header, mut fields) = (vec![], vec![]);
    for (key, value) in row.table().unwrap_or_default() {
        let text = match &value.value {
            Value::Text(t) => t.clone(),
            Value::Int(_) | Value::Float(_) | Value::Bool(_) => value.value.shown(),
            // aliases
            Value::List(l) if l.iter().all(|n| n.text().is_some()) => l
                .iter()
                .filter_map(Node::text)
                .collect::<Vec<_>>()
                .join("; "),
            _ => {
                let d = Diagnostic::error(
                    "wrong-type",
                    format!("`{}` is a text or a number", key.name),
                );
                return Err(vec![d.at(doc.place(&value.span))]);
            }
        };
        header.push(quoted(&key.name));
        fields.push(quoted(&text));
    }
    Ok(format!("{}\n{}\n", header.join(","), fields.join(",")))
}

/// SkyPilot's `vms.csv` files, (provider, path), of the newest schema there is.
pub fn sky_files() -> Vec<(String, PathBuf)> {
    let Some(root) = home().map(|h| h.join(".sky").join("catalogs")) else {
        return vec![];
    };
    let list = |p: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(p)
            .map(|d| d.flatten().map(|e| e.path()).collect())
            .unwrap_or_default()
    };
    let version =
        |p: &PathBuf| -> Option<u32> { p.file_name()?.to_str()?.strip_prefix('v')?.parse().ok() };
    let Some(newest) = list(&root)
        .into_iter()
        .filter(|p| version(p).is_some())
        .max_by_key(|p| version(p))
    else {
        return vec![];
    };
    let mut out: Vec<(String, PathBuf)> = list(&newest)
        .into_iter()
        .filter_map(|p| Some((p.file_name()?.to_str()?.to_string(), p.join("vms.csv"))))
        .filter(|(_, f)| f.is_file())
        .collect();
    out.sort();
    out
}

/// What one of them says. Its prices are of the day on which SkyPilot fetched it, the file's own date.
fn sky(provider: &str, file: &Path, gpus: &Gpus) -> (Sky, Vec<String>) {
    let shown = file.display();
    let date = std::fs::metadata(file)
        .and_then(|m| m.modified())
        .ok()
        .map(day);
    let text = match std::fs::read_to_string(file) {
        Ok(t) => t,
        Err(e) => return (Sky::default(), vec![format!("{shown}: {e}")]),
    };
    let source = format!("SkyPilot's catalog, fetched by SkyPilot on this day ({shown})");
    match skypilot(provider, &text, &date.unwrap_or_default(), &source, gpus) {
        Ok(s) => {
            let left: Vec<&str> = s.unresolved.iter().map(|u| u.0.as_str()).collect();
            let notes = if left.is_empty() {
                vec![]
            } else {
                vec![format!(
                    "{shown}: left out, not one GPU of the catalog: {}",
                    left.join(", ")
                )]
            };
            (s, notes)
        }
        Err(e) => (Sky::default(), vec![format!("{shown}: {e}")]),
    }
}

/// The day of a moment, ISO (proleptic Gregorian, UTC).
fn day(at: std::time::SystemTime) -> String {
    let seconds = at
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let mut left = seconds / 86_400;
    let mut year = 1970;
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::day;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn days() {
        let at = |s: u64| day(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(951_782_400), "2000-02-29");
        assert_eq!(at(951_868_800), "2000-03-01");
        assert_eq!(at(1_798_761_599), "2026-12-31");
    }
}
