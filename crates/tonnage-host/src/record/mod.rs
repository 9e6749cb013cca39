//! Recordings of runs, in one SQLite file in the user's data folder.
//!
//! A sample is one transaction in write-ahead mode: what ends the recorder between two of them (`kill -9` too) costs at most the sample that
//! was being written. A recording without an end is one whose recorder was ended; its samples are as good as any.

mod read;

pub use read::{Recording, RunHead};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of the tables; a file of a later version is not touched.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS run(
  id INTEGER PRIMARY KEY,
  begun_ms INTEGER NOT NULL,
  ended_ms INTEGER,
  command TEXT NOT NULL,
  folder TEXT NOT NULL,
  pid INTEGER,
  job TEXT,
  prediction TEXT,
  exit_code INTEGER,
  signal INTEGER,
  framework TEXT,
  out_of_memory TEXT,
  trouble TEXT);
CREATE TABLE IF NOT EXISTS device(
  run INTEGER NOT NULL REFERENCES run(id),
  number INTEGER NOT NULL,
  key TEXT NOT NULL,
  name TEXT NOT NULL,
  source TEXT NOT NULL,
  total INTEGER,
  reserved INTEGER,
  used_before INTEGER,
  PRIMARY KEY(run, number));
CREATE TABLE IF NOT EXISTS sample(
  run INTEGER NOT NULL REFERENCES run(id),
  at_ms INTEGER NOT NULL,
  device INTEGER NOT NULL,
  used INTEGER, free INTEGER, own INTEGER,
  allocated INTEGER, reserved INTEGER, peak_allocated INTEGER, peak_reserved INTEGER, peak_requested INTEGER,
  inactive_split INTEGER, alloc_retries INTEGER, ooms INTEGER, step INTEGER,
  host_resident INTEGER, host_available INTEGER);
CREATE INDEX IF NOT EXISTS sample_of_run ON sample(run, at_ms);
";

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// SQLite's, with the file.
    #[error("{path}: {what}")]
    Database {
        /// The file.
        path: PathBuf,
        /// In words.
        what: String,
    },
    /// Written by a later tonnage.
    #[error(
        "{path}: its tables are of version {found}; this tonnage knows {VERSION}: use a newer one"
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// There is no such recording.
    #[error("there is no recording {0}; tonnage history lists them")]
    NoRun(String),
    /// No folder for data is known.
    #[error("no folder for recordings: set TONNAGE_DATA, XDG_DATA_HOME or HOME")]
    NoFolder,
}

/// `$TONNAGE_DATA`, else the system's folder for a user's data.
pub fn folder() -> Option<PathBuf> {
    let var = |k: &str| std::env::var_os(k).filter(|v| !v.is_empty());
    if let Some(p) = var("TONNAGE_DATA") {
        return Some(p.into());
    }
    if cfg!(windows) {
        return Some(PathBuf::from(var("LOCALAPPDATA")?).join("tonnage"));
    }
    if cfg!(target_os = "macos") {
        return Some(PathBuf::from(var("HOME")?).join("Library/Application Support/tonnage"));
    }
    match var("XDG_DATA_HOME") {
        Some(p) => Some(PathBuf::from(p).join("tonnage")),
        None => Some(PathBuf::from(var("HOME")?).join(".local/share/tonnage")),
    }
}

/// A run that begins.
#[derive(Clone, Debug, Default)]
pub struct Begin {
    pub begun_ms: u64,
    pub command: Vec<String>,
    pub folder: String,
    pub pid: Option<u32>,
    /// The job as TOML.
    pub job: Option<String>,
    /// The footprint as JSON (`tonnage.footprint/1`).
    pub prediction: Option<String>,
}

/// A device of a run, in the order of its samples' numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDevice {
    pub key: String,
    pub name: String,
    pub source: String,
    pub total_bytes: Option<u64>,
    pub reserved_bytes: Option<u64>,
    /// Used before the run began.
    pub used_before_bytes: Option<u64>,
}

/// One device at one moment of a run; absent figures were not to be had. `device` is -1 on a machine without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub at_unix_ms: u64,
    pub device: i64,
    /// On the whole device, by its driver.
    pub used_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// Of it, by the run's own processes.
    pub own_bytes: Option<u64>,
    /// What the run's allocators publish (sums over its processes).
    pub allocated_bytes: Option<u64>,
    pub reserved_bytes: Option<u64>,
    pub peak_allocated_bytes: Option<u64>,
    pub peak_reserved_bytes: Option<u64>,
    pub requested_bytes: Option<u64>,
    pub inactive_split_bytes: Option<u64>,
    pub alloc_retries: Option<u64>,
    pub ooms: Option<u64>,
    pub step: Option<u64>,
    /// Resident memory of the run's processes; pages that they share count in each.
    pub host_resident_bytes: Option<u64>,
    pub host_available_bytes: Option<u64>,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct End {
    pub ended_ms: u64,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub framework: Option<String>,
    pub out_of_memory: Option<String>,
    pub trouble: Option<String>,
}

/// The file.
pub struct Store {
    db: Connection,
    path: PathBuf,
}

fn signed(v: Option<u64>) -> Option<i64> {
    v.map(|v| i64::try_from(v).unwrap_or(i64::MAX))
}

