//! Metrics as text: a reader of the Prometheus and OpenMetrics text formats, and the exporter of what `watch` sees.

mod export;

pub use export::{Exporter, text};

/// One line of a text exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|l| l.0 == name)
            .map(|l| l.1.as_str())
    }
}

/// A line that is none of the format's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not Prometheus text: {what}")]
pub struct MetricsError {
    /// From 1.
    pub line: usize,
    pub what: &'static str,
}

/// Reads Prometheus text format 0.0.4 and OpenMetrics 1.0: comments are skipped, time stamps and exemplars ignored.
///
/// # Errors
/// The first line that is neither a comment nor a sample.
pub fn parse(text: &str) -> Result<Vec<Sample>, MetricsError> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        out.push(sample(line).map_err(|what| MetricsError { line: i + 1, what })?);
    }
    Ok(out)
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line
        .find(|c: char| c == '{' || c.is_whitespace())
        .ok_or("no value")?;
    let name = &line[..end];
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(ok) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a metric's name has letters, digits, _ and : only");
    }
    let mut labels = Vec::new();
    let mut rest = line[end..].trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        let (l, r) = label_set(inner)?;
        labels = l;
        rest = r.trim_start();
    }
    let value = rest.split_whitespace().next().ok_or("no value")?;
    let value = match value {
        "+Inf" | "Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        v => v.parse().map_err(|_| "the value is no number")?,
    };
    Ok(Sample {
        name: name.into(),
        labels,
        value,
    })
}

type Labels = Vec<(String, String)>;

fn label_set(text: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(r) = rest.strip_prefix('}') {
            return Ok((labels, r));
        }
        let (name, r) = rest.split_once('=').ok_or("a label without =")?;
        let mut r = r
            .trim_start()
            .strip_prefix('"')
            .ok_or("a label's value is in quotation marks")?;
        let mut value = String::new();
        loop {
            let c = r.chars().next().ok_or("a label's value has no end")?;
            r = &r[c.len_utf8()..];
            match c {
                '"' => break,
                '\\' => {
                    let e = r.chars().next().ok_or("a label's value has no end")?;
                    r = &r[e.len_utf8()..];
                    value.push(if e == 'n' { '\n' } else { e });
                }
                c => value.push(c),
            }
        }
        labels.push((name.trim().to_string(), value));
        rest = r.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_everything_in_them() {
        let s = parse("# HELP a b\n# TYPE a gauge\na{x=\"1,}\\\"\\n\\\\\",y=\"\"} 2.5e3 1700000000\nb 7\nc{} +Inf\n").expect("valid");
        assert_eq!(s[0].label("x"), Some("1,}\"\n\\"));
        assert_eq!((s[0].label("y"), s[0].value), (Some(""), 2500.0));
        assert_eq!((s[1].name.as_str(), s[1].value), ("b", 7.0));
        assert!(s[2].value.is_infinite());
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for bad in ["a", "a{x=1} 2", "a{x=\"1} 2", "1a 2", "a b", "<html>"] {
            let e = parse(&format!("ok 1\n{bad}\n")).expect_err(bad);
            assert_eq!(e.line, 2, "{bad}");
        }
    }
}
