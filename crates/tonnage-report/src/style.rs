//! How text looks: units, width, colour, character set. The caller decides; nothing here asks the terminal.

use tonnage_units::ByteStyle;

/// Looks of a text report.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub units: ByteStyle,
    /// Columns.
    pub width: usize,
    pub colour: bool,
    /// Only ASCII characters.
    pub ascii: bool,
}

impl Default for Style {
    fn default() -> Style {
        Style {
            units: ByteStyle::Iec,
            width: 100,
            colour: false,
            ascii: true,
        }
    }
}

/// A colour's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

impl Style {
    /// `text` in a colour, where colours are on.
    pub fn paint(&self, p: Paint, text: &str) -> String {
        if !self.colour {
            return text.to_string();
        }
        let code = match p {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A bar of `part` of `whole` in at most `room` columns.
    pub fn bar(&self, part: u64, whole: u64, room: usize) -> String {
        if whole == 0 || room == 0 {
            return String::new();
        }
        let eighths = (part as f64 / whole as f64 * room as f64 * 8.0).round() as usize;
        if self.ascii {
            return "#".repeat((eighths + 4) / 8);
        }
        let rest = [
            "", "\u{258f}", "\u{258e}", "\u{258d}", "\u{258c}", "\u{258b}", "\u{258a}", "\u{2589}",
        ][eighths % 8];
        format!("{}{rest}", "\u{2588}".repeat(eighths / 8))
    }
}
