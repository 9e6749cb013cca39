//! Text: the answer first, a table, then assumptions and advice.

use crate::style::{Paint, Style};
use tonnage_core::footprint::{Footprint, Range};
use tonnage_core::verdict::{Outcome, Verdict};
use tonnage_units::{ByteDelta, Bytes, Count};

/// A footprint as text.
pub fn footprint(f: &Footprint, s: &Style) -> String {
    let mut o = Out {
        s,
        text: String::new(),
    };
    o.answer(f);
    o.verdicts(f);
    o.components(f);
    o.when(f);
    o.modules(f);
    o.uncertainties(f);
    o.assumptions(f);
    o.advice(f);
    o.remarks(f);
    o.text
}

pub(crate) struct Out<'a> {
    pub(crate) s: &'a Style,
    pub(crate) text: String,
}

impl Out<'_> {
    pub(crate) fn line(&mut self, t: impl AsRef<str>) {
        self.text.push_str(t.as_ref().trim_end());
        self.text.push('\n');
    }
    pub(crate) fn bytes(&self, n: u64) -> String {
        Bytes(n).display(self.s.units).to_string()
    }
    fn heading(&mut self, t: &str) {
        let painted = self.s.paint(Paint::Bold, t);
        self.line("");
        self.line(painted);
    }
    /// Text broken at words, later lines indented by `dent`.
    pub(crate) fn wrap(&mut self, t: &str, dent: usize) {
        let width = self.s.width.max(24);
        let lead = t.len() - t.trim_start_matches(' ').len();
        let mut line = " ".repeat(lead);
        let mut empty = true;
        for word in t.trim_start_matches(' ').split(' ') {
            if !empty && line.chars().count() + 1 + word.chars().count() > width {
                self.line(&line);
                line = " ".repeat(dent);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            // a list of values that no line holds breaks after a bar
            for piece in word.split_inclusive('|') {
                if line.len() > dent
                    && dent + word.chars().count() > width
                    && line.chars().count() + piece.chars().count() > width
                {
                    self.line(&line);
                    line = " ".repeat(dent);
                }
                line.push_str(piece);
            }
            empty = false;
        }
        self.line(&line);
    }

    fn answer(&mut self, f: &Footprint) {
        let device = self.bytes(f.peak.device.expected);
        let p = &f.peak;
        match f.decisive() {
            Some(v) => {
                let head = match v.outcome {
                    Outcome::Fits => format!("{} fits on {}", f.job, v.name),
                    Outcome::Tight => format!("{} is tight on {}", f.job, v.name),
                    Outcome::No => format!("{} does not fit on {}", f.job, v.name),
                };
                let line = format!(
                    "{head}: it wants {device} of {} ({}).",
                    self.bytes(v.usable_bytes),
                    v.why
                );
                self.wrap(&line, 0);
            }
            None => {
                let range = if p.device.low == p.device.high {
                    String::new()
                } else {
                    format!(" ({})", self.range(&p.device))
                };
                let at = if f.gpu_stated {
                    String::new()
                } else {
                    format!(", kernels of {} assumed", f.gpu)
                };
                self.wrap(
                    &format!("{} needs {device} of device memory{range}{at}.", f.job),
                    0,
                );
            }
        }
        if !f.unsupported.is_empty() {
            for u in &f.unsupported {
                let t = self.s.paint(Paint::Warn, &format!("Not simulated: {u}"));
                self.wrap(&t, 2);
            }
        }
        let m = &f.model;
        let trained = if m.trainable_count == 0 {
            String::new()
        } else if m.trainable_count == m.base_param_count {
            ", all trained".into()
        } else {
            format!(", {} trained", Count(m.trainable_count).grouped())
        };
        let batch = match f.gradient_accumulation_steps {
            // a recorded run does not say
            _ if f.micro_batch_size == 0 => "as recorded".into(),
            1 => format!("batch {}", f.micro_batch_size),
            n => format!("batch {} x {n} = {}", f.micro_batch_size, f.effective_batch),
        };
        let seq = if f.seq_len > 0 {
            format!(", {} tokens", f.seq_len)
        } else {
            String::new()
        };
        self.wrap(
            &format!(
                "{} {} parameters{trained}; {batch}{seq}.",
                m.model_type,
                Count(m.base_param_count).grouped()
            ),
            0,
        );
        let levels = [
            ("allocated", &p.allocated, "live tensors"),
            ("reserved", &p.reserved, "held by the allocator"),
            ("device", &p.device, "what the driver reports"),
        ];
        self.line("");
        let certain = levels.iter().all(|(_, r, _)| r.low == r.high);
        let head = if certain {
            format!("{:<12}{:>12}", "peak", "bytes")
        } else {
            format!(
                "{:<12}{:>12}{:>12}{:>12}",
                "peak", "low", "expected", "high"
            )
        };
        let head = self.s.paint(Paint::Dim, &head);
        self.line(head);
        for (name, r, what) in levels {
            let figures = if certain {
                format!("{:>12}", self.bytes(r.expected))
            } else {
                format!(
                    "{:>12}{:>12}{:>12}",
                    self.bytes(r.low),
                    self.bytes(r.expected),
                    self.bytes(r.high)
                )
            };
            let row = format!("{name:<12}{figures}");
            if self.s.width >= row.chars().count() + what.len() + 2 {
                let what = self.s.paint(Paint::Dim, what);
                self.line(format!("{row}  {what}"));
            } else {
                self.line(row);
            }
        }
    }

    fn range(&self, r: &Range) -> String {
        format!("{} to {}", self.bytes(r.low), self.bytes(r.high))
    }

    fn verdicts(&mut self, f: &Footprint) {
        if f.verdicts.is_empty() {
            return;
        }
        self.heading("Verdicts");
        let cases: Vec<&str> = f.verdicts[0].cases.iter().map(|c| c.0.as_str()).collect();
        let single = cases.len() == 1;
        let wide = cases.iter().map(|c| c.len()).max().unwrap_or(0).max(24);
        let head = if single {
            format!("{:<24}{:>11}  verdict", "card", "usable")
        } else {
            let mut h = format!("{:<24}{:>11}", "card", "usable");
            for c in &cases {
                h.push_str(&format!("  {c:<wide$}"));
            }
            h
        };
        let fits_width = head.chars().count() <= self.s.width;
        if fits_width {
            let head = self.s.paint(Paint::Dim, &head);
            self.line(head);
        }
        for row in &f.verdicts {
            let Some((_, first)) = row.cases.first() else {
                continue;
            };
            let usable = self.bytes(first.usable_bytes);
            let name = short(&first.name);
            if fits_width {
                let mut line = format!("{name:<24}{usable:>11}");
                for (_, v) in &row.cases {
                    let cell = self.cell(v);
                    let pad = " ".repeat(wide.saturating_sub(cell.chars().count()));
                    line.push_str(&format!("  {}{pad}", self.paint_outcome(v.outcome, &cell)));
                }
                self.line(line);
            } else {
                self.line(format!("{name} ({usable} usable)"));
                for (case, v) in &row.cases {
                    let cell = self.cell(v);
                    let painted = self.paint_outcome(v.outcome, &cell);
                    self.line(format!("  {case}: {painted}"));
                }
            }
        }
        let mut said = Vec::new();
        for (_, v) in f.verdicts.iter().flat_map(|r| &r.cases) {
            if let Some(x) = &v.failure
                && said.is_empty()
            {
                let place = if x.module.is_empty() {
                    String::new()
                } else {
                    format!(" in {}", x.module)
                };
                self.line("");
                self.wrap(
                    &format!(
                        "On {} the run ends in {} of step {}{place} with:",
                        short(&v.name),
                        x.phase,
                        x.step
                    ),
                    0,
                );
                self.wrap(&format!("  torch.OutOfMemoryError: {}", x.message), 2);
                said.push(v.gpu.clone());
            }
        }
    }

    fn cell(&self, v: &Verdict) -> String {
        match v.outcome {
            Outcome::Fits => format!("fits, {} free", self.bytes(v.margin_bytes.max(0) as u64)),
            Outcome::Tight if v.retries > 0 => format!(
                "tight, {} cache release{}",
                v.retries,
                if v.retries == 1 { "" } else { "s" }
            ),
            Outcome::Tight => format!("tight, {} free", self.bytes(v.margin_bytes.max(0) as u64)),
            Outcome::No => format!(
                "no, fails in {}",
                v.failure.as_ref().map_or("?", |x| x.phase)
            ),
        }
    }

    fn paint_outcome(&self, o: Outcome, t: &str) -> String {
        self.s.paint(
            match o {
                Outcome::Fits => Paint::Good,
                Outcome::Tight => Paint::Warn,
                Outcome::No => Paint::Bad,
            },
            t,
        )
    }

    fn components(&mut self, f: &Footprint) {
        self.heading("Where the bytes are, at the peak");
        let total = f.peak.device.expected.max(1);
        let bar_room = self.s.width.saturating_sub(26 + 14 + 8 + 2).min(24);
        let mut sum = 0;
        let mut level = "allocated";
        for l in &f.components {
            if l.bytes == 0 {
                continue;
            }
            if l.level != level {
                let named = if level == "allocated" {
                    "= allocated"
                } else {
                    "= reserved"
                };
                let row = format!(
                    "{named:<26}{:>14}{:>7.1}%",
                    self.bytes(sum),
                    100.0 * sum as f64 / total as f64
                );
                let row = self.s.paint(Paint::Bold, &row);
                self.line(row);
                level = l.level;
            }
            sum += l.bytes;
            let bar = self.s.bar(l.bytes, total, bar_room);
            self.line(format!(
                "{:<26}{:>14}{:>7.1}%  {bar}",
                l.component.title(),
                self.bytes(l.bytes),
                100.0 * l.bytes as f64 / total as f64
            ));
        }
        let row = format!("{:<26}{:>14}{:>7.1}%", "= device", self.bytes(sum), 100.0);
        let row = self.s.paint(Paint::Bold, &row);
        self.line(row);
        if !f.model.unquantised.is_empty() {
            let list = f.model.unquantised.join(", ");
            self.wrap(&format!("Not quantised: {list}."), 2);
        }
        let m = f.model.managed_bytes;
        if m > 0 {
            let t = format!(
                "{} of optimizer state is in managed memory and moves between host and device; it is not in these figures.",
                self.bytes(m)
            );
            self.wrap(&t, 0);
        }
    }

    fn when(&mut self, f: &Footprint) {
        self.heading("When");
        let i = &f.instant;
        let place = if i.module.is_empty() {
            String::new()
        } else {
            format!(", module {}", i.module)
        };
        let at = if i.source.is_empty() {
            String::new()
        } else {
            format!(" at {}", i.source)
        };
        let op = if i.op.is_empty() { "a request" } else { &i.op };
        let t = format!(
            "Allocated is highest in {} of step {} (micro-batch {}){place}, when {op} asks for {}{at}.",
            i.phase,
            i.step,
            i.micro_batch,
            self.bytes(i.bytes)
        );
        self.wrap(&t, 0);
        let head = self.s.paint(
            Paint::Dim,
            &format!("{:<14}{:>14}{:>14}", "phase", "allocated", "reserved"),
        );
        self.line(head);
        for p in &f.phases {
            let row = format!(
                "{:<14}{:>14}{:>14}",
                p.phase,
                self.bytes(p.allocated_bytes),
                self.bytes(p.reserved_bytes)
            );
            let row = if p.phase == i.phase {
                self.s.paint(Paint::Bold, &row)
            } else {
                row
            };
            self.line(row);
        }
    }

    fn modules(&mut self, f: &Footprint) {
        self.heading("Largest tensors at the peak");
        for t in f.tensors.iter().take(8) {
            let each = if t.count > 1 {
                format!("{} x {}", t.count, self.bytes(t.bytes_each))
            } else {
                String::new()
            };
            let row = format!(
                "{:>11}  {:<18} {}",
                self.bytes(t.bytes),
                each,
                t.component.title()
            );
            let tail = match (t.op.as_str(), t.source.as_str()) {
                ("", "") => t.module.clone(),
                (op, "") => format!("{} ({op})", t.module),
                ("", at) => format!("{} at {at}", t.module),
                (op, at) => format!("{} ({op}) at {at}", t.module),
            };
            if row.chars().count() + tail.chars().count() + 2 <= self.s.width {
                self.line(format!("{row}, {tail}"));
            } else {
                self.line(row);
                self.line(format!("{:>13}{tail}", ""));
            }
        }
    }

    fn uncertainties(&mut self, f: &Footprint) {
        let real: Vec<_> = f
            .uncertainties
            .iter()
            .filter(|u| u.width_bytes > 0 || u.alternatives.iter().any(|a| a.unsupported.is_some()))
            .collect();
        if real.is_empty() {
            return;
        }
        self.heading("What makes the range");
        for u in real {
            let t = format!(
                "{:>5.1}%  {} ({} wide), expected {}: {}",
                u.share_pct,
                u.key,
                self.bytes(u.width_bytes),
                u.expected,
                u.why
            );
            self.wrap(&t, 8);
            for a in &u.alternatives {
                let t = match (a.reserved_bytes, &a.unsupported) {
                    (Some(r), _) => {
                        let d = ByteDelta(i128::from(r) - i128::from(f.peak.reserved.expected));
                        format!(
                            "        {}: {} reserved ({})",
                            a.value,
                            self.bytes(r),
                            d.display(self.s.units)
                        )
                    }
                    (_, why) => format!(
                        "        {}: not simulated ({})",
                        a.value,
                        why.clone().unwrap_or_default()
                    ),
                };
                self.wrap(&t, 10);
            }
        }
    }

    fn assumptions(&mut self, f: &Footprint) {
        self.heading("Assumptions");
        let (stated, other): (Vec<_>, Vec<_>) = f
            .assumptions
            .iter()
            .partition(|a| a.origin != "default" && a.origin != "inferred");
        let local = |k: &str| k.rsplit('.').next().unwrap_or(k).to_string();
        let names = other.iter().map(|a| local(&a.key).len()).max().unwrap_or(0);
        let values = other
            .iter()
            .map(|a| a.value.len())
            .max()
            .unwrap_or(0)
            .min(24);
        // no room for columns and a flag with its values
        let narrow = self.s.width < names + values + 6 + 42;
        for a in other {
            let why = a
                .why
                .as_ref()
                .map(|w| format!(" ({w})"))
                .unwrap_or_default();
            if narrow {
                let t = format!("  {} = {}  {}{why}", local(&a.key), a.value, a.flag);
                self.wrap(&t, 4);
                continue;
            }
            let t = format!(
                "  {:<names$}  {:<values$}  {}{why}",
                local(&a.key),
                a.value,
                a.flag
            );
            self.wrap(&t, names + values + 6);
        }
        if !stated.is_empty() {
            let list: Vec<String> = stated
                .iter()
                .map(
                    |a| match a.flag.strip_prefix("--").and_then(|f| f.split(' ').next()) {
                        Some(flag) => format!("--{flag} {}", a.value),
                        None => format!("{} = {}", local(&a.key), a.value),
                    },
                )
                .collect();
            self.wrap(&format!("  given: {}", list.join(", ")), 4);
        }
        let kernels = if f.gpu_stated {
            ""
        } else {
            " (default); --gpu ID"
        };
        self.wrap(&format!("  kernels and context of {}{kernels}", f.gpu), 4);
    }

    fn advice(&mut self, f: &Footprint) {
        if f.advice.is_empty() {
            return;
        }
        self.heading("What to change");
        for a in &f.advice {
            let d = ByteDelta(-i128::from(a.saves_bytes));
            let effect = if a.saves_bytes == 0 {
                "no effect".into()
            } else {
                d.display(self.s.units).to_string()
            };
            let keeps = if a.keeps_effective_batch {
                ""
            } else {
                "; another effective batch"
            };
            let then = a
                .outcome
                .map(|o| format!("; then: {o}"))
                .unwrap_or_default();
            self.wrap(
                &format!(
                    "  {effect:>12}  {} ({}); cost: {}{keeps}{then}",
                    a.edit, a.flags, a.cost
                ),
                16,
            );
        }
    }

    fn remarks(&mut self, f: &Footprint) {
        if f.notes.is_empty() {
            return;
        }
        self.heading("Remarks");
        for n in &f.notes {
            let place = n
                .place
                .as_ref()
                .map(|p| format!("{}:{}: ", p.file, p.line))
                .unwrap_or_default();
            let effect = n
                .effect
                .as_ref()
                .map(|e| format!("; {e}"))
                .unwrap_or_default();
            self.wrap(&format!("  {place}{}{effect}", n.message), 4);
        }
    }
}

/// A card's name without its vendor.
pub(crate) fn short(name: &str) -> String {
    name.trim_start_matches("NVIDIA ")
        .trim_start_matches("GeForce ")
        .to_string()
}
