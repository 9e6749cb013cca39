//! What a run's own processes hold, moment by moment.

use crate::device::{DeviceReading, Readers};
use crate::process::{Procs, Tree};
use crate::publish::{self, Published};
use crate::record::{Point, RunDevice};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Samples one run.
pub struct Sampler {
    readers: Option<Readers>,
    procs: Procs,
    tree: Option<Tree>,
    published: Option<PathBuf>,
    keys: Vec<String>,
    mark: Option<String>,
    strangers: BTreeMap<u32, Option<u64>>,
    /// The processes of the last sample.
    alive: Vec<u32>,
    /// The framework and the last out-of-memory text that a process published.
    pub framework: Option<String>,
    pub out_of_memory: Option<String>,
    /// Why there is no reading of devices, the last time that there was none.
    pub trouble: Option<String>,
}

impl Sampler {
    /// `readers`: none on a machine without a device.
    pub fn new(readers: Option<Readers>, root: &Path, published: Option<PathBuf>) -> Sampler {
        Sampler {
            readers,
            procs: Procs::new(root),
            tree: None,
            published,
            keys: Vec::new(),
            mark: None,
            strangers: BTreeMap::new(),
            alive: Vec::new(),
            framework: None,
            out_of_memory: None,
            trouble: None,
        }
    }

    /// The devices before the run, with what is in use on them.
    pub fn before(&mut self) -> (Vec<RunDevice>, Vec<DeviceReading>) {
        let all = self.devices();
        self.keys = all.iter().map(|d| d.key.clone()).collect();
        let runs = all
            .iter()
            .map(|d| RunDevice {
                key: d.key.clone(),
                name: d.name.clone(),
                source: d.source.name().into(),
                total_bytes: d.memory.map(|m| m.total),
                reserved_bytes: d.memory.and_then(|m| m.reserved),
                used_before_bytes: d.memory.map(|m| m.used),
            })
            .collect();
        (runs, all)
    }

    /// The run has begun. `mark`: an entry of its environment that no other process has.
    pub fn follow(&mut self, pid: u32, mark: &str) {
        self.mark = Some(mark.into());
        self.tree = Some(Tree::new(&self.procs, pid));
    }

    fn devices(&mut self) -> Vec<DeviceReading> {
        let Some(r) = &mut self.readers else {
            return Vec::new();
        };
        match r.read() {
            Ok(d) => d,
            Err(e) => {
                self.trouble = Some(e.to_string());
                Vec::new()
            }
        }
    }

    /// A process on a device whose parents ended between two samples (a daemon's way to start) is known by its environment.
    fn find_strays(&mut self, devices: &[DeviceReading]) {
        let (Some(tree), Some(mark)) = (&mut self.tree, &self.mark) else {
            return;
        };
        let mut seen = BTreeMap::new();
        for p in devices.iter().flat_map(|d| &d.processes) {
            let start = self.procs.start(p.pid);
            if self.strangers.get(&p.pid) != Some(&start) && self.procs.started_with(p.pid, mark) {
                tree.adopt(&self.procs, p.pid);
            }
            seen.insert(p.pid, start);
        }
        self.strangers = seen;
    }

