//! `tonnage watch`

use crate::Status;
use crate::output::Output;
use crate::tui;
use crate::tui::draw::duration;
use crate::tui::state::State;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tonnage_core::Diagnostic;
use tonnage_host::device::{DeviceError, DeviceReading, Readers, System};
use tonnage_host::metrics::{Exporter, text};
use tonnage_units::Bytes;

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// `watch`
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// One sample, then end; with --alert, exit status 1 where it is reached
    #[arg(long)]
    pub once: bool,
    /// End after so many samples
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Seconds from sample to sample
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// Alert where this part of a device's memory is used (default in the terminal 0.95)
    #[arg(long, value_name = "FRACTION")]
    pub alert: Option<f64>,
    /// Write every sample: FILE.csv, or JSON lines to FILE.jsonl
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Serve the samples as Prometheus metrics on HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub prometheus: Option<String>,
    /// Watch another machine by a Prometheus endpoint (DCGM exporter, or tonnage watch --prometheus)
    #[arg(long, value_name = "URL")]
    pub remote: Option<String>,
    /// Form of the output; json is one line a sample
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Where /proc and /sys are (a recorded machine)
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub root: PathBuf,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn usage(out: &Output, what: String) -> Status {
    out.complain(&[Diagnostic::error("bad-flag", what)]);
    Status::Usage
}

/// No device, or none that answers: one sentence.
pub fn no_device(out: &Output, e: &DeviceError) -> Status {
    let d = Diagnostic::error("unavailable", e.to_string());
    out.complain(&[match e {
        DeviceError::None(_) => {
            d.help("tonnage watch --remote HOST:9400 watches another machine's exporter")
        }
        _ => d,
    }]);
    Status::Unavailable
}

