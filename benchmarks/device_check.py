"""Everything that wants a GPU's minutes, in the order of what is worth most; a JSON line per step.

    python -m benchmarks.device_check --pack=.carry                  # here: what a bare machine lacks, for 64 MiB
    python -m benchmarks.device_check --out=DIR --minutes=7          # there; again with --minutes=5 goes on
    python -m benchmarks.device_check --out=DIR --rehearse           # anywhere: all of it at tiny size

Each step is a process with a time limit: one that fails or hangs ends alone. Its line is in DIR/device_check.jsonl, and
on the output, as soon as it ends, so that what was measured stays when the machine is taken away. A step that DIR holds
already is not run again. --pack writes wheels and recordings; there `pip install --no-index --no-deps --target=SITE
.carry/*.whl` comes first, with SITE on PYTHONPATH.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from absl import app, flags

OUT = flags.DEFINE_string("out", "", "directory of the lines and logs")
MINUTES = flags.DEFINE_float("minutes", 7.0, "after which no step begins, and the one that runs ends", lower_bound=0.1)
REHEARSE = flags.DEFINE_bool("rehearse", False, "tiny sizes")
ONLY = flags.DEFINE_list("only", [], "names of steps; default: all")
PACK = flags.DEFINE_string("pack", "", "writes what is carried into this folder, and runs nothing")
CARRIED = flags.DEFINE_string("carried", ".carry", "where what was packed lies")

# Of the lock; a machine with JAX, PyTorch and their friends lacks them. PyAV (36 MB) does not fit beside them.
WHEELS = ("array_record", "diffusers", "dm-tree", "docstring_parser", "etils", "google-crc32c",
          "googleapis-common-protos", "grain", "immutabledict", "importlib_resources", "ml_collections", "portpicker",
          "promise", "simple-parsing", "tensorflow-datasets", "tensorflow-metadata", "termcolor", "toml")
IMPORTED = ("jax", "flax", "torch", "grain", "array_record", "ml_collections", "portpicker", "tensorflow_datasets",
            "diffusers")
RECORDINGS = "pusht"  # episodes without clips: those are video files, and want PyAV
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # float32 without TF32
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch runs in the same process
TINY = {"TORCHDYNAMO_DISABLE": "1",  # compiling for a CPU is no rehearsal of Triton
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}


class Step(NamedTuple):
    """One command."""

    name: str
    seconds: int  # its limit
    module: str
    real: str  # arguments
    tiny: str  # those of a rehearsal
    environment: Mapping[str, str] = MappingProxyType({})


def golden(name: str, runtime: str) -> Step:
    """The comparison with one file of the reference implementation's numbers."""
    arguments = f"--golden=tests/goldens/{name}_tiny.npz --runtime={runtime}"
    return Step(f"golden {name} {runtime}", 60, "launch.parity", arguments, arguments, EXACT)


def slice_of(config: str, layers: int, batch: int, seconds: int, more: str = "") -> Step:
    """The train step at full width and some layers."""
    return Step(f"{config} {layers} layers", seconds, "benchmarks.full_width",
                f"--config=configs/{config}.py --config.model.num_layers={layers} --config.model.attention=cudnn "
                f"--config.train.global_batch_size={batch} --repeats=10 {more}",
                f"--config=configs/{config}.py:debug --config.model.num_layers=2 --config.train.global_batch_size=1 "
                f"--config.train.compute_dtype=float32 --config.layout.height=32 --config.layout.width=32 "
                f"--repeats=1 {more}", SHARED)


QUICKSTART = ("--config=configs/quickstart.py:lingbot_vla_debug --config.data.datasets.pusht.path={carried}/pusht "
              "--workdir={out}/quickstart")
