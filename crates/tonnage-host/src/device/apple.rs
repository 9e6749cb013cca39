//! Apple's GPUs by what `ioreg` prints of the class `IOAccelerator` (PerformanceStatistics). Memory is the machine's own; the GPU's part of
//! it is what the registry calls system memory in use. Owners are not told, so there are no processes.

use super::{DeviceError, DeviceReading, Memory, Reader, Source};

/// The registry of macOS.
pub struct Apple {
    total: Option<u64>,
}

impl Apple {
    /// On macOS.
    pub fn open() -> Option<Apple> {
        cfg!(target_os = "macos").then(|| Apple {
            total: run("/usr/sbin/sysctl", &["-n", "hw.memsize"])
                .and_then(|t| t.trim().parse().ok()),
        })
    }
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    let o = std::process::Command::new(program)
        .args(args)
        .output()
        .ok()?;
    o.status
        .success()
        .then(|| String::from_utf8_lossy(&o.stdout).into_owned())
}

impl Reader for Apple {
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let args = ["-r", "-d", "1", "-w", "0", "-c", "IOAccelerator"];
        let text = run("/usr/sbin/ioreg", &args)
            .ok_or_else(|| DeviceError::Interface("ioreg", "it does not run".into()))?;
        Ok(parse(&text, self.total))
    }
}

/// What `ioreg -r -d 1 -w 0 -c IOAccelerator` says. `total`: the machine's memory.
pub fn parse(text: &str, total: Option<u64>) -> Vec<DeviceReading> {
    let mut out = Vec::new();
    // one object a GPU, each begun by "+-o NAME  <class ..."
    for (index, object) in text.split("+-o ").skip(1).enumerate() {
        let name = quoted(object, "\"model\" = ")
            .unwrap_or_else(|| object.split_whitespace().next().unwrap_or("GPU").into());
        let mut d = DeviceReading::new(
            Source::Ioreg,
            u32::try_from(index).unwrap_or(u32::MAX),
            format!("ioreg-{index}"),
            name,
        );
        let used = value(object, "\"In use system memory\"=");
        match (used, total) {
            (Some(used), Some(total)) => {
                d.memory = Some(Memory {
                    total,
                    used,
                    reserved: None,
                    free: total.saturating_sub(used),
                });
            }
            _ => d
                .troubles
                .push("the registry does not say how much memory is in use".into()),
        }
        d.busy_pct = value(object, "\"Device Utilization %\"=").and_then(|v| u32::try_from(v).ok());
        out.push(d);
    }
    out
}

fn value(text: &str, key: &str) -> Option<u64> {
    let rest = &text[text.find(key)? + key.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn quoted(text: &str, key: &str) -> Option<String> {
    let rest = text[text.find(key)? + key.len()..].strip_prefix('"')?;
    Some(rest.split('"').next()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_the_registry() {
        let text = "+-o AGXAcceleratorG13X  <class AGXAcceleratorG13X, id 0x1000004a0, registered, matched, active, busy 0 (0 ms), retain 146>\n  | {\n  |   \"model\" = \"Apple M1 Pro\"\n  |   \"PerformanceStatistics\" = {\"In use system memory (driver)\"=0,\"Alloc system memory\"=5046632448,\"Device Utilization %\"=17,\"In use system memory\"=1153433600}\n  | }\n";
        let d = &parse(text, Some(16 << 30))[0];
        assert_eq!((d.name.as_str(), d.busy_pct), ("Apple M1 Pro", Some(17)));
        let m = d.memory.expect("memory");
        assert_eq!((m.total, m.used), (16 << 30, 1_153_433_600));
        assert!(parse(text, None)[0].memory.is_none());
        assert!(parse("", None).is_empty());
    }
}
