//! The monitor in a terminal. The terminal is given back as it was on every way out: a key, a signal, an error, a defect.

pub mod draw;
#[cfg(test)]
mod pictures;
pub mod state;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use state::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonnage_report::Style;

/// A flag that the signals which end programs set.
pub fn stop_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        for s in [SIGHUP, SIGINT, SIGTERM] {
            // without a handler the signal ends the program by itself
            let _ = signal_hook::flag::register(s, Arc::clone(&flag));
        }
    }
    flag
}

/// Runs until the user has enough. `sample` takes a sample into the state.
///
/// # Errors
/// The terminal's.
pub fn run(
    state: &mut State,
    style: &Style,
    every: Duration,
    stop: &AtomicBool,
    mut sample: impl FnMut(&mut State),
) -> std::io::Result<()> {
    // a defect's message comes after the terminal is restored: this wraps the program's own hook
    let mut terminal = ratatui::try_init()?;
    let result = follow(&mut terminal, state, style, every, stop, &mut sample);
    ratatui::restore();
    result
}

fn follow(
    terminal: &mut ratatui::DefaultTerminal,
    state: &mut State,
    style: &Style,
    every: Duration,
    stop: &AtomicBool,
    sample: &mut dyn FnMut(&mut State),
) -> std::io::Result<()> {
    let mut due = Instant::now();
    let mut paused = false;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= due {
            sample(state);
            due += every;
            if due < now {
                due = now + every;
            }
            if !paused {
                terminal.draw(|f| draw::draw(f, state, style, paused))?;
            }
        }
        // short waits, so that a signal is answered soon
        let wait = due
            .saturating_duration_since(Instant::now())
            .min(Duration::from_millis(250));
        if !event::poll(wait)? {
            continue;
        }
        match event::read()? {
            Event::Key(k) if k.kind == KeyEventKind::Press => match k.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if k.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Char(' ') => paused = !paused,
                KeyCode::Char('r') => {
                    for d in &mut state.devices {
                        d.peak_used_bytes = d.reading.memory.map(|m| m.used);
                        d.peak_at_unix_ms = Some(state.at_unix_ms);
                    }
                }
                _ => continue,
            },
            Event::Resize(..) => {}
            _ => continue,
        }
        terminal.draw(|f| draw::draw(f, state, style, paused))?;
    }
    Ok(())
}
