//! `cargo run --release -p tonnage-plan --example fit -- RECORDS DATE > crates/tonnage-plan/data/efficiency.csv`: fits the efficiencies
//! of the time model on published rows.

use tonnage_plan::time::fit::from_records;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, date] = &args[..] else {
        eprintln!("usage: fit RECORDS DATE");
        return 2.into();
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            print!("{}", from_records(&text, "groundtruth/throughput-dev.jsonl: published speeds; each row names its page and commit", date).text());
            0.into()
        }
        Err(e) => {
            eprintln!("{path}: {e}");
            3.into()
        }
    }
}
