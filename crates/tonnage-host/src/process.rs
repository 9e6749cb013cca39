//! Processes as Linux's `/proc` shows them: owner, command, memory, and who descends from whom. On other systems nothing is known
//! (`None`), and the program says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub owner: Option<String>,
    pub command: String,
}

/// `/proc` below a root, and the names of users. What does not change is asked once a process.
pub struct Procs {
    root: PathBuf,
    users: BTreeMap<u32, String>,
    known: BTreeMap<u32, (u64, Who)>,
    asked: BTreeSet<u32>,
}

impl Procs {
    /// `root`: `/`, or a recorded tree.
    pub fn new(root: &Path) -> Procs {
        let users = std::fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
        let users = users
            .lines()
            .filter_map(|l| {
                let mut f = l.split(':');
                let name = f.next()?;
                Some((f.nth(1)?.parse().ok()?, name.to_string()))
            })
            .collect();
        Procs {
            root: root.into(),
            users,
            known: BTreeMap::new(),
            asked: BTreeSet::new(),
        }
    }

    fn dir(&self, pid: u32) -> PathBuf {
        self.root.join("proc").join(pid.to_string())
    }

    /// Owner and command.
    pub fn who(&mut self, pid: u32) -> Option<Who> {
        self.asked.insert(pid);
        let start = self.start(pid)?;
        if let Some((s, w)) = self.known.get(&pid)
            && *s == start
        {
            return Some(w.clone());
        }
        let status = std::fs::read_to_string(self.dir(pid).join("status")).ok()?;
        let uid: Option<u32> = field(&status, "Uid:").and_then(|v| v.parse().ok());
        let line = std::fs::read(self.dir(pid).join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line)
            .trim_end_matches('\0')
            .replace('\0', " ");
        let command = if line.is_empty() {
            field(&status, "Name:")?.to_string()
        } else {
            line
        };
        let who = Who {
            owner: uid.map(|u| self.users.get(&u).cloned().unwrap_or_else(|| u.to_string())),
            command,
        };
        self.known.insert(pid, (start, who.clone()));
        Some(who)
    }

    /// Forgets processes that were not asked for since the last call.
    pub fn forget_gone(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        self.known.retain(|pid, _| asked.contains(pid));
    }

    /// When it was started, in the kernel's ticks; with the number it names a process for ever.
    pub fn start(&self, pid: u32) -> Option<u64> {
        let stat = std::fs::read_to_string(self.dir(pid).join("stat")).ok()?;
        // the name, in brackets, may have anything in it
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(19)?
            .parse()
            .ok()
    }

    /// Resident bytes.
    pub fn resident(&self, pid: u32) -> Option<u64> {
        let statm = std::fs::read_to_string(self.dir(pid).join("statm")).ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * page_size())
    }

    /// Whether a process was started with an entry (`NAME=value`) in its environment. Another user's cannot be read: no.
    pub fn started_with(&self, pid: u32, entry: &str) -> bool {
        std::fs::read(self.dir(pid).join("environ"))
            .is_ok_and(|t| t.split(|b| *b == 0).any(|e| e == entry.as_bytes()))
    }

    /// The children of a process, now.
    pub fn children(&self, pid: u32) -> Vec<u32> {
        let Ok(tasks) = std::fs::read_dir(self.dir(pid).join("task")) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for t in tasks.flatten() {
            if let Ok(text) = std::fs::read_to_string(t.path().join("children")) {
                out.extend(
                    text.split_whitespace()
                        .filter_map(|c| c.parse::<u32>().ok()),
                );
            }
        }
        out
    }

    /// The machine's memory: (total, available) bytes.
    pub fn machine(&self) -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let kib = |k: &str| field(&text, k)?.parse::<u64>().ok();
        Some((kib("MemTotal:")? << 10, kib("MemAvailable:")? << 10))
    }
}

fn page_size() -> u64 {
    #[cfg(unix)]
    {
        rustix::param::page_size() as u64
    }
    #[cfg(not(unix))]
    {
        4096
    }
}

/// The first word after a key at a line's start.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|l| l.strip_prefix(key))?
        .split_whitespace()
        .next()
}

/// A process and everything it started, also what outlived its parent.
pub struct Tree {
    known: BTreeMap<u32, u64>,
}

impl Tree {
    /// Of one process.
    pub fn new(procs: &Procs, pid: u32) -> Tree {
        let mut known = BTreeMap::new();
        if let Some(s) = procs.start(pid) {
            known.insert(pid, s);
        }
        Tree { known }
    }

    /// A process that belongs to it though its parents ended before they were seen.
    pub fn adopt(&mut self, procs: &Procs, pid: u32) {
        if let Some(s) = procs.start(pid) {
            self.known.insert(pid, s);
        }
    }

    /// Looks again: new descendants come, those that ended go. The living ones.
    pub fn update(&mut self, procs: &Procs) -> Vec<u32> {
        self.known.retain(|pid, s| procs.start(*pid) == Some(*s));
        let mut queue: Vec<u32> = self.known.keys().copied().collect();
        while let Some(p) = queue.pop() {
            for c in procs.children(p) {
                if let std::collections::btree_map::Entry::Vacant(e) = self.known.entry(c)
                    && let Some(s) = procs.start(c)
                {
                    e.insert(s);
                    queue.push(c);
                }
            }
        }
        self.known.keys().copied().collect()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_child() {
        let mut p = Procs::new(Path::new("/"));
        let me = std::process::id();
        let who = p.who(me).expect("this process");
        assert!(who.owner.is_some() && !who.command.is_empty());
        assert!(p.resident(me).is_some_and(|b| b > 1 << 20));
        let (total, available) = p.machine().expect("meminfo");
        assert!(total >= available && available > 0);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 30 & wait"])
            .spawn()
            .expect("sh");
        let mut tree = Tree::new(&p, child.id());
        let grown = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            tree.update(&p).len() == 2
        });
        assert!(grown, "the shell's own child is found");
        let sleeper = p.children(child.id())[0];
        child.kill().expect("killed");
        child.wait().expect("waited");
        assert_eq!(tree.update(&p), [sleeper], "an orphan stays in the tree");
        let _ = std::process::Command::new("kill")
            .arg(sleeper.to_string())
            .status();
    }
}
