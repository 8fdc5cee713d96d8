"""What a GPU program's passes over memory cost: bytes and FLOP of each, and the time of the slower of the two.

A compiler for GPUs estimates no cycles. A pass is one instruction that runs as a kernel: a fusion, a product, a copy.
It reads its operands and writes its results once; of a stack of layers that it reads or writes a slice of, the slice.
"""

import collections
import math
from typing import NamedTuple

from world_model.analysis import hlo
from world_model.analysis.hlo import COLLECTIVES, Instruction
from world_model.analysis.program import FUSIONS, Program, kernel_flops, product_flops

# They show an array that another instruction made, or run others that are counted.
_NO_PASS = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional", "call", "reshape",
            "after-all", "partition-id", "iota", *COLLECTIVES, *(f"{kind}-start" for kind in COLLECTIVES)}
_SLICES = ("dynamic-slice", "gather", "slice")


class Pass(NamedTuple):
    """A kind of pass: all that do the same in the same part of the model."""

    name: str  # the operation, and where in the model
    runs: float  # how often
    bytes: float
    flops: float
    seconds: float


def passes(program: Program, flops_rate: float, bytes_rate: float) -> list[Pass]:
    """All passes but attention kernels, slowest kind first; rates per second. An attention kernel's time is not that of
    its bytes."""
    def cost(i: Instruction) -> collections.Counter:
        if i.op in _NO_PASS or i.op.endswith("-done") or kernel_flops(i):
            return collections.Counter()
        moved, flops = moved_bytes(program, i), pass_flops(program, i)
        found = {"runs": 1.0, "bytes": moved, "flops": flops, "seconds": max(moved / bytes_rate, flops / flops_rate)}
        return collections.Counter({(_kind(i, flops), name): value for name, value in found.items()})

    totals = program.total(cost, inside_fusions=False)
    kinds = {kind for kind, _ in totals}
    found = [Pass(kind, *(totals[kind, name] for name in ("runs", "bytes", "flops", "seconds"))) for kind in kinds]
    return sorted(found, key=lambda p: -p.seconds)


def pass_flops(program: Program, i: Instruction) -> float:
    """FLOP of the products in a pass."""
    if i.op not in FUSIONS:
        return product_flops(i)
    inside = (j for name in i.called("calls") for j in program.instructions(name))
    return sum(pass_flops(program, j) for j in inside)


def moved_bytes(program: Program, i: Instruction) -> float:
    """Bytes that a pass reads and writes."""
    if i.op == "dynamic-update-slice":  # it writes in place
        return 2.0 * sum(hlo.sizes(i.operands()[1]))
    if i.op in _SLICES:
        return 2.0 * sum(hlo.sizes(i.shape))
    if i.op not in FUSIONS:
        read = sum(sum(hlo.sizes(shape)) for shape in i.operands())
        return float(read + (read if i.op.endswith("-start") else sum(hlo.sizes(i.shape))))
    inside = program.instructions(i.called("calls")[0])
    return float(_read(inside) + _written(inside))


def _read(inside: list[Instruction]) -> int:
    """Bytes that a fusion reads of its parameters."""
    total = 0
    for parameter in (j for j in inside if j.op == "parameter"):
        users = [j for j in inside if parameter.name in j.operand_names()]
        whole = sum(hlo.sizes(parameter.shape))
        total += min(whole, sum(_read_by(j, parameter.name, whole) for j in users))
    return total


def _read_by(user: Instruction, parameter: str, whole: int) -> int:
    """Bytes of a parameter that one instruction reads."""
    if user.op in _SLICES:
        return sum(hlo.sizes(user.shape))
    if user.op == "dynamic-update-slice" and user.operand_names()[0] == parameter:  # written in place
        return 0
    return whole


def _written(inside: list[Instruction]) -> int:
    """Bytes that a fusion writes: of arrays that it changes in place, the part that changes."""
    whole = sum(hlo.sizes(inside[-1].shape))
    for j in inside:
        if j.op == "dynamic-update-slice":
            whole -= sum(hlo.sizes(j.shape)) - sum(hlo.sizes(j.operands()[1]))
    return max(whole, 0)


def _kind(i: Instruction, flops: float) -> str:
    """Names what a pass does and where: the scope without loops and transformations, which say only how it is run."""
    parts = [part for part in i.scope.split("/") if "(" not in part and part not in ("while", "body", "eval_jaxpr")]
    way = "backward" if "transpose(" in i.scope else "forward"
    return f"{'product' if flops else i.op.removesuffix('-start')} {way} {'/'.join(parts[-3:])}"


def seconds(found: list[Pass]) -> float:
    """Time of all passes, one after another."""
    return math.fsum(p.seconds for p in found)