    /// One sample, now.
    pub fn sample(&mut self, at_unix_ms: u64) -> Vec<Point> {
        let devices = self.devices();
        self.find_strays(&devices);
        let pids = match &mut self.tree {
            Some(t) => t.update(&self.procs),
            None => Vec::new(),
        };
        let resident: Option<u64> = pids
            .iter()
            .filter_map(|p| self.procs.resident(*p))
            .reduce(u64::saturating_add);
        let available = self.procs.machine().map(|m| m.1);
        let spoken: Vec<Published> = match &self.published {
            Some(f) => pids
                .iter()
                .filter_map(|p| publish::of_process(f, *p))
                .collect(),
            None => Vec::new(),
        };
        self.hear(&spoken);
        let gone: Vec<u32> = std::mem::replace(&mut self.alive, pids.clone())
            .into_iter()
            .filter(|p| !pids.contains(p))
            .collect();
        let step = spoken.iter().filter_map(|p| p.step).max();
        let base = Point {
            at_unix_ms,
            device: -1,
            step,
            host_resident_bytes: resident,
            host_available_bytes: available,
            ..Point::default()
        };
        let mut out = Vec::new();
        for d in &devices {
            // a device that was not there at the beginning (plugged in, or lost and back) has no number
            let Some(number) = self.keys.iter().position(|k| *k == d.key) else {
                continue;
            };
            let own: Vec<_> = d
                .processes
                .iter()
                .filter(|p| pids.contains(&p.pid))
                .collect();
            // no process of ours in the list is 0; one whose bytes are not told is unknown
            let own_bytes = own
                .iter()
                .map(|p| p.bytes)
                .try_fold(0u64, |a, b| Some(a.saturating_add(b?)));
            let stats: Vec<_> = spoken
                .iter()
                .filter_map(|p| p.on(&d.key, d.index))
                .collect();
            let sum = |get: &dyn Fn(&publish::AllocatorStats) -> Option<u64>| {
                stats
                    .iter()
                    .filter_map(|s| get(s))
                    .reduce(u64::saturating_add)
            };
            out.push(Point {
                device: i64::try_from(number).unwrap_or(i64::MAX),
                used_bytes: d.memory.map(|m| m.used),
                free_bytes: d.memory.map(|m| m.free),
                own_bytes: d.memory.and(own_bytes),
                allocated_bytes: sum(&|s| Some(s.allocated_bytes)),
                reserved_bytes: sum(&|s| Some(s.reserved_bytes)),
                peak_allocated_bytes: sum(&|s| Some(s.peak_allocated_bytes)),
                peak_reserved_bytes: sum(&|s| Some(s.peak_reserved_bytes)),
                requested_bytes: sum(&|s| s.requested_bytes),
                inactive_split_bytes: sum(&|s| s.inactive_split_bytes),
                alloc_retries: sum(&|s| s.alloc_retries),
                ooms: sum(&|s| s.ooms),
                ..base.clone()
            });
        }
        if out.is_empty() {
            out.push(base);
        }
        out.extend(self.words_of(&gone, at_unix_ms));
        out
    }

    /// What was said after the last sample. The run has ended.
    pub fn last_words(&mut self, at_unix_ms: u64) -> Vec<Point> {
        let gone = std::mem::take(&mut self.alive);
        self.words_of(&gone, at_unix_ms)
    }

    fn hear(&mut self, spoken: &[Published]) {
        for p in spoken {
            if p.framework.is_some() {
                self.framework.clone_from(&p.framework);
            }
            if p.out_of_memory.is_some() {
                self.out_of_memory.clone_from(&p.out_of_memory);
            }
        }
    }

    /// Processes that have ended: their peaks stand, what they hold is gone.
    fn words_of(&mut self, gone: &[u32], at_unix_ms: u64) -> Vec<Point> {
        let Some(folder) = &self.published else {
            return Vec::new();
        };
        let said: Vec<Published> = gone
            .iter()
            .filter_map(|p| publish::of_process(folder, *p))
            .collect();
        self.hear(&said);
        let step = said.iter().filter_map(|p| p.step).max();
        let mut out = Vec::new();
        for (number, key) in self.keys.iter().enumerate() {
            let index = u32::try_from(number).unwrap_or(u32::MAX);
            let stats: Vec<_> = said.iter().filter_map(|p| p.on(key, index)).collect();
            let sum = |get: &dyn Fn(&publish::AllocatorStats) -> Option<u64>| {
                stats
                    .iter()
                    .filter_map(|s| get(s))
                    .reduce(u64::saturating_add)
            };
            if !stats.is_empty() {
                out.push(Point {
                    at_unix_ms,
                    device: i64::try_from(number).unwrap_or(i64::MAX),
                    step,
                    peak_allocated_bytes: sum(&|s| Some(s.peak_allocated_bytes)),
                    peak_reserved_bytes: sum(&|s| Some(s.peak_reserved_bytes)),
                    alloc_retries: sum(&|s| s.alloc_retries),
                    ooms: sum(&|s| s.ooms),
                    ..Point::default()
                });
            }
        }
        out
    }
}
