//! Requests for machines: what a job needs by its estimate, in the form that a scheduler takes.
//!
//! A request says what the estimate says and no more: the card and how many, what a device must hold, the memory of the host where it is
//! known, a time limit where the size of the work is known, and a price only with its date and source. What is left to the cluster is
//! said to be, in the file's comments.

pub mod kubernetes;
pub mod ray;
pub mod skypilot;
pub mod slurm;

use super::Options;
use crate::cost::{Offer, offers};
use crate::time::{Card, Fitted, Span, step_work, time_of};
use tonnage_catalog::Gpu;
use tonnage_core::footprint::{self, Footprint, estimate};
use tonnage_core::serve::Serving;
use tonnage_core::verdict::Outcome;
use tonnage_core::{Diagnostic, Job};
use tonnage_units::Bytes;

/// What a request needs beside the job; absent where it has a default, which is then noted.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// What starts the job.
    pub start: Option<String>,
    /// The container's image.
    pub image: Option<String>,
    /// The queue: Slurm's partition, Kueue's local queue.
    pub queue: Option<String>,
    /// The scheduler's own name of the card.
    pub gpu_type: Option<String>,
    /// Bytes of host memory.
    pub host: Option<u64>,
    /// Tokens of the whole work.
    pub tokens: Option<f64>,
    /// The user's price of a card, US dollars an hour.
    pub price: Option<f64>,
}

/// Memory of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Nothing is known.
    Unknown,
    /// No less than this; a limit must not be made of it.
    AtLeast(u64),
    /// This, with what is counted in it.
    Needs(u64, String),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// A name for every scheduler: lower-case letters, digits, hyphens, at most 50.
    pub name: String,
    pub gpu: Gpu,
    /// Cards, on one machine.
    pub gpus: u64,
    /// Bytes of the fullest device: expected, and in the worst case.
    pub device: (u64, u64),
    /// Does it fit the card?
    pub outcome: Option<Outcome>,
    pub host: Host,
    /// Seconds of the whole work.
    pub seconds: Option<Span>,
    /// Tokens a second.
    pub speed: Option<Span>,
    pub offer: Option<Offer>,
    pub start: String,
    pub image: Option<String>,
    pub queue: Option<String>,
    pub gpu_type: Option<String>,
    pub notes: Vec<Diagnostic>,
}

fn note(message: impl Into<String>, effect: impl Into<String>) -> Diagnostic {
    Diagnostic::note("not-in-the-job", message).effect(effect)
}

/// A label that DNS allows, of at most 50 characters.
pub fn label(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
        if out.len() == 50 {
            break;
        }
    }
    let out = out.trim_end_matches('-');
    if out.starts_with(|c: char| c.is_ascii_lowercase()) {
        out.into()
    } else {
        format!("job-{out}").trim_end_matches('-').into()
    }
}

impl Ask {
    /// The request of a job that is simulated: one card.
    ///
    /// # Errors
    /// No card is named, or the job cannot be estimated on it.
    pub fn of_job(job: &Job, options: &Options) -> Result<Ask, Vec<Diagnostic>> {
        let o = footprint::Options {
            gpu: options.gpu.clone(),
            gpus: options.gpus.clone(),
            expected_only: true,
            ..footprint::Options::default()
        };
        let f = estimate(job, &o)?.footprint;
        if !f.gpu_stated {
            return Err(vec![
                Diagnostic::error("missing", "a request names a card, and none is named")
                    .help("--gpu ID, or `gpu` in the job; tonnage gpus lists them"),
            ]);
        }
        let gpu = o.device(&f.gpu)?.gpu;
        let w = &options.request;
        let spec = job.spec(&gpu)?;
        let time = Card::of(&gpu).and_then(|card| {
            let work = step_work(&spec).ok()?;
            Some(time_of(&work, &spec, &card, Fitted::builtin()))
        });
        let speed = time.map(|t| t.tokens_per_s);
        let mut ask = Ask {
            name: label(&job.title()),
            gpus: 1,
            device: (f.peak.device.expected, f.peak.device.high),
            outcome: f.decisive().map(|v| v.outcome),
            host: host(&f),
            seconds: speed.zip(w.tokens).map(|(s, n)| s.of(n)),
            speed,
            offer: None,
            start: "python train.py".into(),
            image: None,
            queue: w.queue.clone(),
            gpu_type: w.gpu_type.clone(),
            notes: Vec::new(),
            gpu,
        };
        if w.start.is_none() {
            ask.notes.push(note(
                "what starts the job is not given: `python train.py` stands for it",
                "--start COMMAND gives it, for example what `tonnage export JOB --to trl` prints",
            ));
        }
        if w.tokens.is_none() {
            ask.notes.push(note(
                "the size of the work is not given: no time limit is asked for",
                "--tokens N gives it",
            ));
        }
        ask.finish(w);
        Ok(ask)
    }

