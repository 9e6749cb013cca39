//! Printing: standard output for answers, standard error for complaints; the terminal's width and abilities.

use crate::args::Global;
use crate::catalogs::Catalogs;
use std::io::{IsTerminal, Write};
use tonnage_core::Diagnostic;
use tonnage_report::Style;

/// Where and how to print, and the catalogs that the answers are looked up in.
pub struct Output {
    pub style: Style,
    pub catalogs: Catalogs,
}

impl Output {
    /// By the arguments, the environment and the terminal.
    pub fn new(g: &Global) -> Output {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let set = |k: &str| std::env::var_os(k).is_some_and(|v| !v.is_empty());
        let columns = || terminal_size::terminal_size_of(&stdout).map(|(w, _)| usize::from(w.0));
        let utf8 = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|k| std::env::var(k).ok())
            .find(|v| !v.is_empty())
            .is_some_and(|v| v.to_ascii_lowercase().replace('-', "").contains("utf8"));
        Output {
            catalogs: Catalogs::default(),
            style: Style {
                units: g.units.style(),
                width: g
                    .width
                    .or_else(|| columns().filter(|w| *w > 0))
                    .unwrap_or(100)
                    .clamp(40, 140),
                colour: terminal
                    && !set("NO_COLOR")
                    && std::env::var("TERM").map_or(true, |t| t != "dumb"),
                ascii: g.ascii || !terminal || !utf8,
            },
        }
    }

    /// An answer. A reader that has gone (a closed pipe) ends the program quietly.
    pub fn print(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if out
            .write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            std::process::exit(0);
        }
    }

    /// Complaints.
    pub fn complain(&self, all: &[Diagnostic]) {
        let mut err = std::io::stderr().lock();
        for d in all {
            let _ = writeln!(err, "{d}");
        }
    }
}
