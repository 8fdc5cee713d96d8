"""Cycles that the attention kernels take by libtpu's own schedule, without a TPU; prints a JSON line per kernel.

    JAX_PLATFORMS=cpu python -m benchmarks.kernel_schedule --topology=v5p:2x2x1 [--shape=14b] [--tile=896] [--keep=DIR]

One layer's attention is compiled for the chip, and libtpu writes down the instruction bundles of each kernel. A bundle
takes a cycle unless a matrix unit that it feeds is still busy: `cycles_per_tile` counts both. A kernel is a loop over
pairs of tiles: `cycles_per_head` adds what every round and every row of tiles takes beside. Waits for memory are not
counted, because a tile's operands are fetched while the one before is computed. `efficiency` is the products' own
cycles at the chip's peak over these; world_model/analysis/chips.py holds what was found. The first line is the
compiler's estimate of everything outside the kernels, in cycles per head.
"""

import collections
import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import SingleDeviceSharding

from benchmarks.attention import CONFIGS
from launch import plan
from launch.setup.experiment import Experiment
from world_model.analysis.chips import CHIPS
from world_model.analysis.program import KERNEL_PRODUCTS, Program
from world_model.attention import flash
from world_model.attention.packing import PackedOrder, choose_tile, make_tiles
from world_model.attention.tiles import FULL, MASKED, Tiles
from world_model.families.dreamzero.layout import make_sequence

TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x2x1", "a chip and a slice shape")
SHAPE = flags.DEFINE_enum("shape", "14b", list(CONFIGS), "the config whose shape is compiled")
TILE = flags.DEFINE_integer("tile", None, "tokens on a side of a tile; default: the model's choice")
KEEP = flags.DEFINE_string("keep", None, "folder for what libtpu writes; default: a temporary one")

BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s.*?:")
MATMUL = re.compile(r"(vmatmul[\w.]*?)(?:\[\d+\])?\.(mxu\d)")
SKIP = re.compile(r"sbr\.rel \(!?%p\d+\w*\) target = \$region(\d+)")
EMPTY = re.compile(r"Start/End empty region (\d+)")
STEP_SLACK = 2  # rounds that a pipelined loop runs beside its steps
# Rows a cycle that a matrix unit takes: 128 wide on v5e and v5p, 256 on v6e and v7x, where libtpu lets instructions of
# 16 rows follow each other after 8 bundles in a plain product of 8192.
ROWS_A_CYCLE = {"v5e": 1, "v5p": 1, "v6e": 2, "v7x": 2}
CORES = {"v5p": 2}  # cores of a device that may share its heads; other chips have one


@dataclasses.dataclass
class Bundle:
    """Instruction bundle of a kernel's loop: what it asks of the matrix units, and the branches that may skip it."""

    address: int
    matmuls: list[tuple[str, str]]  # (instruction, unit)
    guards: list[int]  # addresses of the branches that jump over it


def read_loop(text: str) -> tuple[list[Bundle], int]:
    """Reads (bundles of the loop over tiles, its rounds). Raises ValueError where there is no such loop."""
    bundles, open_skips, rounds = [], {}, 0
    started = False
    for line in text.splitlines():
        if not (found := BUNDLE.match(line)):
            continue
        for region in EMPTY.findall(line):
            open_skips.pop(region, None)
        started = started or bool(re.match(r"\s*\S+\s+LB:", line))
        if started:
            bundles.append(Bundle(int(found.group(1), 16), MATMUL.findall(line), list(open_skips.values())))
        if skip := SKIP.search(line):
            open_skips[skip.group(1)] = bundles[-1].address if bundles else 0
        if exits := re.search(r"(\d+) /\* loop exit test", line):
            rounds = int(exits.group(1))
        if rounds and "sbr.rel" in line:
            return bundles, rounds
    raise ValueError("no loop over tiles in what libtpu wrote: another version than 0.0.42?")


def cycles(bundles: list[Bundle], chip: str) -> float:
    """Counts the cycles of bundles one after another: one each, and waits for matrix units that are busy."""
    now, free = 0.0, collections.Counter()
    for bundle in bundles:
        now += 1
        for instruction, unit in bundle.matmuls:
            now = max(now, free[unit])
            free[unit] = now + rows_of(instruction) / ROWS_A_CYCLE[chip]
    return now


def rows_of(instruction: str) -> int:
    """Counts the rows that one instruction sends through a matrix unit.

    It is 16 rows of bfloat16, or 8 of float32 and of rows that were latched (lmr). Where a head fills a unit's sides
    (128), they sum over a tile to the products' FLOP at the chip's peak, to the cycle.
    """
    return 16 if ".bf16" in instruction and ".lmr" not in instruction else 8


