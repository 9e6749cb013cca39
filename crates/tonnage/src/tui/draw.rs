//! The monitor's picture.

use super::state::{State, Watched};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Paint};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};
use tonnage_report::Style;
use tonnage_units::Bytes;

/// Rows of one device.
const DEVICE: u16 = 6;

/// Draws everything; what has no room is said to be missing.
pub fn draw(f: &mut Frame<'_>, s: &State, style: &Style, paused: bool) {
    let area = f.area();
    let room = area.height.saturating_sub(2);
    let parts: u16 = s
        .devices
        .iter()
        .map(|d| DEVICE + u16::try_from(d.reading.instances.len()).unwrap_or(0))
        .sum();
    let least_table = 4;
    let for_devices = parts.min(room.saturating_sub(least_table).max(DEVICE.min(room)));
    let [head, devices, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(for_devices),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    let title = match &s.trouble {
        Some(t) => Line::styled(format!(" {t}"), warn(style)),
        None => Line::from(format!(
            " tonnage watch: {} GPU{}, {} sample{}{}",
            s.devices.len(),
            if s.devices.len() == 1 { "" } else { "s" },
            s.samples,
            if s.samples == 1 { "" } else { "s" },
            if paused { ", paused" } else { "" }
        )),
    };
    f.render_widget(Paragraph::new(title), head);
    let mut y = devices.y;
    let mut hidden = 0;
    for d in &s.devices {
        let h = DEVICE + u16::try_from(d.reading.instances.len()).unwrap_or(0);
        if y + h > devices.y + devices.height {
            hidden += 1;
            continue;
        }
        let at = Rect {
            y,
            height: h,
            ..devices
        };
        device(f, at, d, style);
        y += h;
    }
    processes(f, table, s, style);
    let mut foot_text = " q quit   space pause   r reset peaks".to_string();
    if hidden > 0 {
        foot_text = format!("{foot_text}   {hidden} more GPU(s): the window is too small");
    }
    f.render_widget(Paragraph::new(foot_text), foot);
}

fn warn(s: &Style) -> Paint {
    if s.colour {
        Paint::new().fg(Color::Red).add_modifier(Modifier::BOLD)
    } else {
        Paint::new().add_modifier(Modifier::BOLD)
    }
}

/// A span of time as people say it.
pub fn duration(s: f64) -> String {
    let s = s.max(0.0);
    if s < 90.0 {
        format!("{s:.0} s")
    } else if s < 5400.0 {
        format!("{:.0} min", s / 60.0)
    } else if s < 48.0 * 3600.0 {
        format!("{:.1} h", s / 3600.0)
    } else {
        format!("{:.0} days", s / 86400.0)
    }
}

fn device(f: &mut Frame<'_>, at: Rect, d: &Watched, style: &Style) {
    let r = &d.reading;
    let amount = |b: u64| Bytes(b).display(style.units).to_string();
    let block = Block::new().borders(Borders::TOP).title(format!(
        " {}{} {}  [{}{}] ",
        r.host.as_ref().map_or(String::new(), |h| format!("{h}/")),
        r.index,
        r.name,
        r.source.name(),
        r.busy_pct
            .map_or(String::new(), |b| format!(", busy {b} %"))
    ));
    let block = if style.ascii {
        block.border_set(ratatui::symbols::border::Set {
            horizontal_top: "-",
            ..ratatui::symbols::border::PLAIN
        })
    } else {
        block
    };
    let inner = block.inner(at);
    f.render_widget(block, at);
    let mut lines: Vec<Line<'_>> = Vec::new();
    match &r.memory {
        Some(m) => {
            let width = usize::from(inner.width).clamp(10, 200) - 2;
            let full = ((m.fraction() * width as f64).round() as usize).min(width);
            let (on, off) = if style.ascii {
                ("#", ".")
            } else {
                ("\u{2588}", "\u{2591}")
            };
            let paint = if d.alert { warn(style) } else { Paint::new() };
            lines.push(Line::from(vec![
                Span::raw(" "),
                Span::styled(on.repeat(full), paint),
                Span::raw(off.repeat(width - full)),
            ]));
            let mut text = format!(
                " used {} of {} ({:.1} %)  free {}",
                amount(m.used),
                amount(m.usable()),
                100.0 * m.fraction(),
                amount(m.free)
            );
            if let Some(v) = m.reserved {
                let more = format!("  reserved by the driver {}", amount(v));
                // half a figure is worse than none
                if text.chars().count() + more.len() <= usize::from(inner.width) {
                    text += &more;
                }
            }
            lines.push(Line::styled(text, paint));
            let mut text = d
                .peak_used_bytes
                .map_or(String::new(), |p| format!(" peak {}", amount(p)));
            if let (Some(s), Some(g)) = (d.full_in_s, d.growth_bytes_s) {
                text += &format!(
                    "  grows {}/s, full in {}",
                    amount(g.max(0.0) as u64),
                    duration(s)
                );
            }
            if d.alert {
                text += "  ALERT";
            }
            lines.push(Line::from(text));
        }
        None => lines.push(Line::styled(" memory: not known", warn(style))),
    }
    for t in r.troubles.iter().take(2) {
        lines.push(Line::styled(format!(" {t}"), warn(style)));
    }
    for i in &r.instances {
        let held = i.memory.as_ref().map_or_else(
            || "not known".into(),
            |m| format!("used {} of {}", amount(m.used), amount(m.total)),
        );
        lines.push(Line::from(format!("  {}  {held}", i.name)));
    }
    let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    f.render_widget(Paragraph::new(lines), inner);
    let left = inner.height.saturating_sub(rows);
    if left > 0 && inner.width > 2 {
        let width = usize::from(inner.width - 2);
        // the recent past of the whole width, scaled by the device and not by itself
        let skip = d.history.len().saturating_sub(width);
        let data: Vec<u64> = d.history.iter().skip(skip).copied().collect();
        let mut line = Sparkline::default()
            .data(data)
            .max(r.memory.map_or(1, |m| m.usable().max(1)));
        if style.ascii {
            line = line.bar_set(ASCII_BARS);
        }
        let spot = Rect {
            x: inner.x + 1,
            y: inner.y + rows,
            width: inner.width - 2,
            height: left,
        };
        f.render_widget(line, spot);
    }
}

const ASCII_BARS: ratatui::symbols::bar::Set<'static> = ratatui::symbols::bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "+",
    five_eighths: "+",
    half: "=",
    three_eighths: "-",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

fn processes(f: &mut Frame<'_>, at: Rect, s: &State, style: &Style) {
    if at.height < 2 {
        return;
    }
    let amount = |b: u64| Bytes(b).display(style.units).to_string();
    let mut all: Vec<_> = s
        .devices
        .iter()
        .flat_map(|d| d.reading.processes.iter().map(move |p| (d, p)))
        .collect();
    all.sort_by_key(|(d, p)| {
        (
            std::cmp::Reverse(p.bytes.unwrap_or(0)),
            d.reading.index,
            p.pid,
        )
    });
    // a narrow window keeps whole figures and gives up what says least
    let narrow = at.width < 76;
    let told = all.iter().any(|(_, p)| p.allocator.is_some());
    let shown = [
        true,
        true,
        !narrow || !told,
        true,
        !narrow || told,
        !narrow || told,
        true,
    ];
    let some = |cells: [String; 7]| -> Vec<Cell<'_>> {
        let cells = cells.into_iter().zip(shown);
        cells.filter(|c| c.1).map(|c| Cell::from(c.0)).collect()
    };
    let rows = all.iter().map(|(d, p)| {
        let a = p.allocator.as_ref();
        Row::new(some([
            d.reading.index.to_string(),
            p.pid.to_string(),
            p.owner.clone().unwrap_or_else(|| "-".into()),
            p.bytes.map_or_else(|| "not told".into(), amount),
            a.map_or_else(|| "-".into(), |a| amount(a.allocated_bytes)),
            a.map_or_else(|| "-".into(), |a| amount(a.reserved_bytes)),
            p.command.clone().unwrap_or_else(|| "-".into()),
        ]))
    });
    let widths = [4, 8, 10, 11, 11, 11]
        .into_iter()
        .zip(shown)
        .filter(|w| w.1)
        .map(|w| Constraint::Length(w.0))
        .chain([Constraint::Min(6)]);
    let head = Row::new(some(
        [
            "GPU",
            "PID",
            "owner",
            "device",
            "allocated",
            "reserved",
            "command",
        ]
        .map(String::from),
    ))
    .style(Paint::new().add_modifier(Modifier::BOLD));
    f.render_widget(Table::new(rows, widths).header(head), at);
}
