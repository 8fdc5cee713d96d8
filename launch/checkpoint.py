"""Looks into a run's checkpoints.

    python -m launch.checkpoint list WORKDIR                       whole checkpoints, oldest first
    python -m launch.checkpoint digest WORKDIR [--step=N]          one sha256 per component
    python -m launch.checkpoint diff WORKDIR [OTHER] [--step=N] [--other_step=M]
                                                                   what differs; exit code 1 if anything does

Without --step the newest checkpoint is meant; OTHER is WORKDIR by default. Arrays are read one at a time, and
digests do not depend on the mesh that wrote them.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from launch.setup import flags as launch_flags
from world_model.differences import differences
from world_model.training import checkpoint, checkpoint_reader

STEP = flags.DEFINE_integer("step", None, "step of WORKDIR's checkpoint; default: the newest")
OTHER_STEP = flags.DEFINE_integer("other_step", None, "step of OTHER's checkpoint; default: as --step")


def digest(workdir: Path | str, step: int | None = None) -> dict[str, str]:
    """{component: sha256 in hex}: params, opt, ema, step, key, frozen, data, config and statistics."""
    directory = Path(workdir) / "checkpoints"
    step = checkpoint.locate(directory, step)
    hashes: dict = {}
    for name, array in _arrays(directory, step):
        component = hashes.setdefault(name.split(".")[0], hashlib.sha256())
        component.update(f"{name} {array.dtype.name} {array.shape}".encode())
        component.update(np.ascontiguousarray(array).data)
    for name, value in _values(directory, step).items():
        hashes[name] = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    return {name: found.hexdigest() for name, found in hashes.items()}


def diff(workdir: Path | str, other: Path | str, step: int | None = None,
         other_step: int | None = None) -> list[str]:
    """One sentence per difference of two checkpoints, [] if they are equal bit for bit."""
    here, there = Path(workdir) / "checkpoints", Path(other) / "checkpoints"
    step, other_step = checkpoint.locate(here, step), checkpoint.locate(there, other_step)
    first, second = _table(here, step), _table(there, other_step)
    sides = (f"{workdir} at {step}", f"{other} at {other_step}")
    found = list(differences(first, second, sides))
    same = {name for name in first if first[name] == second.get(name)}
    pairs = zip(_arrays(here, step, same), _arrays(there, other_step, same))
    found += [sentence for (name, a), (_, b) in pairs if (sentence := _compare(name, a, b))]
    return found + list(differences(_values(here, step), _values(there, other_step), sides))


def _compare(name: str, a: np.ndarray, b: np.ndarray) -> str | None:
    if a.tobytes() == b.tobytes():
        return None
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return f"{name}: max abs difference {apart.max():.6g}, {np.count_nonzero(apart)} of {apart.size} elements"


def _arrays(directory: Path, step: int, names=None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the named arrays, all for None; sorted within state and frozen."""
    names = _table(directory, step) if names is None else names
    yield from checkpoint_reader.read_arrays(directory, step, lambda name: name in names)
    frozen = checkpoint.flatten({"frozen": checkpoint_reader.read_frozen(directory, step)})
    yield from ((name, array) for name, array in sorted(frozen.items()) if name in names)


def _table(directory: Path, step: int) -> dict[str, list]:
    meta = checkpoint.read_json(directory, step, "meta")
    return meta["arrays"] | checkpoint.flatten({"frozen": meta["frozen"]})


def _values(directory: Path, step: int) -> dict:
    meta = checkpoint.read_json(directory, step, "meta")
    return {"data": checkpoint.read_json(directory, step, "data"), "config": meta["config"],
            "statistics": meta["statistics"]}


def main(argv: list[str]) -> int:
    commands = {"list": 1, "digest": 1, "diff": 2}
    if len(argv) < 3 or argv[1] not in commands or len(argv) > 2 + commands[argv[1]]:
        sys.exit(__doc__)
    command, workdir, *other = argv[1:]
    try:
        if command == "list":
            lines = [str(step) for step in checkpoint.steps(Path(workdir) / "checkpoints")]
        elif command == "digest":
            lines = [f"{component} {value}" for component, value in digest(workdir, STEP.value).items()]
        else:
            second = OTHER_STEP.value if OTHER_STEP.value is not None else STEP.value
            lines = diff(workdir, other[0] if other else workdir, STEP.value, second)
    except checkpoint.CheckpointError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines) if lines else {"list": "no whole checkpoint", "diff": "equal"}[command])
    return int(command == "diff" and bool(lines))


if __name__ == "__main__":
    launch_flags.run(main, arguments=True)
