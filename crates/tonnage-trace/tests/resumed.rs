//! A recording that rested while steps repeated (`crates/tonnage/tests/scripts/steps.py evaluation`, torch 2.11).

use flate2::read::GzDecoder;
use std::io::Read;
use std::path::PathBuf;
use tonnage_core::verdict::Device;
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_trace::trace::Rest;
use tonnage_trace::{Event, Trace, again, footprint, raw};

fn text() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/steps.raw.gz");
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_steps_that_rest_are_told_and_the_peak_is_the_frameworks() {
    let t = raw::parse(&text(), "/home/me").unwrap();
    let firsts: Vec<(i32, u32)> = t.header.rests.iter().map(|r| (r.first, r.steps)).collect();
    assert_eq!(firsts, [(6, 15), (25, 6), (35, 5)]);
    assert_eq!(t.header.missed, None);
    // the evaluation, which is not among the first steps, is the peak
    assert_eq!(raw::figures(&t), t.header.peaks);
    let run = again::replay(&t, &AllocatorConfig::default(), None);
    assert_eq!((run.peak, run.blocks_differ), (t.header.peaks, 0));
    let card = Device::of(tonnage_catalog::gpu("a100-sxm4-80gb").unwrap()).unwrap();
    let f = footprint::footprint(&t, &card);
    let parts = f.components.iter().filter(|l| l.level == "allocated");
    assert_eq!(
        parts.map(|l| l.bytes).sum::<u64>(),
        t.header.peaks.allocated
    );
    let note = f.notes.iter().find(|n| n.code == "repeats").unwrap();
    assert!(
        note.message
            .starts_with("steps 6 to 20 made the same requests as step 5 ")
    );
    // and a trace file keeps it
    let again = Trace::parse(&t.write()).unwrap();
    assert_eq!(again.header.rests, t.header.rests);
    assert_eq!(again.events, t.events);
}

/// A recording by hand: a segment, three blocks, then a rest during which one moves, one goes and one comes.
#[test]
fn blocks_are_known_again_where_the_recording_resumes() {
    let head = r#"{"schema":"tonnage.raw/1","reason":"exit","first":0,"rests":[{"first":1,"cycle":1,"steps":4,"other":0,"broken":false}]}"#;
    let before = r#"["K",[]]
["M",""]
["M","0~0~forward~~~"]
["S",4096,2097152,0,1,0]
["a",4096,1024,0,1,0]
["a",5120,2048,0,1,0]
["a",7168,512,0,1,0]"#;
    // 2048 bytes are elsewhere now, 512 are gone, 700 are new; the second segment is, too
    let resumed = r#"["B",40,5,[[4096,2097152,false,[[4096,1024,1024,1,0],[6144,2048,2048,1,0],[9216,1024,700,1,0]]],[8388608,2097152,false,[]]]]"#;
    let after = r#"["q",6144,2048,0,1,0]
["c",6144,2048,0,1,0]
["a",5120,3000,0,1,0]
["T",41,"gradients",[[9216,700,"w"],[5120,3000,"v"]]]
["E"]
"#;
    let t = raw::parse(&format!("{head}\n{before}\n{resumed}\n{after}"), "").unwrap();
    let said: Vec<String> = t
        .events
        .iter()
        .map(|e| match *e {
            Event::Alloc {
                id,
                requested,
                block,
                place,
                ..
            } => format!(
                "a{id} {requested} {block} {}",
                t.places[place as usize].step
            ),
            Event::Free { id, .. } => format!("f{id}"),
            Event::Reusable { id } => format!("r{id}"),
            Event::SegmentAlloc { bytes } => format!("S{bytes}"),
            Event::SegmentFree { bytes, .. } => format!("s{bytes}"),
        })
        .collect();
    assert_eq!(
        said,
        [
            "S2097152",
            "a0 1024 1024 0",
            "a1 2048 2048 0",
            "a2 512 512 0",
            "f2",
            "S2097152",
            "a3 700 1024 5",
            "f1",
            "a4 3000 3072 0"
        ]
    );
    // what is tagged is found where it lives now
    assert_eq!(t.names[3..], ["w", "v"]);
    assert_eq!(
        t.header.rests,
        [Rest {
            first: 1,
            cycle: 1,
            steps: 4,
            ..Rest::default()
        }]
    );
    // a list of blocks that is none is an error with its line
    let wrong = resumed.replace("[4096,1024,1024,1,0]", "[4096,1024]");
    let e = raw::parse(&format!("{head}\n{before}\n{wrong}\n{after}"), "").unwrap_err();
    assert!(e.to_string().starts_with("line 9: "), "{e}");
}
