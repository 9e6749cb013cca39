//! The monitor's picture on a terminal that is none.

use super::draw::draw;
use super::state::State;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tonnage_host::device::DeviceReading;
use tonnage_report::Style;
use tonnage_units::ByteStyle;

const GIB: u64 = 1 << 30;

fn style(ascii: bool) -> Style {
    Style {
        units: ByteStyle::Iec,
        width: 100,
        colour: false,
        ascii,
    }
}

fn device(index: u32, used: u64) -> DeviceReading {
    serde_json::from_value(serde_json::json!({
        "key": format!("GPU-{index}"), "index": index, "name": "NVIDIA A100-SXM4-80GB", "source": "nvml", "busy_pct": 93,
        "memory": {"total_bytes": 81 * GIB, "used_bytes": used, "reserved_bytes": GIB, "free_bytes": 80 * GIB - used},
        "processes": [{"pid": 4242, "bytes": used, "what": "compute", "owner": "ada", "command": "python train.py --epochs 3",
            "allocator": {"allocated_bytes": 2 * GIB, "reserved_bytes": 3 * GIB, "peak_allocated_bytes": 1, "peak_reserved_bytes": 1}}]
    }))
    .expect("a reading")
}

fn picture(s: &State, width: u16, height: u16, ascii: bool) -> String {
    let mut t = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    t.draw(|f| draw(f, s, &style(ascii), false)).expect("drawn");
    let b = t.backend().buffer();
    (0..height)
        .map(|y| {
            let l: String = (0..width)
                .map(|x| b.cell((x, y)).map_or(" ", |c| c.symbol()))
                .collect();
            format!("{}\n", l.trim_end())
        })
        .collect()
}

#[test]
fn k28_two_devices_their_peaks_and_processes() {
    let mut s = State::new(Some(0.9));
    s.take(1000, vec![device(0, 40 * GIB), device(1, 10 * GIB)]);
    s.take(2000, vec![device(0, 20 * GIB), device(1, 76 * GIB)]);
    let p = picture(&s, 100, 24, true);
    assert!(p.is_ascii(), "{p}");
    let lines: Vec<&str> = p.lines().collect();
    assert!(lines[0].contains("2 GPUs, 2 samples"), "{p}");
    assert!(
        lines[1].contains("0 NVIDIA A100-SXM4-80GB  [NVML, busy 93 %]"),
        "{p}"
    );
    assert!(
        lines[3].contains(
            "used 20.00 GiB of 80.00 GiB (25.0 %)  free 60.00 GiB  reserved by the driver 1.00 GiB"
        ),
        "{p}"
    );
    assert!(
        lines[4].contains("peak 40.00 GiB") && !lines[4].contains("ALERT"),
        "{p}"
    );
    assert!(lines[10].contains("peak 76.00 GiB  ALERT"), "{p}");
    // a quarter of the bar is full, and the sparkline is half, then a quarter of its height
    let bar = lines[2].trim();
    let full = bar.chars().filter(|c| *c == '#').count();
    assert_eq!((full * 4 + 2) / bar.len(), 1, "{p}");
    let head = lines
        .iter()
        .position(|l| l.starts_with("GPU  PID"))
        .expect("a head");
    let row = lines[head + 1];
    for cell in [
        "1    4242",
        "ada",
        "76.00 GiB",
        "2.00 GiB",
        "3.00 GiB",
        "python train.py",
    ] {
        assert!(row.contains(cell), "{cell}: {p}");
    }
    assert!(lines[23].contains("q quit"), "{p}");
    assert!(picture(&s, 100, 24, false).contains('\u{2588}'));
}

#[test]
fn a_small_window_says_what_it_leaves_out_and_a_lost_device_is_told() {
    let mut s = State::new(None);
    let mut lost = device(0, GIB);
    lost.memory = None;
    lost.troubles = vec!["the device has fallen off the bus".into()];
    s.take(1, vec![lost, device(1, GIB), device(2, GIB)]);
    let p = picture(&s, 60, 14, true);
    assert!(
        p.contains("memory: not known") && p.contains("fallen off the bus"),
        "{p}"
    );
    assert!(p.contains("2 more GPU(s)"), "{p}");
    // no size is too small to draw on
    for (w, h) in [(1, 1), (5, 2), (20, 3), (300, 100)] {
        picture(&s, w, h, false);
    }
}
