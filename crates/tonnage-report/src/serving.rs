//! The answer about a serving engine as text: the verdict, where the bytes are, the cache in tokens, the settings.

use crate::style::{Paint, Style};
use crate::text::Out;
use tonnage_core::fit::serving::{Fits, Point};
use tonnage_core::serve::Serving;
use tonnage_core::serve::answer::{Component, Fit, Line};
use tonnage_core::verdict::Outcome;
use tonnage_units::{Bytes, Count};

/// As text.
pub fn text(a: &Serving, s: &Style) -> String {
    let mut o = Out {
        s,
        text: String::new(),
    };
    o.serving_answer(a);
    o.refused(a);
    o.table(a);
    o.cache(a);
    o.launch(a);
    o.chosen(a);
    o.parts(a);
    o.serving_notes(a);
    o.text
}

/// As JSON.
pub fn json(a: &Serving) -> String {
    crate::json::pretty(a)
}

/// What fits, as text.
pub fn fits(f: &Fits, s: &Style) -> String {
    let mut o = Out {
        s,
        text: String::new(),
    };
    let t = format!("{} on {} with {}", f.model, f.gpu, f.engine);
    o.line(s.paint(Paint::Bold, &t));
    for l in &f.limits {
        o.line("");
        o.wrap(&l.question, 2);
        o.point("fits", Outcome::Fits, l.fits.as_ref(), "not even the least");
        o.point(
            "next, no",
            Outcome::No,
            l.next.as_ref(),
            "none: that is the most",
        );
    }
    o.line("");
    for n in &f.notes {
        o.wrap(&format!("- {n}"), 2);
    }
    o.text
}

pub(crate) fn grouped(n: u64) -> String {
    Count(n).grouped()
}