impl Store {
    /// Opens or makes `history.db` in a folder.
    ///
    /// # Errors
    /// It cannot be made, is damaged, or of a later version.
    pub fn open(folder: &Path) -> Result<Store, RecordError> {
        let path = folder.join("history.db");
        let failed = |what: String| RecordError::Database {
            path: path.clone(),
            what,
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
        let mut db = Connection::open(&path).map_err(|e| failed(e.to_string()))?;
        let set_up = |db: &mut Connection| -> rusqlite::Result<i64> {
            db.busy_timeout(Duration::from_secs(5))?;
            let version: i64 = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
            if version > VERSION {
                return Ok(version);
            }
            // a transaction is safe from the recorder's end at once, from the machine's at the next checkpoint
            db.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
            db.execute_batch("PRAGMA synchronous=NORMAL")?;
            if version < VERSION {
                let t = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                t.execute_batch(TABLES)?;
                t.execute_batch(&format!("PRAGMA user_version={VERSION}"))?;
                t.commit()?;
            }
            Ok(VERSION)
        };
        let found = set_up(&mut db).map_err(|e| failed(e.to_string()))?;
        if found > VERSION {
            return Err(RecordError::Later { path, found });
        }
        Ok(Store { db, path })
    }

    fn failed(&self, e: rusqlite::Error) -> RecordError {
        RecordError::Database {
            path: self.path.clone(),
            what: e.to_string(),
        }
    }

    /// A new recording's number.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin(&mut self, b: &Begin, devices: &[RunDevice]) -> Result<i64, RecordError> {
        let write = |db: &mut Connection| -> rusqlite::Result<i64> {
            let t = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            t.execute(
                "INSERT INTO run(begun_ms, command, folder, pid, job, prediction) VALUES(?1,?2,?3,?4,?5,?6)",
                params![
                    signed(Some(b.begun_ms)),
                    serde_json::json!(b.command).to_string(),
                    b.folder,
                    b.pid,
                    b.job,
                    b.prediction
                ],
            )?;
            let id = t.last_insert_rowid();
            for (i, d) in devices.iter().enumerate() {
                t.execute(
                    "INSERT INTO device VALUES(?1,?2,?3,?4,?5,?6,?7,?8)",
                    params![
                        id,
                        i64::try_from(i).unwrap_or(i64::MAX),
                        d.key,
                        d.name,
                        d.source,
                        signed(d.total_bytes),
                        signed(d.reserved_bytes),
                        signed(d.used_before_bytes)
                    ],
                )?;
            }
            t.commit()?;
            Ok(id)
        };
        write(&mut self.db).map_err(|e| self.failed(e))
    }

    /// The process of a run, once it is there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn started(&mut self, run: i64, pid: u32) -> Result<(), RecordError> {
        self.db
            .execute("UPDATE run SET pid=?2 WHERE id=?1", params![run, pid])
            .map(drop)
            .map_err(|e| self.failed(e))
    }

    /// One sample: every device at one moment, whole or not at all.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sample(&mut self, run: i64, points: &[Point]) -> Result<(), RecordError> {
        let write = |db: &mut Connection| -> rusqlite::Result<()> {
            let t = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            {
                let mut insert = t.prepare_cached(
                    "INSERT INTO sample VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
                )?;
                for p in points {
                    insert.execute(params![
                        run,
                        signed(Some(p.at_unix_ms)),
                        p.device,
                        signed(p.used_bytes),
                        signed(p.free_bytes),
                        signed(p.own_bytes),
                        signed(p.allocated_bytes),
                        signed(p.reserved_bytes),
                        signed(p.peak_allocated_bytes),
                        signed(p.peak_reserved_bytes),
                        signed(p.requested_bytes),
                        signed(p.inactive_split_bytes),
                        signed(p.alloc_retries),
                        signed(p.ooms),
                        signed(p.step),
                        signed(p.host_resident_bytes),
                        signed(p.host_available_bytes)
                    ])?;
                }
            }
            t.commit()
        };
        write(&mut self.db).map_err(|e| self.failed(e))
    }

    /// The end of a run.
    ///
    /// # Errors
    /// SQLite's.
    pub fn end(&mut self, run: i64, e: &End) -> Result<(), RecordError> {
        self.db
            .execute(
                "UPDATE run SET ended_ms=?2, exit_code=?3, signal=?4, framework=?5, out_of_memory=?6, trouble=?7 WHERE id=?1",
                params![
                    run,
                    signed(Some(e.ended_ms)),
                    e.exit_code,
                    e.signal,
                    e.framework,
                    e.out_of_memory,
                    e.trouble
                ],
            )
            .map(drop)
            .map_err(|e| self.failed(e))
    }

    /// SQLite's own examination of the file: `ok`, or what is wrong.
    ///
    /// # Errors
    /// It cannot be examined.
    pub fn check(&self) -> Result<String, RecordError> {
        self.db
            .query_row("PRAGMA integrity_check", [], |r| r.get(0))
            .map_err(|e| self.failed(e))
    }

    fn exists(&self, run: i64) -> Result<bool, RecordError> {
        self.db
            .query_row("SELECT 1 FROM run WHERE id=?1", [run], |_| Ok(()))
            .optional()
            .map(|r| r.is_some())
            .map_err(|e| self.failed(e))
    }
}
