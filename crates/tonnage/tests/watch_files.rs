//! `tonnage watch` of AMD's and Intel's cards against recorded trees of /proc and /sys.
#![cfg(target_os = "linux")]

mod standin;

use serde_json::Value;
use standin::{err, out};
use std::path::Path;
use std::process::Command;

const GIB: u64 = 1 << 30;

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

fn put(root: &Path, name: &str, text: &str) {
    let p = root.join(name);
    std::fs::create_dir_all(p.parent().expect("a folder")).expect("made");
    std::fs::write(p, text).expect("written");
}

fn rooted(root: &Path, args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(args)
        .arg("--root")
        .arg(root)
        .output()
        .expect("starts")
}

#[test]
fn an_amd_card_by_its_drivers_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let r = dir.path();
    let card = "sys/class/drm/card1/device";
    put(
        r,
        &format!("{card}/uevent"),
        "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0\n",
    );
    put(r, &format!("{card}/device"), "0x744c\n");
    put(r, &format!("{card}/revision"), "0xc8\n");
    put(r, &format!("{card}/mem_info_vram_total"), "25753026560\n");
    put(r, &format!("{card}/mem_info_vram_used"), "9663676416\n");
    put(r, &format!("{card}/gpu_busy_percent"), "88\n");
    put(
        r,
        "usr/share/libdrm/amdgpu.ids",
        "# List of AMDGPU IDs\n1.0.0\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n",
    );
    // connectors are in the same folder, and are no cards
    put(r, "sys/class/drm/card1-DP-1/status", "connected\n");
    put(
        r,
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n",
    );
    // a desktop that draws through two files of one client, and a run that computes
    let fdinfo = "pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t41\ndrm-pdev:\t0000:03:00.0\ndrm-memory-vram:\t512000 KiB\ndrm-memory-gtt:\t64 KiB\n";
    for (pid, name) in [(900, "kwin_wayland"), (4242, "python\0train.py")] {
        put(
            r,
            &format!("proc/{pid}/stat"),
            &format!("{pid} (a b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid}00 0 0\n"),
        );
        put(
            r,
            &format!("proc/{pid}/status"),
            "Name:\tx\nUid:\t1000\t1000\t1000\t1000\n",
        );
        put(r, &format!("proc/{pid}/cmdline"), &format!("{name}\0"));
    }
    put(r, "proc/900/fdinfo/5", fdinfo);
    put(r, "proc/900/fdinfo/6", fdinfo);
    put(r, "sys/class/kfd/kfd/topology/nodes/0/gpu_id", "0\n");
    put(r, "sys/class/kfd/kfd/topology/nodes/1/gpu_id", "5432\n");
    put(
        r,
        "sys/class/kfd/kfd/topology/nodes/1/properties",
        "cpu_cores_count 0\nlocation_id 768\ndomain 0\n",
    );
    put(r, "sys/class/kfd/kfd/proc/4242/vram_5432", "8589934592\n");
    let o = rooted(r, &["watch", "--once", "--format", "json"]);
    assert!(o.status.success(), "{}", err(&o));
    let d = &lines(&out(&o))[0]["devices"][0];
    assert_eq!(
        (&d["name"], &d["source"], &d["busy_pct"]),
        (
            &"AMD Radeon RX 7900 XTX".into(),
            &"amdgpu".into(),
            &88.into()
        )
    );
    assert_eq!(d["memory"]["free_bytes"], 25_753_026_560u64 - 9_663_676_416);
    let p = d["processes"].as_array().expect("processes");
    assert_eq!(p.len(), 2);
    assert_eq!(
        (&p[0]["pid"], &p[0]["bytes"], &p[0]["what"]),
        (&900.into(), &524_288_000.into(), &"graphics".into())
    );
    assert_eq!(
        (&p[1]["bytes"], &p[1]["owner"], &p[1]["command"]),
        (&(8 * GIB).into(), &"ada".into(), &"python train.py".into())
    );
    // the driver is unloaded
    std::fs::remove_file(r.join(card).join("mem_info_vram_used")).expect("removed");
    let o = rooted(r, &["watch", "--once"]);
    assert!(
        out(&o).contains("memory not known") && out(&o).contains("is the device gone?"),
        "{}",
        out(&o)
    );
}

#[test]
fn an_intel_card_says_what_it_does_not_say() {
    let dir = tempfile::tempdir().expect("a folder");
    let r = dir.path();
    put(
        r,
        "sys/class/drm/card0/device/uevent",
        "DRIVER=xe\nPCI_SLOT_NAME=0000:04:00.0\n",
    );
    put(r, "sys/class/drm/card0/device/device", "0xe20b\n");
    put(
        r,
        "usr/share/misc/pci.ids",
        "1002  AMD\n\te20b  Not this one\n8086  Intel Corporation\n\te20b  Battlemage G21 [Arc B580]\n",
    );
    put(
        r,
        "proc/77/fdinfo/9",
        "drm-driver:\txe\ndrm-client-id:\t3\ndrm-pdev:\t0000:04:00.0\ndrm-resident-vram0:\t1 MiB\ndrm-total-vram0:\t4 MiB\ndrm-resident-gtt:\t9 MiB\n",
    );
    let o = rooted(r, &["watch", "--once", "--format", "json"]);
    let d = &lines(&out(&o))[0]["devices"][0];
    assert_eq!(d["name"], "Battlemage G21 [Arc B580]");
    assert!(d["memory"].is_null());
    assert_eq!(d["processes"][0]["bytes"], 1 << 20);
    assert!(
        d["troubles"][0]
            .as_str()
            .is_some_and(|t| t.contains("no total")),
        "{d}"
    );
    put(r, "sys/class/drm/card0/lmem_total_bytes", "12884901888\n");
    let o = rooted(r, &["watch", "--once", "--format", "json"]);
    assert_eq!(
        lines(&out(&o))[0]["devices"][0]["memory"]["total_bytes"],
        12 * GIB
    );
}