BESIDE_TORCH = "--reference=benchmarks/torch_step.py"
STEPS = (
    Step("rates", 60, "benchmarks.rates", "", "--side=64 --mib=1 --repeats=1"),
    Step("quickstart", 120, "launch.quickstart", QUICKSTART, QUICKSTART, EXACT),
    *(golden(name, "jax") for name in ("dreamzero_i2v", "lingbot_va", "lingbot_vla")),
    golden("dreamzero_i2v", "torch"),
    Step("cudnn", 90, "benchmarks.attention", "--kernels=cudnn,blockwise --heads=4",
         "--arm=debug --shapes=5b --kernels=blockwise --heads=1 --repeats=1"),
    slice_of("dreamzero_14b", 2, 1, 120, BESIDE_TORCH),
    slice_of("dreamzero_14b", 4, 1, 120, BESIDE_TORCH),
    slice_of("dreamzero_5b", 20, 8, 120),
    slice_of("lingbot_va_5b", 20, 4, 120),
    Step("rollout", 120, "benchmarks.rollout",
         "--config=configs/dreamzero_5b.py --config.model.attention=cudnn --config.model.num_layers=8 --repeats=5 "
         "--reference=benchmarks/torch_rollout.py",
         "--config=configs/dreamzero_5b.py:debug --config.train.compute_dtype=float32 --steps=1 --repeats=1 "
         "--config.layout.height=32 --config.layout.width=32 --config.model.num_layers=2 --guidance=1 "
         "--reference=benchmarks/torch_rollout.py", SHARED),
    Step("vae", 120, "benchmarks.vae", "--dtype=bfloat16 --frames=33 --chunk=2", "--frames=1 --height=16 --width=16 "
         "--repeats=1", SHARED),
    Step("learning", 300, "launch.train", "--config=configs/quickstart.py:lingbot_vla "
         "--config.data.datasets.pusht.path={carried}/pusht --workdir={out}/learning",
         "--config=configs/quickstart.py:lingbot_vla_debug --config.data.datasets.pusht.path={carried}/pusht "
         "--config.train.steps=2 --workdir={out}/learning"),
)


def run(step: Step, out: Path, seconds: float) -> dict:
    """Runs a step for at most so many seconds; returns its line."""
    arguments = (step.tiny if REHEARSE.value else step.real).format(out=out, carried=CARRIED.value).split()
    began = time.monotonic()
    with (out / "device_check.log").open("ab") as log:
        log.write(f"\n== {step.name}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen([sys.executable, "-m", step.module, *arguments], stdout=subprocess.PIPE, stderr=log,
                                   start_new_session=True,
                                   env=os.environ | step.environment | (TINY if REHEARSE.value else {}))
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
        log.write(printed)
    return {"step": step.name, "seconds": round(time.monotonic() - began, 1), "exit": process.returncode,
            "date": time.strftime("%Y-%m-%d"), "found": objects(printed.decode(errors="replace")),
            "said": "" if process.returncode == 0 else tail(out / "device_check.log", start)}


def objects(printed: str) -> list[dict]:
    """The JSON objects among what a command printed: one a line, or one over all lines."""
    found = []
    for text in (printed, *printed.splitlines()):
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return [x for i, x in enumerate(found) if isinstance(x, dict) and x not in found[:i]]


def tail(log: Path, start: int) -> str:
    """The end of what the log holds from a place on, for what went wrong."""
    return log.read_bytes()[start:][-2000:].decode(errors="replace")


def check(out: Path, minutes: float) -> list[dict]:
    """Runs all steps that `out` does not hold, as long as there is time; returns their lines."""
    out.mkdir(parents=True, exist_ok=True)
    lines, end = out / "device_check.jsonl", time.monotonic() + 60 * minutes
    known = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done, made = {line["step"] for line in known if line["exit"] == 0}, []
    for step in STEPS:
        left = end - time.monotonic()
        if step.name in done or (ONLY.value and step.name not in ONLY.value) or left < 1:
            continue
        made.append(run(step, out, min(step.seconds * (10 if REHEARSE.value else 1), left)))
        with lines.open("a") as file:
            print(json.dumps(made[-1]), file=file, flush=True)
            os.fsync(file.fileno())
        print(json.dumps(made[-1]), flush=True)
    return made


def lacking() -> list[str]:
    """What cannot be imported here."""
    return [name for name in IMPORTED if importlib.util.find_spec(name) is None]


def pack(folder: Path) -> None:
    """Writes wheels of this Python's lock, and recordings. Raises CalledProcessError where one cannot be had."""
    lock = Path("requirements-py312.lock").read_text().splitlines()
    wanted = [line for line in lock if line.partition("==")[0].replace("-", "_") in
              {name.replace("-", "_") for name in WHEELS}]
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, *wanted], check=True)
    from data_pipelines.simulators.pusht import dataset
    from data_pipelines.simulators.recorder import write_rlds
    write_rlds(folder / RECORDINGS, "pusht", 64, (2, 2), (dataset.episode_steps((0, 0, i), 64, "slide")[1]
                                                     for i in range(24)))


def main(_) -> None:
    """Runs the command; fails where a step failed."""
    if PACK.value:
        return pack(Path(PACK.value))
    if not OUT.value:
        sys.exit("device_check: --out=DIR says where the lines go")
    if missing := lacking():
        sys.exit(f"device_check: {', '.join(missing)} cannot be imported: carry their wheels (--pack) and put the "
                 "folder that they are installed in on PYTHONPATH")
    failed = [line["step"] for line in check(Path(OUT.value).resolve(), MINUTES.value) if line["exit"]]
    if failed:
        sys.exit(f"device_check: failed: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
