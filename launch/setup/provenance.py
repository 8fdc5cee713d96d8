"""What made a result: the config as JSON and the version of this code."""

import contextlib
import hashlib
import importlib.metadata
import json
import subprocess
from pathlib import Path

import jax

from data_pipelines.robots import embodiments
from data_pipelines.statistics.stored import save_statistics
from data_pipelines.storage import files
from launch.setup import mixture
from world_model import kinds
from world_model.parallel import sharding
from world_model.training.checkpoint import flatten

# Sections and keys of a config that change no result, or that a slice chooses for itself.
WITHOUT_EFFECT = ("mesh", "hosts", "log", "checkpoint", "data.workers", "data.prefetch", "train.log_every",
                  "train.remat", "evaluate.every", "evaluate.rollout_every")


def settings(config: dict) -> dict:
    """{dotted key: value} of all that a result depends on; config: as JSON."""
    return {key: value for key, value in flatten(config).items()
            if not any(f"{key}.".startswith(f"{name}.") for name in WITHOUT_EFFECT)}


def config_hash(config: dict, *more) -> str:
    """16 hexadecimal digits of what a result depends on: the config's settings, and `more`, JSON values."""
    return hashlib.sha256(json.dumps([settings(config), *more], sort_keys=True).encode()).hexdigest()[:16]


def as_json(config) -> dict:
    """The config as plain JSON values, with the robots that it, or its file, has registered: `from_json` knows them."""
    used = {entry.embodiment for entry in mixture.entries(config.data.datasets).values() if "embodiment" in entry}
    own = embodiments.registered_elsewhere(used)
    return kinds.parse(config.to_json(), kinds.anything, "config") | ({"robots": own} if own else {})


def from_json(saved: dict) -> dict:
    """The config's own values; its robots are registered. Raises ValueError where one is not to be read."""
    embodiments.register_saved(saved.get("robots", {}))
    return {name: value for name, value in saved.items() if name != "robots"}


def write_run(workdir: Path, config, statistics: dict, arrays: str) -> None:
    """Writes WORKDIR's config.json, statistics.json and arrays.txt: what a run is, from its start on."""
    files.write_text(f"{workdir}/config.json", json.dumps(as_json(config), indent=1) + "\n")
    files.write_text(f"{workdir}/arrays.txt", arrays + "\n")
    save_statistics(statistics, f"{workdir}/statistics.json")


def code_version() -> str:
    """The release, and the commit where there are one and git."""
    commit = ""
    with contextlib.suppress(FileNotFoundError):
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                                capture_output=True, check=False).stdout.strip()
    try:
        release = importlib.metadata.version("wamax")
    except importlib.metadata.PackageNotFoundError:
        release = "uninstalled"
    return f"{release} {commit}".strip()


def introduce(config, workdir: Path, mesh, target: dict, start: int, statistics: dict) -> str:
    """Writes WORKDIR/config.json, statistics.json and arrays.txt (where every parameter lies); says what will run."""
    arrays = sharding.describe(target["params"])
    if jax.process_index() == 0:
        write_run(workdir, config, statistics, arrays)
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    total, size, share = arrays.splitlines()[-1].rsplit(maxsplit=2)
    return (f"parameters: {total.strip()}, {size} MiB, {share} MiB per device ({workdir / 'arrays.txt'})\n"
            f"{config.model.family}: dim {config.model.dim}, {config.model.num_layers} layers, "
            f"{config.model.num_heads} heads; steps {start}..{config.train.steps} of "
            f"{config.train.global_batch_size} samples in {config.train.compute_dtype}\n"
            f"mesh {shape} on {mesh.size} x {mesh.devices.flat[0].device_kind}; workdir {workdir}")
