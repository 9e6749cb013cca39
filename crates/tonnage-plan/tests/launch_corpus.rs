//! The corpus of the fuzz target `launch_file`: any text is a job or complaints with words, whatever it is called.

use tonnage_plan::export;

#[test]
fn every_file_of_the_corpus_is_a_job_or_is_refused_in_words() {
    let folder = format!(
        "{}/../../fuzz/corpus/launch_file",
        env!("CARGO_MANIFEST_DIR")
    );
    let (mut jobs, mut refused) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        for name in ["x.yaml", "x.toml", "x.json"] {
            match export::read(name, &text) {
                Ok(job) => {
                    jobs += 1;
                    // what was read can be said again, or the field that cannot is named
                    for f in export::FORMATS.iter().filter(|f| f.read.is_some()) {
                        if let Err(bad) = export::export(&job, f, &export::Options::default()) {
                            for d in &bad {
                                assert!(
                                    !d.message.is_empty() && d.code != "defect",
                                    "{}: {}: {d}",
                                    path.display(),
                                    f.name
                                );
                            }
                        }
                    }
                }
                Err(bad) => {
                    refused += 1;
                    assert!(!bad.is_empty());
                    for d in &bad {
                        assert!(
                            !d.message.is_empty() && d.code != "defect",
                            "{}: {d}",
                            path.display()
                        );
                    }
                }
            }
        }
    }
    assert!(
        jobs >= 10 && refused >= 20,
        "{jobs} jobs, {refused} refused"
    );
}
