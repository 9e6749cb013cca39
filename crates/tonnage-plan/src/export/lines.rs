//! A YAML file being written.

use super::{block, yaml};
use std::fmt::Write;
use tonnage_core::Job;

pub(super) struct Lines(String);

impl Lines {
    /// Begins with what the file is, and the lines that are for tonnage alone.
    pub fn new(title: &str, job: &Job, also: &[&'static str]) -> Lines {
        Lines(format!("# {title}\n{}", block::write(job, also)))
    }
    /// Without them.
    pub fn plain(title: &str) -> Lines {
        Lines(format!("# {title}\n"))
    }
    /// `key: value`.
    pub fn put(&mut self, key: &str, value: impl Into<Scalar>) {
        let _ = writeln!(self.0, "{key}: {}", value.into().0);
    }
    /// `key: value`, where there is one.
    pub fn maybe(&mut self, key: &str, value: Option<impl Into<Scalar>>) {
        if let Some(v) = value {
            self.put(key, v);
        }
    }
    /// A line as it is.
    pub fn raw(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
    pub fn end(self) -> String {
        self.0
    }
}

/// A value as YAML writes it.
pub(super) struct Scalar(String);

impl From<u64> for Scalar {
    fn from(v: u64) -> Scalar {
        Scalar(v.to_string())
    }
}
impl From<bool> for Scalar {
    fn from(v: bool) -> Scalar {
        Scalar(v.to_string())
    }
}
impl From<f64> for Scalar {
    fn from(v: f64) -> Scalar {
        Scalar(number(v))
    }
}
impl From<&str> for Scalar {
    fn from(v: &str) -> Scalar {
        Scalar(yaml::quoted(v))
    }
}
impl From<String> for Scalar {
    fn from(v: String) -> Scalar {
        Scalar(yaml::quoted(&v))
    }
}
impl From<Vec<String>> for Scalar {
    fn from(v: Vec<String>) -> Scalar {
        let items: Vec<_> = v.iter().map(|t| yaml::quoted(t)).collect();
        Scalar(format!("[{}]", items.join(", ")))
    }
}

/// A number that YAML 1.1 and 1.2 read alike: with a dot, and with one also where it has an exponent.
pub(super) fn number(v: f64) -> String {
    let t = format!("{v:?}");
    match t.split_once('e') {
        Some((m, e)) if !m.contains('.') => format!("{m}.0e{e}"),
        _ => t,
    }
}

/// The model as tools name it: the id, else the folder.
pub(super) fn model(job: &Job) -> Option<String> {
    ["model.id", "model.path"]
        .iter()
        .map(|k| job.word(k))
        .find(|w| !w.is_empty())
}
