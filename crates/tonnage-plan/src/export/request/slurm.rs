//! Slurm's batch script (SchedMD/slurm 25.05, `doc/man/man1/sbatch.1`).
//!
//! The type of a card is the site's own word in gres.conf; where it has none, Slurm's NVML plugin makes it of the driver's name, lower-case
//! with underscores (`src/plugins/gpu/nvml/gpu_nvml.c`, `gpu_common_underscorify_tolower`). That is the default here. Slurm cannot be asked
//! for memory of a device, so the script looks before it starts.

use super::{Ask, Host, driver_names, gib, label};
use crate::export::{File, Options, Written};
use std::fmt::Write;
use tonnage_core::{Diagnostic, Job};

/// `--to slurm`
pub fn write(job: &Job, options: &Options) -> Result<Written, Vec<Diagnostic>> {
    Ask::of_job(job, options).map(|a| of(&a))
}

/// `D-HH:MM:00`, rounded up to a minute.
fn limit(seconds: f64) -> String {
    let minutes = (seconds / 60.0).ceil().max(1.0) as u64;
    format!(
        "{}-{:02}:{:02}:00",
        minutes / 1440,
        minutes / 60 % 24,
        minutes % 60
    )
}

/// The script of a request.
pub fn of(ask: &Ask) -> Written {
    let kind = ask.gpu_type.clone().or_else(|| {
        let names = driver_names(&ask.gpu, "_");
        names.first().map(|n| n.to_ascii_lowercase())
    });
    let mut notes = ask.notes.clone();
    if ask.gpu_type.is_none() {
        notes.push(super::note(
            format!(
                "the site's word for the card is not given: {}",
                kind.as_deref().unwrap_or("any card is asked for")
            ),
            "--gpu-type WORD gives it; `sinfo -o %G` lists a site's",
        ));
    }
    let mut t = String::from("#!/bin/bash\n");
    t.push_str(&ask.comments());
    let mut line = |name: &str, value: String| {
        let _ = writeln!(t, "#SBATCH --{name}={value}");
    };
    line("job-name", label(&ask.name));
    if let Some(q) = &ask.queue {
        line("partition", q.split_whitespace().collect());
    }
    line("nodes", "1".into());
    line("ntasks-per-node", "1".into());
    line(
        "gpus-per-node",
        match kind {
            Some(k) => format!("{k}:{}", ask.gpus),
            None => ask.gpus.to_string(),
        },
    );
    // a limit: what is only a floor would kill the job
    if let Host::Needs(n, _) = &ask.host {
        line("mem", format!("{}G", gib(*n)));
    }
    if let Some(s) = ask.seconds {
        line("time", limit(s.high));
    }
    line("output", "%x-%j.out".into());
    let need = ask.device.0.div_ceil(1 << 20);
    let _ = write!(
        t,
        "\nset -euo pipefail\n\
         # {need} MiB are needed on each card; Slurm cannot be asked for them\n\
         nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | while read -r mib; do\n\
         \x20 if [ \"$mib\" -lt {need} ]; then\n\
         \x20   echo \"a card of $mib MiB: the job needs {need}\" >&2\n\
         \x20   exit 1\n\
         \x20 fi\n\
         done\n\n\
         srun {}\n",
        ask.start
    );
    let name = format!("{}.sbatch", ask.name);
    Written {
        command: Some(format!("sbatch {name}")),
        files: vec![File {
            name,
            text: t,
            what: "Slurm's batch script".into(),
        }],
        notes,
    }
}