impl Out<'_> {
    fn point(&mut self, label: &str, o: Outcome, p: Option<&Point>, none: &str) {
        let label = match p {
            Some(p) if p.outcome == "tight" => "tight",
            _ => label,
        };
        let painted = self.painted(o, &format!("  {label:<10}"));
        let Some(p) = p else {
            return self.line(format!("{painted}{none}"));
        };
        self.line(format!("{painted}{}", p.flags));
        let t = format!(
            "            {} of {}; {}",
            self.bytes(p.needed_bytes),
            self.bytes(p.usable_bytes),
            p.effect
        );
        self.wrap(&t, 12);
    }

    fn title(&mut self, t: &str) {
        let painted = self.s.paint(Paint::Bold, t);
        self.line("");
        self.line(painted);
    }

    fn painted(&self, o: Outcome, t: &str) -> String {
        let p = match o {
            Outcome::Fits => Paint::Good,
            Outcome::Tight => Paint::Warn,
            Outcome::No => Paint::Bad,
        };
        self.s.paint(p, t)
    }

    fn serving_answer(&mut self, a: &Serving) {
        let context = match a.cache.context_len {
            0 => String::new(),
            n => format!(", {} tokens of context", grouped(n)),
        };
        let what = format!("{} on {} {}{context}", a.model, a.engine, a.engine_version);
        let devices: Vec<_> = a.totals.iter().filter(|t| t.device.is_some()).collect();
        match a.outcome() {
            None => {
                let mut t = what;
                for d in &devices {
                    let n = if devices.len() > 1 {
                        format!(" on device {}", d.device.unwrap_or(0))
                    } else {
                        " on the device".into()
                    };
                    t.push_str(&format!(", {}{n}", self.bytes(d.bytes)));
                }
                if let Some(h) = a.totals.iter().find(|t| t.device.is_none()) {
                    t.push_str(&format!(", {} on the host", self.bytes(h.bytes)));
                }
                self.wrap(&t, 2);
            }
            Some(o) => {
                let word = match o {
                    Outcome::Fits => "fits",
                    Outcome::Tight => "tight",
                    Outcome::No => "does not fit",
                };
                let head = self.painted(o, word);
                self.wrap(&format!("{what}: {head}"), 2);
            }
        }
        for f in &a.fits {
            self.fit(f);
        }
    }

    fn fit(&mut self, f: &Fit) {
        let left = match u64::try_from(f.margin_bytes) {
            Ok(n) => format!("{} free", self.bytes(n)),
            Err(_) => format!("{} too much", self.bytes(f.margin_bytes.unsigned_abs())),
        };
        let t = format!(
            "  {} (device {}): {} of {}, {left}; {}",
            f.gpu,
            f.device,
            self.bytes(f.needed_bytes),
            self.bytes(f.usable_bytes),
            f.why
        );
        self.wrap(&t, 4);
    }

    fn refused(&mut self, a: &Serving) {
        let Some(r) = &a.refused else { return };
        self.line("");
        self.wrap(&format!("{} refuses: {}", a.engine, r.message), 2);
        if !r.remedies.is_empty() {
            self.title("What would do (each alone)");
            for m in &r.remedies {
                self.wrap(&format!("  {}: {}", m.flags, m.effect), 4);
            }
        }
    }

    fn table(&mut self, a: &Serving) {
        if a.lines.is_empty() {
            return;
        }
        self.title("Where the bytes are");
        for t in &a.totals {
            let name = match t.device {
                Some(d) => format!("device {d}"),
                None => "host".into(),
            };
            self.line(format!("{name:<24}{:>14}", self.bytes(t.bytes)));
            for l in a.lines.iter().filter(|l| l.device == t.device) {
                self.line_of(l, t.bytes);
            }
        }
    }

    fn line_of(&mut self, l: &Line, total: u64) {
        let range = if l.low_bytes == l.high_bytes {
            String::new()
        } else {
            format!(
                "  {} to {}",
                self.bytes(l.low_bytes),
                self.bytes(l.high_bytes)
            )
        };
        let share = 100.0 * l.bytes as f64 / total.max(1) as f64;
        self.line(format!(
            "  {:<22}{:>14}{share:>7.1}%  {:<11}{range}",
            l.component.title(),
            self.bytes(l.bytes),
            l.buffer
        ));
    }

    fn cache(&mut self, a: &Serving) {
        let c = &a.cache;
        if c.context_len == 0 {
            return;
        }
        self.title("KV cache");
        let one = Bytes(c.bytes_per_token).display(self.s.units);
        self.line(format!(
            "  a token      {} bytes ({one})",
            grouped(c.bytes_per_token)
        ));
        if let Some(b) = c.budget_bytes {
            let t = match u64::try_from(b) {
                Ok(n) => self.bytes(n),
                Err(_) => format!("-{}", self.bytes(b.unsigned_abs())),
            };
            self.line(format!("  budget       {t}"));
        }
        if let (Some(n), Some(b)) = (c.blocks, c.block_bytes) {
            self.line(format!(
                "  blocks       {} of {}",
                grouped(n),
                self.bytes(b)
            ));
        }
        if c.tokens > 0 {
            self.line(format!("  tokens       {}", grouped(c.tokens)));
        }
        match c.max_concurrency {
            Some(x) => self.line(format!(
                "  concurrency  {x:.2} requests of {} tokens",
                grouped(c.context_len)
            )),
            None => self.line(format!(
                "  sequences    {}, up to {} tokens each",
                c.sequences,
                grouped(c.context_len)
            )),
        }
    }

    fn launch(&mut self, a: &Serving) {
        if a.launch.is_empty() {
            return;
        }
        self.title("Launch");
        let t = format!("  {}", a.launch);
        self.line(t);
    }

    fn chosen(&mut self, a: &Serving) {
        if !a.settings.is_empty() {
            self.title("Settings");
            let name = a.settings.iter().map(|c| c.name.len()).max().unwrap_or(0);
            let value = a.settings.iter().map(|c| c.value.len()).max().unwrap_or(0);
            for c in &a.settings {
                self.wrap(
                    &format!("  {:<name$}  {:<value$}  {}", c.name, c.value, c.from),
                    name + value + 6,
                );
            }
        }
        if !a.not_memory.is_empty() {
            self.title("Flags without effect on memory");
            let t = format!("  {}", a.not_memory.join(", "));
            self.wrap(&t, 2);
        }
    }

    fn parts(&mut self, a: &Serving) {
        let mut rows: Vec<(Component, &str, u64, u64)> = Vec::new();
        for l in &a.lines {
            for p in &l.parts {
                match rows
                    .iter_mut()
                    .find(|r| r.0 == l.component && r.1 == p.name)
                {
                    Some(r) => (r.2, r.3) = (r.2 + p.count, r.3 + p.bytes),
                    None => rows.push((l.component, &p.name, p.count, p.bytes)),
                }
            }
        }
        if rows.is_empty() {
            return;
        }
        rows.sort_by_key(|r| std::cmp::Reverse(r.3));
        self.title("Largest parts");
        for (c, name, count, bytes) in rows.iter().take(8) {
            let many = match count {
                1 => String::new(),
                n => format!(" x {n}"),
            };
            let t = format!("  {:>14}  {}: {name}{many}", self.bytes(*bytes), c.title());
            self.wrap(&t, 18);
        }
        if rows.len() > 8 {
            let rest: u64 = rows[8..].iter().map(|r| r.3).sum();
            let t = format!(
                "  {:>14}  {} more (--format json)",
                self.bytes(rest),
                rows.len() - 8
            );
            self.line(t);
        }
    }

    fn serving_notes(&mut self, a: &Serving) {
        if a.notes.is_empty() {
            return;
        }
        self.title("Notes");
        for n in &a.notes {
            self.wrap(&format!("  - {n}"), 4);
        }
    }
}
