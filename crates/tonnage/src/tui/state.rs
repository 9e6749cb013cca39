//! What the monitor knows: the last reading of each device, its highest value, its recent past, and where that leads.

use serde::Serialize;
use std::collections::VecDeque;
use tonnage_explain::leak::Series;
use tonnage_host::device::DeviceReading;

/// Samples that a history keeps: ten minutes at one a second.
pub const KEPT: usize = 600;

/// A forecast is made anew after this many samples.
const FORECAST_EVERY: usize = 5;

/// A device that is watched.
#[derive(Clone, Debug, Serialize)]
pub struct Watched {
    #[serde(flatten)]
    pub reading: DeviceReading,
    /// Highest used bytes of all samples.
    pub peak_used_bytes: Option<u64>,
    pub peak_at_unix_ms: Option<u64>,
    /// Seconds until the device is full, where its use grows steadily.
    pub full_in_s: Option<f64>,
    /// Bytes a second of that growth.
    pub growth_bytes_s: Option<f64>,
    /// Used is at or above the alert's fraction.
    pub alert: bool,
    /// Used bytes, oldest first.
    #[serde(skip)]
    pub history: VecDeque<u64>,
    #[serde(skip)]
    times: VecDeque<u64>,
    #[serde(skip)]
    samples: usize,
}

/// Something to say once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub device: String,
    pub text: String,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct State {
    pub at_unix_ms: u64,
    pub devices: Vec<Watched>,
    /// Fraction of the usable memory from which it alerts.
    pub alert: Option<f64>,
    /// Why the last sample is missing.
    pub trouble: Option<String>,
    pub samples: usize,
}

impl State {
    /// Nothing yet.
    pub fn new(alert: Option<f64>) -> State {
        State {
            at_unix_ms: 0,
            devices: Vec::new(),
            alert,
            trouble: None,
            samples: 0,
        }
    }

    /// A sample. What begins to be alarming is returned, once each time that it begins.
    pub fn take(&mut self, at_unix_ms: u64, readings: Vec<DeviceReading>) -> Vec<Alert> {
        self.at_unix_ms = at_unix_ms;
        self.trouble = None;
        self.samples += 1;
        let mut alerts = Vec::new();
        for reading in readings {
            let at = match self
                .devices
                .iter()
                .position(|d| d.reading.key == reading.key)
            {
                Some(i) => i,
                None => {
                    self.devices.push(Watched::new(reading.clone()));
                    self.devices.len() - 1
                }
            };
            let d = &mut self.devices[at];
            d.take(at_unix_ms, reading);
            let over = match (self.alert, &d.reading.memory) {
                (Some(limit), Some(m)) => m.fraction() >= limit,
                _ => false,
            };
            if over && !d.alert {
                let pct = d.reading.memory.map_or(0.0, |m| 100.0 * m.fraction());
                alerts.push(Alert {
                    device: d.reading.key.clone(),
                    text: format!(
                        "GPU {} ({}) is {pct:.1} % full",
                        d.reading.index, d.reading.name
                    ),
                });
            }
            d.alert = over;
        }
        alerts
    }

    /// The highest used bytes of a device.
    pub fn peak(&self, key: &str) -> Option<u64> {
        self.devices
            .iter()
            .find(|d| d.reading.key == key)
            .and_then(|d| d.peak_used_bytes)
    }
}

impl Watched {
    fn new(reading: DeviceReading) -> Watched {
        Watched {
            reading,
            peak_used_bytes: None,
            peak_at_unix_ms: None,
            full_in_s: None,
            growth_bytes_s: None,
            alert: false,
            history: VecDeque::with_capacity(KEPT),
            times: VecDeque::with_capacity(KEPT),
            samples: 0,
        }
    }

    fn take(&mut self, at: u64, reading: DeviceReading) {
        self.reading = reading;
        let Some(m) = self.reading.memory else {
            self.full_in_s = None;
            self.growth_bytes_s = None;
            return;
        };
        if self.peak_used_bytes.is_none_or(|p| m.used > p) {
            self.peak_used_bytes = Some(m.used);
            self.peak_at_unix_ms = Some(at);
        }
        if self.history.len() == KEPT {
            self.history.pop_front();
            self.times.pop_front();
        }
        self.history.push_back(m.used);
        self.times.push_back(at);
        self.samples += 1;
        if self.samples.is_multiple_of(FORECAST_EVERY) {
            self.forecast(m.usable());
        }
    }

    fn forecast(&mut self, limit: u64) {
        let Some(first) = self.times.front() else {
            return;
        };
        let mut s = Series::default();
        for (t, b) in self.times.iter().zip(&self.history) {
            s.push(t.saturating_sub(*first) as f64 / 1000.0, *b);
        }
        let v = s.verdict();
        self.full_in_s = v.until_full(limit);
        self.growth_bytes_s = v.is_leak().then_some(v.slope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonnage_host::device::{Memory, Source};

    fn reading(used: Option<u64>) -> DeviceReading {
        let json =
            serde_json::json!({"key": "GPU-1", "index": 0, "name": "Card", "source": Source::Nvml});
        let mut d: DeviceReading = serde_json::from_value(json).expect("a reading");
        d.memory = used.map(|used| Memory {
            total: 1100,
            used,
            reserved: Some(100),
            free: 1000 - used,
        });
        d
    }

    #[test]
    fn an_alert_is_raised_once_each_time() {
        let mut s = State::new(Some(0.9));
        let n: Vec<usize> = [100, 900, 950, 899, 1000]
            .iter()
            .enumerate()
            .map(|(i, u)| s.take(i as u64, vec![reading(Some(*u))]).len())
            .collect();
        assert_eq!(n, [0, 1, 0, 0, 1]);
        assert_eq!(s.peak("GPU-1"), Some(1000));
        assert_eq!(s.devices[0].peak_at_unix_ms, Some(4));
    }

    #[test]
    fn time_to_full_within_a_fifth() {
        let mib = 1u64 << 20;
        let mut s = State::new(None);
        let mut r = reading(None);
        for i in 0..120u64 {
            // 3 MiB a second with a step's ups and downs
            let used = 2048 * mib + i * 3 * mib + (i * 7 % 5) * 2 * mib;
            r.memory = Some(Memory {
                total: 8192 * mib,
                used,
                reserved: None,
                free: 8192 * mib - used,
            });
            s.take(i * 1000, vec![r.clone()]);
        }
        let left = s.devices[0].full_in_s.expect("a forecast");
        let truth = (8192.0 - 2048.0 - 119.0 * 3.0 - 4.0) / 3.0;
        assert!((left / truth - 1.0).abs() < 0.2, "{left} against {truth}");
        // what falls off the bus has neither forecast nor memory, and keeps its peak
        s.take(121_000, vec![reading(None)]);
        assert_eq!(s.devices[0].full_in_s, None);
        assert!(s.peak("GPU-1").is_some());
    }
}
