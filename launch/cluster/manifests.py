"""Manifests and commands that start a training job: a GKE JobSet, an xpk command, Cloud TPU queued resources."""

import dataclasses
import shlex

from launch.cluster.slices import Slice

RUNS = "/runs"  # where the bucket is mounted on every host
COMPILED = f"JAX_COMPILATION_CACHE_DIR={RUNS}/compiled"  # containers are new after a restart; compiling takes minutes
SAVE_SECONDS = 600  # between SIGTERM and SIGKILL, enough to write a checkpoint of the 14B
STOPPED, FAILED = 143, 1  # exit codes of launch.train: saved before its end; an error, such as another host's death


@dataclasses.dataclass(frozen=True)
class Job:
    """A training job: what is to run, and where."""

    name: str
    slice: Slice
    slices: int
    command: tuple[str, ...]  # on every host
    image: str
    bucket: str  # with hierarchical namespace: a checkpoint is committed by renaming its folder
    restarts: int = 20  # how often all hosts restart after a failure, each time from the checkpoint


def jobset(job: Job) -> dict:
    """Makes the manifest (jobset.x-k8s.io/v1alpha2). GKE tells each host its slice and its number there.

    A pod that was disrupted, or saved because it was asked to stop, fails its Job with the reason PodFailurePolicy, and
    such restarts do not count. Loader processes hand batches over in /dev/shm, of which a container has 64 MiB alone.
    """
    container = {
        "name": "train", "image": job.image, "command": list(job.command),
        "ports": [{"containerPort": 8471}, {"containerPort": 8431}],
        "resources": {"limits": {"google.com/tpu": job.slice.cloud.host_chips}},
        "securityContext": {"privileged": False},
        "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "shm", "mountPath": "/dev/shm"}]}
    volume = {"name": "runs", "csi": {"driver": "gcsfuse.csi.storage.gke.io",
                                      "volumeAttributes": {"bucketName": job.bucket, "mountOptions": "implicit-dirs"}}}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": SAVE_SECONDS,
           "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": job.slice.cloud.gke,
                            "cloud.google.com/gke-tpu-topology": job.slice.shape},
           "volumes": [volume, {"name": "shm", "emptyDir": {"medium": "Memory"}}], "containers": [container]}
    mounted = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    stopped = [{"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [STOPPED]}},
               {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    template = {"spec": {"parallelism": job.slice.hosts, "completions": job.slice.hosts, "completionMode": "Indexed",
                         "backoffLimit": 0, "podFailurePolicy": {"rules": stopped},
                         "template": {"metadata": mounted, "spec": pod}}}
    uncounted = {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": {"name": job.name,
                     "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}},
        "spec": {"failurePolicy": {"maxRestarts": job.restarts, "rules": [uncounted]},
                 "replicatedJobs": [{"name": "slice", "replicas": job.slices, "template": template}]}}


def xpk(job: Job, cluster: str) -> str:
    """Makes the command for xpk. Its clusters have storages of their own: the bucket must be one, mounted at RUNS. By
    itself it restarts after exit codes 42 and 127 to 255 alone."""
    return shlex.join(["xpk", "workload", "create", f"--workload={job.name}", f"--cluster={cluster}",
                       f"--tpu-type={job.slice.accelerator_type}", f"--num-slices={job.slices}",
                       f"--docker-image={job.image}", f"--max-restarts={job.restarts}",
                       f"--restart-on-exit-codes={FAILED}", f"--termination-grace-period-seconds={SAVE_SECONDS}",
                       f"--command={shlex.join(job.command)}"])


def queued_resources(job: Job, project: str, zone: str, spot: bool) -> list[str]:
    """Makes the commands that ask for the slices, start the container on every host, and give the slices back.

    Docker starts a container again until the run has reached its end; its log is followed, whoever stops looking.
    """
    where = [f"--project={project}", f"--zone={zone}"]
    nodes = [f"--node-id={job.name}"] if job.slices == 1 else [f"--node-count={job.slices}",
                                                              f"--node-prefix={job.name}"]
    create = ["gcloud", "compute", "tpus", "queued-resources", "create", job.name, *where, *nodes,
              f"--accelerator-type={job.slice.accelerator_type}", f"--runtime-version={job.slice.cloud.runtime}",
              *(["--spot"] if spot else [])]
    mount = f"sudo mkdir -p {RUNS} && sudo gcsfuse --implicit-dirs -o allow_other {shlex.quote(job.bucket)} {RUNS}"
    docker = (f"docker run --detach --name={job.name} --restart=on-failure:{job.restarts} "
              f"--stop-timeout={SAVE_SECONDS} --privileged --net=host --ipc=host -v {RUNS}:{RUNS}")
    run = (f"{mount} && {docker} {shlex.quote(job.image)} {shlex.join(job.command)} && "
           f"docker logs --follow {job.name}")
    names = [job.name] if job.slices == 1 else [f"{job.name}-{i}" for i in range(job.slices)]
    start = [["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, *where, "--worker=all", f"--command={run}"]
             for name in names]
    delete = ["gcloud", "compute", "tpus", "queued-resources", "delete", job.name, *where, "--force"]
    # Hosts of several slices must start together: each command waits for its own slice.
    return [shlex.join(create), *(shlex.join(s) + (" &" if len(start) > 1 else "") for s in start), shlex.join(delete)]