def count(text: str, chip: str, heads: int, rows: int, tiles: dict[str, int], flops_per_tile: float) -> dict:
    """Counts what one kernel takes, from its schedule.

    rows: rows of tiles; tiles: how many of each kind a head computes, in the order of the kernel's branches. Each is a
    round of the loop, so that the rounds tell how many of a device's cores share the heads.
    """
    bundles, rounds = read_loop(text)
    by_guard = collections.defaultdict(list)
    for bundle in bundles:
        by_guard[tuple(bundle.guards)].append(bundle)
    matmuls = {guards: sum(len(bundle.matmuls) for bundle in found) for guards, found in by_guard.items()}
    products = {kind: by_guard[guards] for kind, guards in zip(
        tiles, (g for g in by_guard if 2 * matmuls[g] > max(matmuls.values())), strict=True)}
    # The innermost branches are products of a tile, or a first or last visit of a row of tiles.
    leaves = {g for g in by_guard if g and not any(o[:len(g)] == g and len(o) > len(g) for o in by_guard)}
    row = sum(len(by_guard[g]) for g in leaves if not matmuls[g])
    step = sum(len(found) for g, found in by_guard.items() if g not in leaves)
    cores, used = CORES.get(chip, 1), round(sum(tiles.values()) * heads / (rounds - STEP_SLACK))
    tile = {kind: cycles(found, chip) for kind, found in products.items()}
    total = sum(tiles[kind] * (tile[kind] + step) for kind in tiles) + rows * row
    figures = CHIPS[chip]
    ideal = flops_per_tile / (figures.peak_flops / figures.clock / figures.devices / cores)
    return {"tiles_per_head": tiles, "bundles_per_tile": {kind: len(found) for kind, found in products.items()},
            "cycles_per_tile": tile, "ideal_cycles_per_tile": ideal, "cycles_per_step": step,
            "rows_per_head": rows, "cycles_per_row": row, "cycles_per_head": total, "cores": used,
            "efficiency": sum(tiles.values()) * ideal / total * used / cores}


def keep_schedules(folder: Path) -> None:
    """Has libtpu write schedules into the folder. It reads this once, when the first slice is described."""
    os.environ["LIBTPU_INIT_ARGS"] = " ".join((
        f"--xla_jf_dump_to={folder}", "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"))


def compile_attention(model, tile: int, device) -> Tiles:
    """Compiles value and gradient of one layer's self-attention and returns its tiles.

    Meanwhile libtpu writes down the kernels' schedules. Prints what the compiler estimates of the rest.
    """
    spec = model.spec
    sequence, table = make_sequence(model.spec), spec.table()
    packed = PackedOrder(sequence, tile)
    attend = flash.make_attend_packed(table, packed, packed, spec.window_frames)
    array = jax.ShapeDtypeStruct((1, len(packed.order), spec.num_heads, spec.dim // spec.num_heads), jnp.bfloat16,
                                 sharding=SingleDeviceSharding(device))

    def value(q, k, v):
        return attend(q, k, v).astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(array, array, array).compile()
    print(json.dumps({"outside_kernels": Program(compiled.as_text()).estimated_cycles() / spec.num_heads}), flush=True)
    return make_tiles(table, packed, packed, spec.window_frames)


def main(_) -> None:
    """Runs the command."""
    folder, chip = Path(KEEP.value or tempfile.mkdtemp()), TOPOLOGY.value.partition(":")[0]
    if chip not in ROWS_A_CYCLE:
        raise app.UsageError(f"--topology={TOPOLOGY.value}: how long an instruction keeps a matrix unit busy is known "
                             f"of {', '.join(ROWS_A_CYCLE)} alone")
    if KEEP.value and any(folder.glob("*")):
        raise app.UsageError(f"--keep={folder}: not empty, and older schedules there would be taken for these")
    keep_schedules(folder)
    _, devices = plan.describe_topology(TOPOLOGY.value)
    model = Experiment(CONFIGS[SHAPE.value].get_config()).model
    sequence, heads = make_sequence(model.spec), model.spec.num_heads
    tile = TILE.value or choose_tile(sequence, sequence)
    tiles = compile_attention(model, tile, devices[0])
    kinds = tiles.visible().kinds
    counts = {name: int((kinds == kind).sum()) for name, kind in (("full", FULL), ("masked", MASKED))}
    for kind, products in KERNEL_PRODUCTS.items():
        path, = folder.glob(f"*flash_{kind}*-01-final_bundles.txt")
        flops = 2.0 * products * tile * tile * model.spec.dim / heads
        rows = len(tiles.queries) // tile
        print(json.dumps({"chip": chip, "kernel": kind, "tile": tile}
                         | count(path.read_text(), chip, heads, rows, counts, flops)), flush=True)


if __name__ == "__main__":
    app.run(main)
