//! Recordings, read again.

use super::{Point, RecordError, RunDevice, Store};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

/// A run without its samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHead {
    pub id: i64,
    pub begun_unix_ms: u64,
    /// Absent: the recorder was ended, or the run goes on.
    pub ended_unix_ms: Option<u64>,
    pub command: Vec<String>,
    pub folder: String,
    pub pid: Option<u32>,
    pub job: Option<String>,
    pub prediction: Option<String>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub framework: Option<String>,
    pub out_of_memory: Option<String>,
    pub trouble: Option<String>,
    pub samples: u64,
    /// Highest use of a device by the run's own processes, by its driver.
    pub peak_own_bytes: Option<u64>,
}

/// A run with everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recording {
    pub run: RunHead,
    pub devices: Vec<RunDevice>,
    pub points: Vec<Point>,
}

impl Recording {
    /// The samples of one device, in order.
    pub fn of(&self, device: i64) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |p| p.device == device)
    }
}

fn unsigned(r: &Row<'_>, i: usize) -> rusqlite::Result<Option<u64>> {
    Ok(r.get::<_, Option<i64>>(i)?
        .and_then(|v| u64::try_from(v).ok()))
}

fn head(r: &Row<'_>) -> rusqlite::Result<RunHead> {
    let command: String = r.get(3)?;
    Ok(RunHead {
        id: r.get(0)?,
        begun_unix_ms: unsigned(r, 1)?.unwrap_or(0),
        ended_unix_ms: unsigned(r, 2)?,
        command: serde_json::from_str(&command).unwrap_or_else(|_| vec![command]),
        folder: r.get(4)?,
        pid: r.get(5)?,
        job: r.get(6)?,
        prediction: r.get(7)?,
        exit_code: r.get(8)?,
        signal: r.get(9)?,
        framework: r.get(10)?,
        out_of_memory: r.get(11)?,
        trouble: r.get(12)?,
        samples: unsigned(r, 13)?.unwrap_or(0),
        peak_own_bytes: unsigned(r, 14)?,
    })
}

const HEAD: &str = "SELECT id, begun_ms, ended_ms, command, folder, pid, job, prediction, exit_code, signal, framework, out_of_memory, trouble,
  (SELECT count(DISTINCT at_ms) FROM sample WHERE run=id), (SELECT max(own) FROM sample WHERE run=id) FROM run";

impl Store {
    /// All runs, the latest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn list(&self, most: usize) -> Result<Vec<RunHead>, RecordError> {
        let read = || -> rusqlite::Result<Vec<RunHead>> {
            self.db
                .prepare(&format!("{HEAD} ORDER BY id DESC LIMIT ?1"))?
                .query_map([i64::try_from(most).unwrap_or(i64::MAX)], head)?
                .collect()
        };
        read().map_err(|e| self.failed(e))
    }

    /// One run with its samples.
    ///
    /// # Errors
    /// There is none of that number; SQLite's.
    pub fn load(&self, run: i64) -> Result<Recording, RecordError> {
        if !self.exists(run)? {
            return Err(RecordError::NoRun(run.to_string()));
        }
        let read = || -> rusqlite::Result<Recording> {
            let head = self
                .db
                .query_row(&format!("{HEAD} WHERE id=?1"), [run], head)?;
            let devices = self
                .db
                .prepare("SELECT key, name, source, total, reserved, used_before FROM device WHERE run=?1 ORDER BY number")?
                .query_map([run], |r| {
                    Ok(RunDevice {
                        key: r.get(0)?,
                        name: r.get(1)?,
                        source: r.get(2)?,
                        total_bytes: unsigned(r, 3)?,
                        reserved_bytes: unsigned(r, 4)?,
                        used_before_bytes: unsigned(r, 5)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            let points = self
                .db
                .prepare("SELECT at_ms, device, used, free, own, allocated, reserved, peak_allocated, peak_reserved, peak_requested, inactive_split, alloc_retries, ooms, step, host_resident, host_available FROM sample WHERE run=?1 ORDER BY at_ms, device")?
                .query_map(params![run], |r| {
                    Ok(Point {
                        at_unix_ms: unsigned(r, 0)?.unwrap_or(0),
                        device: r.get(1)?,
                        used_bytes: unsigned(r, 2)?,
                        free_bytes: unsigned(r, 3)?,
                        own_bytes: unsigned(r, 4)?,
                        allocated_bytes: unsigned(r, 5)?,
                        reserved_bytes: unsigned(r, 6)?,
                        peak_allocated_bytes: unsigned(r, 7)?,
                        peak_reserved_bytes: unsigned(r, 8)?,
                        requested_bytes: unsigned(r, 9)?,
                        inactive_split_bytes: unsigned(r, 10)?,
                        alloc_retries: unsigned(r, 11)?,
                        ooms: unsigned(r, 12)?,
                        step: unsigned(r, 13)?,
                        host_resident_bytes: unsigned(r, 14)?,
                        host_available_bytes: unsigned(r, 15)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Recording {
                run: head,
                devices,
                points,
            })
        };
        read().map_err(|e| self.failed(e))
    }
}
