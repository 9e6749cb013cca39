//! What `watch` sees as Prometheus text, and the port where it is served.

use crate::device::DeviceReading;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DeviceLabels {
    device: String,
    index: String,
    name: String,
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProcessLabels {
    device: String,
    pid: String,
    owner: String,
    command: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InstanceLabels {
    device: String,
    instance: String,
    profile: String,
}

/// The readings in OpenMetrics text. `peaks`: the highest used bytes so far by a device's key.
pub fn text(devices: &[DeviceReading], peaks: &dyn Fn(&str) -> Option<u64>) -> String {
    let mut r = Registry::default();
    macro_rules! family {
        ($labels:ty, $name:literal, $help:literal) => {{
            let f = Family::<$labels, Gauge>::default();
            r.register($name, $help, f.clone());
            f
        }};
    }
    let total = family!(
        DeviceLabels,
        "tonnage_device_memory_total_bytes",
        "Memory of the device"
    );
    let used = family!(
        DeviceLabels,
        "tonnage_device_memory_used_bytes",
        "Memory that processes hold"
    );
    let free = family!(
        DeviceLabels,
        "tonnage_device_memory_free_bytes",
        "Memory that is free"
    );
    let reserved = family!(
        DeviceLabels,
        "tonnage_device_memory_reserved_bytes",
        "Memory that the driver keeps for itself"
    );
    let peak = family!(
        DeviceLabels,
        "tonnage_device_memory_used_peak_bytes",
        "Highest used memory since the watch began"
    );
    let busy = family!(
        DeviceLabels,
        "tonnage_device_busy_percent",
        "Time with a kernel running"
    );
    let up = family!(
        DeviceLabels,
        "tonnage_device_up",
        "1 where the device answers, 0 where it does not"
    );
    let process = family!(
        ProcessLabels,
        "tonnage_device_process_memory_bytes",
        "Memory that a process holds on the device"
    );
    let allocated = family!(
        ProcessLabels,
        "tonnage_allocator_allocated_bytes",
        "Live tensors, as the process publishes it"
    );
    let cached = family!(
        ProcessLabels,
        "tonnage_allocator_reserved_bytes",
        "Held by the framework's allocator, as the process publishes it"
    );
    let part = family!(
        InstanceLabels,
        "tonnage_instance_memory_used_bytes",
        "Memory that processes hold in a MIG instance"
    );
    let n = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    for d in devices {
        let labels = DeviceLabels {
            device: d.key.clone(),
            index: d.index.to_string(),
            name: d.name.clone(),
            source: d.source.name().into(),
        };
        up.get_or_create(&labels).set(i64::from(d.memory.is_some()));
        if let Some(m) = &d.memory {
            total.get_or_create(&labels).set(n(m.total));
            used.get_or_create(&labels).set(n(m.used));
            free.get_or_create(&labels).set(n(m.free));
            if let Some(v) = m.reserved {
                reserved.get_or_create(&labels).set(n(v));
            }
        }
        if let Some(p) = peaks(&d.key) {
            peak.get_or_create(&labels).set(n(p));
        }
        if let Some(b) = d.busy_pct {
            busy.get_or_create(&labels).set(i64::from(b));
        }
        for p in &d.processes {
            let labels = ProcessLabels {
                device: d.key.clone(),
                pid: p.pid.to_string(),
                owner: p.owner.clone().unwrap_or_default(),
                command: p.command.clone().unwrap_or_default(),
            };
            if let Some(b) = p.bytes {
                process.get_or_create(&labels).set(n(b));
            }
            if let Some(a) = &p.allocator {
                allocated.get_or_create(&labels).set(n(a.allocated_bytes));
                cached.get_or_create(&labels).set(n(a.reserved_bytes));
            }
        }
        for i in &d.instances {
            let labels = InstanceLabels {
                device: d.key.clone(),
                instance: i.uuid.clone(),
                profile: i.name.clone(),
            };
            if let Some(m) = &i.memory {
                part.get_or_create(&labels).set(n(m.used));
            }
        }
    }
    let mut out = String::new();
    // writing into a String cannot fail
    let _ = prometheus_client::encoding::text::encode(&mut out, &r);
    out
}

/// A port that answers `GET /metrics` with the last text it was given.
pub struct Exporter {
    page: Arc<Mutex<String>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Exporter {
    /// Listens on `host:port`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(address: &str) -> std::io::Result<Exporter> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let page = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&page);
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let text = shared.lock().map(|t| t.clone()).unwrap_or_default();
                    // one scraper at a time is what there is; a slow one is dropped
                    let _ = answer(stream, &text);
                }
            })?;
        Ok(Exporter { page, address })
    }

    /// What the next reader gets.
    pub fn publish(&self, text: String) {
        if let Ok(mut p) = self.page.lock() {
            *p = text;
        }
    }
}

fn answer(mut s: TcpStream, page: &str) -> std::io::Result<()> {
    s.set_read_timeout(Some(Duration::from_secs(2)))?;
    s.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut head = Vec::new();
    let mut buf = [0u8; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 16 << 10 {
        let n = s.read(&mut buf)?;
        if n == 0 {
            break;
        }
        head.extend_from_slice(&buf[..n]);
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (status, kind, body) = match (method, path.split('?').next().unwrap_or("")) {
        ("GET", "/metrics") => (
            "200 OK",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            page,
        ),
        ("GET", _) => (
            "404 Not Found",
            "text/plain; charset=utf-8",
            "metrics are at /metrics\n",
        ),
        _ => (
            "405 Method Not Allowed",
            "text/plain; charset=utf-8",
            "only GET\n",
        ),
    };
    let length = body.len();
    write!(
        s,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