    /// The request of a serving engine's command line, by its answer.
    ///
    /// # Errors
    /// No card was asked about.
    pub fn of_serving(s: &Serving, options: &Options) -> Result<Ask, Vec<Diagnostic>> {
        let missing = || {
            vec![
                Diagnostic::error("missing", "a request names a card, and none is named")
                    .help("--gpu ID before `--`; tonnage gpus lists them"),
            ]
        };
        let fullest = s.fits.iter().max_by_key(|f| f.needed_bytes);
        let fullest = fullest.ok_or_else(missing)?;
        let gpu = options.gpus.find(&fullest.gpu).map_err(|e| {
            vec![Diagnostic::error("unknown-gpu", e.to_string()).help("`tonnage gpus` lists them")]
        })?;
        let high = |d: u8| {
            let t = s.totals.iter().find(|t| t.device == Some(d));
            t.map_or(0, |t| t.high_bytes)
        };
        let w = &options.request;
        let on_host = s.total(None);
        let mut ask = Ask {
            name: label(s.model.rsplit('/').next().unwrap_or(&s.model)),
            gpus: s.fits.len() as u64,
            device: (
                fullest.needed_bytes,
                high(fullest.device).max(fullest.needed_bytes),
            ),
            outcome: s.outcome(),
            host: if on_host > 0 {
                Host::AtLeast(on_host)
            } else {
                Host::Unknown
            },
            seconds: None,
            speed: None,
            offer: None,
            start: s.launch.clone(),
            image: engine_image(s.engine, s.engine_version),
            queue: w.queue.clone(),
            gpu_type: w.gpu_type.clone(),
            notes: Vec::new(),
            gpu,
        };
        ask.finish(w);
        Ok(ask)
    }

    fn finish(&mut self, w: &Wants) {
        if let Some(s) = &w.start {
            self.start.clone_from(s);
        }
        if w.image.is_some() {
            self.image.clone_from(&w.image);
        }
        if let Some(n) = w.host {
            self.host = Host::Needs(n, "given".into());
        }
        self.offer = match w.price {
            Some(p) => Some(Offer {
                gpus: u32::try_from(self.gpus).unwrap_or(1),
                usd_per_hour: p * self.gpus as f64,
                ..Offer::own(p)
            }),
            // an instance with as many cards, else the smallest with more
            None => offers(&self.gpu.id)
                .into_iter()
                .find(|o| u64::from(o.gpus) >= self.gpus),
        };
        if self.outcome == Some(Outcome::No) {
            self.notes.push(
                Diagnostic::note(
                    "does-not-fit",
                    format!(
                        "the job does not fit {}: it will run out of memory",
                        self.gpu.name
                    ),
                )
                .effect("tonnage plan says what to change"),
            );
        }
    }

    /// The image, and a note where it is the default.
    fn image_or(&mut self, default: &str) -> String {
        if let Some(i) = &self.image {
            return i.clone();
        }
        self.notes.push(note(
            format!("the container's image is not given: {default} stands for it"),
            "--image NAME gives it",
        ));
        default.into()
    }

