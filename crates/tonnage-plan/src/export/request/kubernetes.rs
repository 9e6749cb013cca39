//! Kubernetes' Job (batch/v1), ready for Kueue: suspended and with its queue's label (kubernetes-sigs/kueue, "Run A Kubernetes Job").
//!
//! The card is asked for by the label that NVIDIA's feature discovery gives nodes, `nvidia.com/gpu.product`: the driver's name with hyphens
//! (NVIDIA/k8s-device-plugin, `internal/lm/resource.go`). Where the catalog has no such name, by the label of its memory in MiB. The
//! memory of the host is a request and no limit: what the estimate knows of it is a floor.

use super::{Ask, driver_names, note, quoted};
use crate::export::{File, Options, Written};
use std::fmt::Write;
use tonnage_catalog::gpu::Vendor;
use tonnage_core::{Diagnostic, Job};

/// Kueue's label of a job's queue.
pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";

/// `--to kubernetes`
pub fn write(job: &Job, options: &Options) -> Result<Written, Vec<Diagnostic>> {
    Ask::of_job(job, options).map(of)
}

/// The queue, and a note where it is the default.
pub(super) fn queue(ask: &mut Ask) -> String {
    ask.queue.clone().unwrap_or_else(|| {
        ask.notes.push(note(
            "the queue is not given: `user-queue` stands for it",
            "--queue NAME gives it; without Kueue, leave the label out and set suspend to false",
        ));
        "user-queue".into()
    })
}

/// The pod's specification, indented by `by` spaces: node, card and memory of one container.
pub(super) fn pod(
    ask: &Ask,
    image: &str,
    container: &str,
    start: Option<&str>,
    by: usize,
) -> String {
    let resource = match ask.gpu.vendor {
        Vendor::Amd => "amd.com/gpu",
        _ => "nvidia.com/gpu",
    };
    let mut l: Vec<String> = Vec::new();
    let products = match (&ask.gpu_type, ask.gpu.vendor) {
        (Some(t), _) => vec![t.clone()],
        (None, Vendor::Nvidia) => driver_names(&ask.gpu, "-"),
        _ => vec![],
    };
    if ask.gpu.vendor == Vendor::Nvidia || !products.is_empty() {
        l.extend(
            [
                "affinity:",
                "  nodeAffinity:",
                "    requiredDuringSchedulingIgnoredDuringExecution:",
                "      nodeSelectorTerms:",
                "      - matchExpressions:",
            ]
            .map(String::from),
        );
        if products.is_empty() {
            // Gt is above, not from
            let mib = (ask.device.0 >> 20).to_string();
            l.push("        - key: nvidia.com/gpu.memory".into());
            l.push("          operator: Gt".into());
            l.push(format!("          values: [{}]", quoted(&mib)));
        } else {
            let all: Vec<String> = products.iter().map(|p| quoted(p)).collect();
            l.push("        - key: nvidia.com/gpu.product".into());
            l.push("          operator: In".into());
            l.push(format!("          values: [{}]", all.join(", ")));
        }
    }
    l.push("containers:".into());
    l.push(format!("- name: {container}"));
    l.push(format!("  image: {}", quoted(image)));
    if let Some(s) = start {
        l.push(format!(
            "  command: [\"/bin/sh\", \"-c\", {}]",
            quoted(&format!("exec {s}"))
        ));
    }
    l.push("  resources:".into());
    l.push("    requests:".into());
    l.push(format!("      {resource}: \"{}\"", ask.gpus));
    if let Some(n) = ask.host_floor() {
        l.push(format!("      memory: \"{}Mi\"", n.div_ceil(1 << 20)));
    }
    // cards cannot be asked for beyond a limit: both are the same
    l.push("    limits:".into());
    l.push(format!("      {resource}: \"{}\"", ask.gpus));
    let pad = " ".repeat(by);
    l.iter().map(|x| format!("{pad}{x}\n")).collect()
}

/// The Job of a request.
pub fn of(mut ask: Ask) -> Written {
    let image = ask.image_or("pytorch/pytorch:latest");
    let queue = queue(&mut ask);
    let mut t = ask.comments();
    let _ = write!(
        t,
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {}\n  labels:\n    {QUEUE}: {}\nspec:\n  suspend: true\n  parallelism: 1\n  completions: 1\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n{}",
        quoted(&ask.name),
        quoted(&queue),
        pod(&ask, &image, "main", Some(&ask.start), 6)
    );
    let name = format!("{}.job.yaml", ask.name);
    Written {
        command: Some(format!("kubectl create -f {name}")),
        files: vec![File {
            name,
            text: t,
            what: "Kubernetes' Job".into(),
        }],
        notes: ask.notes,
    }
}
