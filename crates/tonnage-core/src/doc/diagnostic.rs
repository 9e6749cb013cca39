//! What is wrong, where, and what would help.

use std::fmt;
use std::ops::Range;

/// A place in the user's own file; line and column count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// Characters to underline, within the line.
    pub width: usize,
    /// The line itself.
    pub source: String,
}

impl Place {
    /// The place of the bytes `span` of `text`.
    pub fn of(file: &str, text: &str, span: Range<usize>) -> Place {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let mut end = span.end.clamp(start, line_end);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let clean = |s: &str| {
            s.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect::<String>()
        };
        Place {
            file: file.into(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            source: clean(text[line_start..line_end].trim_end()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is no answer.
    Error,
    /// There is an answer, and it may not be the one that is meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// One message.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// A stable name, e.g. `unknown-key`.
    pub code: &'static str,
    pub message: String,
    pub place: Option<Box<Place>>,
    /// What the key would have changed, or what is used instead.
    pub effect: Option<String>,
    pub help: Option<String>,
}

impl Diagnostic {
    fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity,
            code,
            message: message.into(),
            place: None,
            effect: None,
            help: None,
        }
    }
    /// There is no answer because of this.
    pub fn error(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, code, message)
    }
    /// The answer may not be what is meant.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, code, message)
    }
    /// Worth knowing.
    pub fn note(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Note, code, message)
    }
    /// With its place.
    pub fn at(mut self, place: Place) -> Diagnostic {
        self.place = Some(Box::new(place));
        self
    }
    /// With what it changes.
    pub fn effect(mut self, effect: impl Into<String>) -> Diagnostic {
        self.effect = Some(effect.into());
        self
    }
    /// With what to do.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
    /// Is there no answer because of this?
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}", self.message)?;
        let mut gutter = 1;
        if let Some(p) = &self.place {
            let line = p.line.to_string();
            gutter = line.len();
            let pad = " ".repeat(gutter);
            let source: String = p.source.chars().take(160).collect();
            let dent: String = source
                .chars()
                .take(p.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let marks = "^".repeat(
                p.width
                    .min(source.chars().count().saturating_sub(p.column - 1).max(1)),
            );
            write!(
                f,
                "\n{pad}--> {p}\n{pad} |\n{line} | {source}\n{pad} | {dent}{marks}"
            )?;
        }
        let pad = " ".repeat(gutter);
        if let Some(e) = &self.effect {
            write!(f, "\n{pad} = effect: {e}")?;
        }
        if let Some(h) = &self.help {
            write!(f, "\n{pad} = help: {h}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_underlines_the_users_own_text() {
        let text = "[train]\nmicro_batchsize = 8\n";
        let p = Place::of("job.toml", text, 8..23);
        assert_eq!((p.line, p.column, p.width), (2, 1, 15));
        let d = Diagnostic::error("unknown-key", "unknown key `micro_batchsize`")
            .at(p)
            .help("did you mean `micro_batch_size`?");
        let shown = d.to_string();
        assert!(shown.contains("--> job.toml:2:1"), "{shown}");
        assert!(
            shown.contains("2 | micro_batchsize = 8\n  | ^^^^^^^^^^^^^^^\n"),
            "{shown}"
        );
        assert!(shown.ends_with("= help: did you mean `micro_batch_size`?"));
    }

    #[test]
    fn spans_outside_the_text_do_no_harm() {
        for span in [0..0, 5..99, 99..100, 1..2] {
            let p = Place::of("f", "\u{e9}\u{e9}\n", span);
            assert!(p.line >= 1 && p.width >= 1);
        }
    }
}