pub fn run(a: &WatchArgs, out: &Output) -> Status {
    if !(0.05..=86400.0).contains(&a.interval) {
        return usage(out, "--interval is 0.05 to 86400 seconds".into());
    }
    if a.alert.is_some_and(|f| !(f > 0.0 && f <= 1.0)) {
        return usage(out, "--alert is a fraction: more than 0, at most 1".into());
    }
    let mut log = match a.log.as_deref().map(Log::create).transpose() {
        Ok(l) => l,
        Err(e) => return usage(out, e),
    };
    let mut readers = match &a.remote {
        Some(url) => Readers::remote(url),
        None => match Readers::local(&System {
            root: a.root.clone(),
            nvml: None,
        }) {
            Ok(r) => r,
            Err(e) => return no_device(out, &e),
        },
    };
    // the first sample says whether there is anything to watch
    let first = match readers.read() {
        Ok(d) => d,
        Err(e) => return no_device(out, &e),
    };
    let exporter = match a.prometheus.as_deref().map(Exporter::start).transpose() {
        Ok(e) => e,
        Err(e) => {
            return usage(
                out,
                format!(
                    "--prometheus {}: {e}",
                    a.prometheus.as_deref().unwrap_or("")
                ),
            );
        }
    };
    let single = a.once || a.samples.is_some();
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let draws = terminal && !single && a.format == Format::Text;
    let mut state = State::new(a.alert.or(draws.then_some(0.95)));
    if let Some(e) = &exporter
        && !draws
    {
        let _ = writeln!(std::io::stderr(), "metrics at http://{}/metrics", e.address);
    }
    let mut first = Some(first);
    let mut log_error = None;
    let mut sample = |state: &mut State| {
        let got = first.take().map_or_else(|| readers.read(), Ok);
        let at = now_ms();
        match got {
            Ok(devices) => {
                if let Some(l) = &mut log
                    && let Err(e) = l.write(at, &devices)
                {
                    log_error = Some(e.to_string());
                }
                for alert in state.take(at, devices) {
                    // in the terminal the picture says it, and the bell rings
                    let mut err = std::io::stderr().lock();
                    let _ = if draws {
                        err.write_all(b"\x07")
                    } else {
                        writeln!(err, "alert: {}", alert.text)
                    };
                }
            }
            Err(e) => state.trouble = Some(e.to_string()),
        }
        if let Some(e) = &exporter {
            let now: Vec<DeviceReading> = state.devices.iter().map(|d| d.reading.clone()).collect();
            e.publish(text(&now, &|k| state.peak(k)));
        }
    };
    let every = Duration::from_secs_f64(a.interval);
    let stop = tui::stop_flag();
    if draws {
        let ended = tui::run(&mut state, &out.style, every, &stop, &mut sample);
        if let Err(e) = ended {
            out.complain(&[Diagnostic::error("terminal", e.to_string())]);
            return Status::Unavailable;
        }
        out.print(&peaks(&state, out));
    } else {
        let most = if a.once {
            1
        } else {
            a.samples.unwrap_or(usize::MAX)
        };
        let begun = Instant::now();
        for n in 0..most {
            if n > 0 {
                let due = begun + every.mul_f64(n as f64);
                while Instant::now() < due && !stop.load(Ordering::Relaxed) {
                    let left = due.saturating_duration_since(Instant::now());
                    std::thread::sleep(left.min(Duration::from_millis(250)));
                }
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            sample(&mut state);
            out.print(&match a.format {
                Format::Text => plain(&state, out),
                Format::Json => line(&state),
            });
        }
    }
    if let Some(e) = log_error {
        out.complain(&[Diagnostic::error(
            "log",
            format!("the log is incomplete: {e}"),
        )]);
    }
    if a.once && state.devices.iter().any(|d| d.alert) {
        return Status::DoesNotFit;
    }
    Status::Ok
}

/// `tonnage.watch/1`
fn line(s: &State) -> String {
    let v = json!({
        "schema": "tonnage.watch/1",
        "at_unix_ms": s.at_unix_ms,
        "trouble": s.trouble,
        "devices": s.devices,
    });
    format!("{v}\n")
}

fn peaks(s: &State, out: &Output) -> String {
    let mut t = String::new();
    for d in &s.devices {
        if let Some(p) = d.peak_used_bytes {
            let _ = writeln!(
                t,
                "GPU {} {}: peak {} used ({})",
                d.reading.index,
                d.reading.name,
                Bytes(p).display(out.style.units),
                d.reading.source.name()
            );
        }
    }
    t
}

/// One sample as text: every figure with what it is and who says it.
pub fn plain(s: &State, out: &Output) -> String {
    let amount = |b: u64| Bytes(b).display(out.style.units).to_string();
    let mut t = String::new();
    if let Some(e) = &s.trouble {
        let _ = writeln!(t, "no sample: {e}");
        return t;
    }
    for d in &s.devices {
        let r = &d.reading;
        let host = r.host.as_ref().map_or(String::new(), |h| format!("{h} "));
        match &r.memory {
            Some(m) => {
                let _ = write!(
                    t,
                    "{host}GPU {} {}: used {} of {} ({:.1} %), free {}",
                    r.index,
                    r.name,
                    amount(m.used),
                    amount(m.usable()),
                    100.0 * m.fraction(),
                    amount(m.free)
                );
                if let Some(v) = m.reserved {
                    let _ = write!(t, ", the driver keeps {}", amount(v));
                }
                if let Some(p) = d.peak_used_bytes.filter(|_| s.samples > 1) {
                    let _ = write!(t, ", peak {}", amount(p));
                }
                if let (Some(s), Some(g)) = (d.full_in_s, d.growth_bytes_s) {
                    let _ = write!(
                        t,
                        ", grows {}/s: full in {}",
                        amount(g.max(0.0) as u64),
                        duration(s)
                    );
                }
                let _ = writeln!(t, "  [{}]", r.source.name());
            }
            None => {
                let _ = writeln!(
                    t,
                    "{host}GPU {} {}: memory not known  [{}]",
                    r.index,
                    r.name,
                    r.source.name()
                );
            }
        }
        for x in &r.troubles {
            let _ = writeln!(t, "  ! {x}");
        }
        for i in &r.instances {
            let held = i.memory.as_ref().map_or_else(
                || "memory not known".into(),
                |m| {
                    format!(
                        "used {} of {}, free {}",
                        amount(m.used),
                        amount(m.total),
                        amount(m.free)
                    )
                },
            );
            let _ = writeln!(t, "  MIG {}: {held}", i.name);
        }
        for p in &r.processes {
            let _ = write!(
                t,
                "  {} {}: device {}",
                p.pid,
                p.owner.as_deref().unwrap_or("-"),
                p.bytes.map_or_else(|| "not told".into(), amount)
            );
            if let Some(a) = &p.allocator {
                let _ = write!(
                    t,
                    ", its allocator: reserved {}, allocated {}",
                    amount(a.reserved_bytes),
                    amount(a.allocated_bytes)
                );
            }
            let _ = writeln!(t, "  {}", p.command.as_deref().unwrap_or("-"));
        }
    }
    t
}

/// `--log`
struct Log {
    file: File,
    csv: bool,
}

impl Log {
    fn create(path: &Path) -> Result<Log, String> {
        let csv = match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => true,
            Some("jsonl" | "json" | "ndjson") => false,
            _ => {
                return Err(format!(
                    "--log {}: the name ends in .csv or .jsonl",
                    path.display()
                ));
            }
        };
        let mut file = File::create(path).map_err(|e| format!("--log {}: {e}", path.display()))?;
        if csv {
            file.write_all(b"at_unix_ms,device,index,name,total_bytes,used_bytes,reserved_bytes,free_bytes,busy_pct,processes,trouble\n")
                .map_err(|e| format!("--log {}: {e}", path.display()))?;
        }
        Ok(Log { file, csv })
    }

    /// A sample is written whole, at once.
    fn write(&mut self, at: u64, devices: &[DeviceReading]) -> std::io::Result<()> {
        let mut t = String::new();
        if self.csv {
            for d in devices {
                let n = |v: Option<u64>| v.map_or(String::new(), |v| v.to_string());
                let m = d.memory.as_ref();
                let _ = writeln!(
                    t,
                    "{at},{},{},{},{},{},{},{},{},{},{}",
                    field(&d.key),
                    d.index,
                    field(&d.name),
                    n(m.map(|m| m.total)),
                    n(m.map(|m| m.used)),
                    n(m.and_then(|m| m.reserved)),
                    n(m.map(|m| m.free)),
                    n(d.busy_pct.map(u64::from)),
                    d.processes.len(),
                    field(&d.troubles.join("; "))
                );
            }
        } else {
            let v = json!({"schema": "tonnage.watch/1", "at_unix_ms": at, "devices": devices});
            t = format!("{v}\n");
        }
        self.file.write_all(t.as_bytes())
    }
}

/// A field of CSV (RFC 4180).
pub fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}
