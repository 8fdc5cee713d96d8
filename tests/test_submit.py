"""launch/submit.py: what would be started on TPU slices."""

import subprocess
import sys
import types

import kubernetes_validate
import pytest
import yaml

from launch import submit, train
from launch.cluster import manifests
from launch.cluster.slices import Slice

COMMAND = ["python", "-m", "launch.train", "--config=configs/dreamzero_14b.py", "--workdir=/runs/run"]


@pytest.mark.parametrize("topology, hosts, accelerator", [
    ("v5p:4x4x4", 16, "v5p-128"), ("v6e:16x16", 64, "v6e-256"), ("v5e:16x16", 64, "v5litepod-256")])
def test_slices_have_the_clouds_names(topology, hosts, accelerator):
    found = Slice.parse(topology)
    assert (found.hosts, found.accelerator_type) == (hosts, accelerator)


@pytest.mark.parametrize("topology, sentence", [
    ("v9:4x4", "'v9' is no chip; there are v5e, v5p"), ("v5p:16x16", "has 3 sizes, as in v5p:4x4x4"),
    ("v6e:4x", "has 2 sizes"), ("v6e:1x1", "1 chips are no whole hosts of 4")])
def test_slices_that_are_none(topology, sentence):
    with pytest.raises(ValueError, match=sentence):
        Slice.parse(topology)


def test_a_jobset_runs_one_pod_on_every_host_of_every_slice():
    manifest = manifests.jobset(submit.make_job("run-1", "v5p:4x4x4", 2, "registry/wamax:1", "bucket", COMMAND))
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["replicas"] == 2
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 16
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
                                   "cloud.google.com/gke-tpu-topology": "4x4x4"}
    assert pod["containers"][0]["command"] == ["env", "JAX_COMPILATION_CACHE_DIR=/runs/compiled", *COMMAND]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["terminationGracePeriodSeconds"] >= 300  # SIGTERM saves
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 20, "rules": [
        {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}]}
    stopped, disrupted = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [train.STOPPED] and stopped["action"] == disrupted["action"] == "FailJob"
    (volume, memory), (mount, shared) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert memory == {"name": shared["name"], "emptyDir": {"medium": "Memory"}} and shared["mountPath"] == "/dev/shm"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket" and mount["name"] == volume["name"]
    assert COMMAND[-1].startswith(f"--workdir={mount['mountPath']}/")
    assert job["template"]["spec"]["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_what_a_jobset_starts_is_a_job_by_kubernetes_own_schema():
    """The schema of JobSet itself is in no package; of what it wraps, a Job of pods, it is."""
    manifest = manifests.jobset(submit.make_job("run-1", "v5p:4x4x4", 2, "registry/wamax:1", "bucket", COMMAND))
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": manifest["metadata"], **replicated["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="'port' was unexpected"):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_commands_keep_what_they_quote():
    job = submit.make_job("run-1", "v6e:16x16", 1, "registry/wamax:1", "bucket", [*COMMAND, "--config.optimizer.no_decay=a b$"])
    xpk = manifests.xpk(job, "cluster")
    assert "'--command=env JAX_COMPILATION_CACHE_DIR=/runs/compiled python -m launch.train" in xpk
    assert "--restart-on-exit-codes=1" in xpk
    assert "--termination-grace-period-seconds=600" in xpk
    create, start, delete = manifests.queued_resources(job, "project", "us-east5-a", spot=True)
    assert "--accelerator-type=v6e-256" in create and "--spot" in create and "--node-id=run-1" in create
    assert "gcsfuse --implicit-dirs -o allow_other bucket /runs && docker run" in start and "-v /runs:/runs" in start
    assert "--ipc=host" in start
    assert "--restart=on-failure:20 --stop-timeout=600" in start and "--rm" not in start
    assert "--worker=all" in start and "no_decay" in start and "delete run-1" in delete


def test_names_that_clusters_refuse():
    for name in ("Run", "1run", "a" * 41, "run_1", "run-"):
        with pytest.raises(ValueError, match="--name="):
            submit.make_job(name, "v5p:4x4x4", 1, "image", "bucket", COMMAND)


@pytest.mark.parametrize("changed, sentence", [
    ({"image": None}, "--image is missing"), ({"by": "xpk"}, "--cluster is missing, which --by=xpk needs")])
def test_what_is_missing_is_named(changed, sentence):
    args = types.SimpleNamespace(topology="v5p:4x4x4", slices=1, bucket="b", image="i", by="jobset", cluster="",
                                 project="", zone="")
    vars(args).update(changed)
    with pytest.raises(ValueError, match=sentence):
        submit.job_of(args, "run", COMMAND, "/runs/run")
    with pytest.raises(ValueError, match="/tmp/run is no folder below /runs"):
        vars(args).update(image="i", by="jobset")
        submit.job_of(args, "run", COMMAND, "/tmp/run")
    with pytest.raises(ValueError, match=r"/runs/\.\./run is no folder below /runs"):
        submit.job_of(args, "run", COMMAND, "/runs/../run")
    with pytest.raises(ValueError, match="--bucket=gs://b: the name of a bucket alone"):
        submit.make_job("run", "v5p:4x4x4", 1, "image", "gs://b", COMMAND)


def test_a_dry_run_prints_the_manifest_and_starts_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "launch.submit", "--config=configs/recipes/droid_14b.py", "--topology=v5p:4x4x4",
         "--config.train.global_batch_size=64", "--workdir=/runs/run", "--bucket=bucket", "--image=registry/wamax:1",
         "--dry-run"],
        capture_output=True, text=True, check=True)
    assert done.stdout.startswith("# kubectl apply -f -\n")
    command = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"][0]["command"]
    assert command[4:] == ["launch.train", "--config=configs/recipes/droid_14b.py",
                           "--config.train.global_batch_size=64", "--workdir=/runs/run"]


@pytest.mark.parametrize("config, sentence", [
    (["configs/dreamzero_14b.py"], "configs/dreamzero_14b.py: data.datasets is empty"),
    (["configs/recipes/droid_14b.py", "--config.train.steps=0"], "train.steps = 0: expected at least 1")])
def test_what_could_not_train_is_not_booked(config, sentence):
    done = subprocess.run(
        [sys.executable, "-m", "launch.submit", f"--config={config[0]}", *config[1:], "--topology=v5p:4x4x4",
         "--workdir=/runs/run", "--bucket=bucket", "--image=registry/wamax:1", "--dry-run"],
        capture_output=True, text=True, check=False)
    assert done.returncode and not done.stdout and done.stderr.startswith(f"submit: {sentence}")
