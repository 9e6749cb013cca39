//! Ray's job: KubeRay's RayJob (ray-project/kuberay, `ray.io/v1`, `helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml`), ready for Kueue,
//! with a cluster of its own: a head without a card and one worker with the cards. On a cluster that runs already the same is
//! `ray job submit` (the printed command).

use super::kubernetes::{QUEUE, pod, queue};
use super::{Ask, quoted};
use crate::export::{File, Options, Written};
use std::fmt::Write;
use tonnage_core::{Diagnostic, Job};

/// The release whose image is the default.
const RAY: &str = "2.52.0";

/// `--to ray`
pub fn write(job: &Job, options: &Options) -> Result<Written, Vec<Diagnostic>> {
    Ask::of_job(job, options).map(of)
}

/// The RayJob of a request.
pub fn of(mut ask: Ask) -> Written {
    let image = ask.image_or(&format!("rayproject/ray:{RAY}-gpu"));
    let queue = queue(&mut ask);
    let mut t = ask.comments();
    let _ = writeln!(
        t,
        "# on a running cluster: ray job submit --entrypoint-num-gpus {} -- {}",
        ask.gpus,
        ask.start.replace('\n', " ")
    );
    let _ = write!(
        t,
        "apiVersion: ray.io/v1\nkind: RayJob\nmetadata:\n  name: {}\n  labels:\n    {QUEUE}: {}\nspec:\n  suspend: true\n  shutdownAfterJobFinishes: true\n  entrypoint: {}\n  entrypointNumGpus: {}\n  rayClusterSpec:\n    rayVersion: \"{RAY}\"\n    headGroupSpec:\n      rayStartParams:\n        num-cpus: \"0\"\n      template:\n        spec:\n          containers:\n          - name: ray-head\n            image: {}\n            resources:\n              requests:\n                cpu: \"1\"\n                memory: \"2Gi\"\n    workerGroupSpecs:\n    - groupName: gpu\n      replicas: 1\n      minReplicas: 1\n      maxReplicas: 1\n      rayStartParams: {{}}\n      template:\n        spec:\n{}",
        quoted(&ask.name),
        quoted(&queue),
        quoted(&ask.start),
        ask.gpus,
        quoted(&image),
        pod(&ask, &image, "ray-worker", None, 10)
    );
    let name = format!("{}.rayjob.yaml", ask.name);
    Written {
        command: Some(format!("kubectl create -f {name}")),
        files: vec![File {
            name,
            text: t,
            what: "KubeRay's RayJob".into(),
        }],
        notes: ask.notes,
    }
}
