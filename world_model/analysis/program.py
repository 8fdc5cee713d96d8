"""What a compiled program does: FLOP of matrix products, bytes of collectives, cycle estimates, its largest arrays.

A loop's body counts as often as the loop runs; XLA's own cost analysis counts it once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from world_model.analysis import hlo
from world_model.analysis.hlo import COLLECTIVES, Instruction, dims

_VIEWS = ("bitcast", "get-tuple-element", "tuple", "reshape")  # of arrays that another instruction made


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange among groups of one size."""

    kind: str
    group: int  # devices that exchange
    stride: int  # between the device numbers of a group; tells the mesh axis
    overlapped: bool  # started and awaited apart, so that other work may run meanwhile


class Program:
    """A compiled program by its text."""

    def __init__(self, text: str):
        self._computations, self._entry = hlo.parse(text)

    def total(self, count: Callable[[Instruction], collections.Counter], *, inside_fusions: bool = True):
        """The sum of `count` over all instructions, as often as each runs. Raises ValueError on a loop whose trip
        count is not known."""
        totals: dict[str, collections.Counter] = {}

        def of(name: str) -> collections.Counter:
            if name not in totals:
                result = collections.Counter()
                for instruction in self._computations[name]:
                    result.update(count(instruction))
                    for called, times in self._called(instruction, inside_fusions):
                        result.update({key: times * value for key, value in of(called).items()})
                totals[name] = result
            return totals[name]

        return of(self._entry)

    def _called(self, instruction: Instruction, inside_fusions: bool) -> list[tuple[str, int]]:
        if instruction.op == "while":
            return [(instruction.called("body")[0], hlo.trips(instruction, self._computations))]
        if instruction.op == "fusion" and not inside_fusions:
            return []
        names = "calls|true_computation|false_computation" + ("|to_apply" if instruction.op == "call" else "")
        return [(name, 1) for name in instruction.called(names)]

    def executed_flops(self, scope: str = "") -> float:
        """FLOP of the matrix products (`dot`, on TPU `convolution`, on GPU calls of cuBLAS, and those inside attention
        kernels); scope: of those under that `named_scope`."""
        inside = re.compile(rf"[/(]{scope}[/)]" if scope else "")
        return float(self.total(lambda i: collections.Counter(
            {"flops": _flops(i) if inside.search(i.scope) else 0.0}))["flops"])

    def kernel_flops(self, kind: str = "") -> float:
        """The part of `executed_flops` inside attention kernels; kind: of those of a name in KERNEL_PRODUCTS."""
        return float(self.total(lambda i: collections.Counter(
            {"flops": kernel_flops(i) if i.op == "custom-call" and f"flash_{kind}" in i.scope else 0.0}))["flops"])

    def largest_arrays(self, count: int) -> list[tuple[int, str, str]]:
        """(bytes, shape, op_name) of the largest arrays that instructions make, one per shape and op_name."""
        made = {(sum(hlo.sizes(i.shape)), re.sub(r"\{.*", "", i.shape), i.scope)
                for name, lines in self._computations.items() if "fus" not in name
                for i in lines if not i.shape.startswith("(") and i.op not in _VIEWS}
        return sorted(made, reverse=True)[:count]

    def collective_bytes(self) -> collections.Counter:
        """{Collective: bytes that one device sends}, by ring algorithms: (n - 1) / n of the whole for a gather or a
        scatter, twice that for an all-reduce."""
        return self.total(_collective, inside_fusions=True)

    def estimated_cycles(self) -> float:
        """Sum of the compiler's cycle estimates; kernels and collectives carry none, nor does anything on a GPU."""
        def cycles(i: Instruction):
            found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
            return collections.Counter({"cycles": int(found.group(1)) if found else 0})

        return float(self.total(cycles, inside_fusions=False)["cycles"])


def _flops(i: Instruction) -> float:
    if i.op == "dot":
        return _dot_flops(i, r"lhs_contracting_dims=\{([\d,]*)\}")
    if i.op == "convolution":
        return _convolution_flops(i)
    if i.op == "custom-call":
        if 'custom_call_target="__cublas' in i.rest:
            return _dot_flops(i, r'lhs_contracting_dimensions":\[([\d,"]*)\]')
        return kernel_flops(i)
    return 0.0


def _dot_flops(i: Instruction, contracting: str) -> float:
    """contracting: the pattern that finds the left operand's summed axes."""
    left = dims(i.operands()[0])
    axes = re.findall(r"\d+", re.search(contracting, i.rest).group(1))
    return 2.0 * math.prod(dims(i.shape)) * math.prod(left[int(axis)] for axis in axes)


# Products over the tile pairs that an attention kernel computes: scores and output; going back, scores again and
# four gradients.
KERNEL_PRODUCTS = {"fwd": 2, "bwd": 5}


def kernel_flops(i: Instruction) -> float:
    """Of an attention kernel; its scope says how many (query, key) pairs the tiles cover that it computes."""
    pairs, kernel = re.search(r"pairs_(\d+)", i.scope), re.search(r"flash_(fwd|bwd)", i.scope)
    if not pairs or not kernel or "tpu_custom_call" not in i.rest:  # buffers are made in the kernel's scope as well
        return 0.0
    queries = next(dims(shape) for shape in i.operands() if shape.startswith(("bf16", "f32")))  # after tables of tiles
    head_dim = min(queries[-2:])  # stored before or after the tokens, of which there are more
    return 2.0 * KERNEL_PRODUCTS[kernel.group(1)] * int(pairs.group(1)) * math.prod(queries[:-2]) * head_dim


def _convolution_flops(i: Instruction) -> float:
    """TPU products: batch axes stand as spatial ones, dilated so that only the diagonal meets; places that fall on
    padding or between dilated inputs are not computed."""
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    left, right, out = (dict(zip(labels, dims(shape), strict=True)) for labels, shape in
                        zip((inputs, kernel, outputs), (*i.operands()[:2], i.shape), strict=True))
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.rest) or [""] * 2)[1]))
    count = 2.0 * out["b"] * out["f"] * right["i"]
    for axis in (label for label in outputs if label.isdigit()):
        value = lambda name, axis=axis, default="1": window[name].split("x")[int(axis)] if name in window else default
        low = int(value("pad", default="0_0").split("_")[0])
        dilation = int(value("lhs_dilate"))
        places = (np.arange(out[axis])[:, None] * int(value("stride")) - low
                  + np.arange(right[axis]) * int(value("rhs_dilate")))
        count *= ((places >= 0) & (places <= (left[axis] - 1) * dilation) & (places % dilation == 0)).sum()
    return count


def _collective(i: Instruction) -> collections.Counter:
    kind = i.op.removesuffix("-start")
    if kind not in COLLECTIVES:
        return collections.Counter()
    group, stride = hlo.groups(i.rest)
    arrays = hlo.sizes(i.shape)
    whole = sum(arrays)  # several arrays may travel together
    if i.op == "all-gather-start":
        whole *= group / (group + 1)  # its result holds the operands too
    elif i.op == "collective-permute-start":
        whole = max(arrays)  # operand, result and two counters
    elif kind == "reduce-scatter":
        whole *= group
    share = 1 if kind == "collective-permute" else (group - 1) / group * (2 if kind == "all-reduce" else 1)
    overlapped = i.overlapped or i.op.endswith("-start")
    return collections.Counter({Collective(kind, group, stride, overlapped): whole * share})
