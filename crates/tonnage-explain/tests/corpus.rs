//! The inputs of the fuzz targets, replayed.

use tonnage_explain::oom::{Scanner, parse};
use tonnage_explain::snapshot::diff::Diff;
use tonnage_explain::snapshot::report::Report;
use tonnage_explain::snapshot::{Limits, pickle};

fn each(target: &str, mut f: impl FnMut(&str, &[u8])) {
    let folder = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut n = 0;
    for e in std::fs::read_dir(folder).unwrap() {
        let p = e.unwrap().path();
        f(
            &p.file_name().unwrap().to_string_lossy(),
            &std::fs::read(&p).unwrap(),
        );
        n += 1;
    }
    assert!(n >= 5, "{target}: {n}");
}

#[test]
fn snapshots_of_the_corpus() {
    let mut good = 0;
    each("snapshot_pickle", |name, bytes| {
        let limits = Limits {
            objects: 1 << 20,
            stack: 1 << 16,
            text: 1 << 22,
            bytes: 1 << 24,
        };
        if let Ok(s) = pickle::read(bytes, limits) {
            good += 1;
            let r = Report::of(name, &s, 5);
            if name == "old" {
                // before blocks had addresses and sizes asked for
                assert_eq!(
                    (
                        s.blocks[0].address,
                        s.blocks[0].requested,
                        s.blocks[1].address
                    ),
                    (4096, 100, 4608)
                );
                assert_eq!(r.devices[0].ooms[0].device_free_bytes, 5);
            }
            assert!(Diff::of((name, name), &s, &s).candidates.is_empty());
        } else {
            assert!(!name.starts_with("small"), "{name}");
        }
    });
    assert!(good >= 3);
}

#[test]
fn logs_of_the_corpus() {
    each("oom_text", |name, bytes| {
        if name.starts_with("oom-dev") {
            assert!(
                parse(std::str::from_utf8(bytes).unwrap()).is_some(),
                "{name}"
            );
        }
        for piece in [1, 5, 1 << 20] {
            let mut s = Scanner::default();
            for p in bytes.chunks(piece) {
                s.feed(p);
            }
            assert_eq!(s.finish().bytes, bytes.len() as u64);
        }
    });
}