    /// The lines that say what the request rests on, without a comment sign.
    pub fn said(&self) -> Vec<String> {
        let b = |n: u64| Bytes(n).to_string();
        let (expected, high) = self.device;
        let range = if high > expected {
            format!(", {} in the worst case", b(high))
        } else {
            String::new()
        };
        let fits = self
            .outcome
            .map_or(String::new(), |o| format!(": {}", o.name()));
        let mut out = vec![format!(
            "{} x {}; a device holds {}{range}{fits}",
            self.gpus,
            self.gpu.name,
            b(expected)
        )];
        out.push(match &self.host {
            Host::Unknown => "host memory: not known, left to the cluster".into(),
            Host::AtLeast(n) => format!(
                "host memory: at least {} (what is loaded or kept there); the process's libraries and data come on top",
                b(*n)
            ),
            Host::Needs(n, from) => format!("host memory: {} ({from})", b(*n)),
        });
        let n = |x: f64| format!("{x:.0}");
        if let Some(s) = self.speed {
            out.push(format!(
                "speed: {} tokens/s ({} to {}), a model fitted on published runs",
                n(s.expected),
                n(s.low),
                n(s.high)
            ));
        }
        if let Some(s) = self.seconds {
            let h = |x: f64| format!("{:.1}", x / 3600.0);
            out.push(format!(
                "time: {} hours ({} to {})",
                h(s.expected),
                h(s.low),
                h(s.high)
            ));
        }
        if let Some(o) = &self.offer {
            let rented = if u64::from(o.gpus) > self.gpus {
                format!(" with {} cards", o.gpus)
            } else {
                String::new()
            };
            let from = if o.date.is_empty() {
                o.source.clone()
            } else {
                format!("{}, {}, {}", o.region, o.date, o.source)
            };
            out.push(format!(
                "price: {}{rented} at ${:.3} an hour ({from})",
                o.what, o.usd_per_hour
            ));
            if let Some(s) = self.seconds {
                let usd = |x: f64| format!("{:.2}", x / 3600.0 * o.usd_per_hour);
                out.push(format!(
                    "cost: ${} ({} to {})",
                    usd(s.expected),
                    usd(s.low),
                    usd(s.high)
                ));
            }
        }
        out
    }

    /// [`Ask::said`] as comments.
    fn comments(&self) -> String {
        let mut t = String::new();
        for l in self.said() {
            t.push_str(&format!("# {}\n", l.replace(['\n', '\r'], " ")));
        }
        t
    }

    /// Bytes of host memory for a request that is no limit.
    fn host_floor(&self) -> Option<u64> {
        match &self.host {
            Host::Unknown => None,
            Host::AtLeast(n) | Host::Needs(n, _) => Some(*n),
        }
    }
}

/// The weights pass through the host once: a checkpoint is read there before it is copied.
fn host(f: &Footprint) -> Host {
    match f.model.param_bytes + f.model.buffer_bytes + f.model.managed_bytes {
        0 => Host::Unknown,
        n => Host::AtLeast(n),
    }
}

/// The image that the engine's makers publish.
fn engine_image(engine: &str, version: &str) -> Option<String> {
    let version = version.split_whitespace().last().unwrap_or(version);
    if engine.contains("vllm") || engine.contains("vLLM") {
        Some(format!(
            "vllm/vllm-openai:v{}",
            version.trim_start_matches('v')
        ))
    } else {
        None
    }
}

/// Whole GiB, rounded up.
fn gib(n: u64) -> u64 {
    n.div_ceil(1 << 30)
}

/// A scalar of a YAML file, always quoted: JSON's strings are YAML's double-quoted ones.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The names that drivers and their tools give the card, with `join` between words; the catalog's first.
fn driver_names(gpu: &Gpu, join: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let all = std::iter::once(&gpu.name).chain(&gpu.aliases);
    for n in all.filter(|n| n.contains(' ')) {
        // the driver calls cards of that line `Tesla ...`, without the maker
        let bare = n
            .strip_prefix("NVIDIA ")
            .filter(|t| t.starts_with("Tesla "));
        for n in [Some(n.as_str()), bare].into_iter().flatten() {
            let name = n.split_whitespace().collect::<Vec<_>>().join(join);
            let plain = name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if plain && !out.contains(&name) {
                out.push(name);
            }
        }
    }
    out
}
