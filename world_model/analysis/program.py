"""Counts of what a compiled program does: FLOP of matrix products, bytes of collectives, cycles, largest arrays.

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

FUSIONS = ("fusion", "fusion-start")  # the second runs beside others, until its "-done"
_VIEWS = ("bitcast", "get-tuple-element", "tuple", "reshape")  # they show an array that another instruction made
# Products over the tile pairs that an attention kernel computes. The forward pass makes scores and output; the backward
# pass makes the scores again and four gradients.
KERNEL_PRODUCTS = {"fwd": 2, "bwd": 5}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange among groups of one size."""

    kind: str
    group: int  # devices that exchange
    stride: int  # between the device numbers of a group; tells the mesh axis
    overlapped: bool  # whether it is started and awaited apart, so that other work may run meanwhile


class Program:
    """A compiled program, given by its text."""

    def __init__(self, text: str):
        self._computations, self._entry = hlo.parse(text)

    def instructions(self, computation: str) -> list[Instruction]:
        """The instructions of a computation, by name."""
        return self._computations[computation]

    def total(self, count: Callable[[Instruction], collections.Counter], *, inside_fusions: bool = True):
        """Sums `count` over all instructions, each as often as it runs.

        Raises ValueError on a loop whose trip count is not known.
        """
        totals: dict[str, collections.Counter] = {}

        def total_of(name: str) -> collections.Counter:
            if name not in totals:
                result = collections.Counter()
                for instruction in self._computations[name]:
                    result.update(count(instruction))
                    for called, times in self._called(instruction, inside_fusions):
                        result.update({key: times * value for key, value in total_of(called).items()})
                totals[name] = result
            return totals[name]

        return total_of(self._entry)

    def _called(self, instruction: Instruction, inside_fusions: bool) -> list[tuple[str, int]]:
        """Lists the (computation, how often) that an instruction runs."""
        if instruction.op == "while":
            return [(instruction.called("body")[0], hlo.trips(instruction, self._computations))]
        if instruction.op in (*FUSIONS, hlo.BESIDE) and not inside_fusions:
            return []
        called = "|to_apply" if instruction.op in ("call", hlo.BESIDE) else ""
        names = f"calls|true_computation|false_computation{called}"
        return [(name, 1) for name in instruction.called(names)]

    def executed_flops(self, scope: str = "") -> float:
        """FLOP of the matrix products: `dot`, on TPU `convolution`, on GPU calls of cuBLAS and cuDNN; attention.

        scope: counts only the products under that `named_scope`.
        """
        inside = re.compile(rf"[/(]{scope}[/)]" if scope else "")
        return self._sum(lambda i: product_flops(i) if inside.search(i.scope) else 0.0)

    def kernel_flops(self, kind: str = "") -> float:
        """The part of `executed_flops` inside attention kernels; kind: counts one kind of KERNEL_PRODUCTS alone."""
        return self._sum(lambda i: kernel_flops(i) if kind in ("", _kernel_kind(i)) else 0.0)

    def _sum(self, number: Callable[[Instruction], float], **options) -> float:
        """Sums one number over all instructions; options: those of `total`."""
        return float(self.total(lambda i: collections.Counter({"sum": number(i)}), **options)["sum"])

    def largest_arrays(self, count: int) -> list[tuple[int, str, str]]:
        """Lists (bytes, shape, op_name) of the largest arrays that instructions make, one per shape and op_name."""
        made = {(sum(hlo.sizes(i.shape)), re.sub(r"\{.*", "", i.shape), i.scope)
                for name, lines in self._computations.items() if "fus" not in name
                for i in lines if not i.shape.startswith("(") and i.op not in _VIEWS}
        return sorted(made, reverse=True)[:count]

    def collective_bytes(self) -> collections.Counter:
        """{Collective: bytes that one device sends} by ring algorithms.

        A gather or a scatter sends (n - 1) / n of the whole, an all-reduce twice that.
        """
        return self.total(_collective, inside_fusions=True)

    def estimated_cycles(self) -> float:
        """Sum of the compiler's cycle estimates; kernels and collectives carry none, nor does anything on a GPU."""
        def cycles(i: Instruction) -> float:
            found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
            return int(found.group(1)) if found else 0

        return self._sum(cycles, inside_fusions=False)


def product_flops(i: Instruction) -> float:
    """FLOP of one matrix product; 0 for any other instruction."""
    if i.op == "dot":
        return _dot_flops(i, r"lhs_contracting_dims=\{([\d,]*)\}")
    if i.op == "convolution":
        return _convolution_flops(i)
    if i.op == "custom-call":
        if 'custom_call_target="__cublas' in i.rest:
            return _dot_flops(i, r'lhs_contracting_dimensions":\[([\d,"]*)\]')
        if 'custom_call_target="__cudnn$conv' in i.rest:
            return _convolution_flops(i)
        return kernel_flops(i)
    return 0.0


def _dot_flops(i: Instruction, contracting: str) -> float:
    """FLOP of a `dot`; contracting: the pattern that finds the left operand's summed axes."""
    left = dims(i.operands()[0])
    axes = re.findall(r"\d+", re.search(contracting, i.rest).group(1))
    return 2.0 * math.prod(dims(i.shape)) * math.prod(left[int(axis)] for axis in axes)


def _kernel_kind(i: Instruction) -> str | None:
    """Which of KERNEL_PRODUCTS an instruction is; None where it is no attention kernel."""
    if i.op != "custom-call":
        return None
    if "__cudnn$fmha" in i.rest:
        return "bwd" if re.search(r"__cudnn\$fmha\w*Backward", i.rest) else "fwd"
    kernel = re.search(r"flash_(fwd|bwd)", i.scope)  # buffers are made in the kernel's scope as well
    return kernel.group(1) if kernel and "tpu_custom_call" in i.rest else None


def kernel_flops(i: Instruction) -> float:
    """FLOP of an attention kernel; 0 for others. cuDNN's makes the product of all queries [B, Lq, n, d] with all keys,
    its first operands; the scope of one for TPUs says how many (query, key) pairs its tiles cover."""
    kind = _kernel_kind(i)
    if kind is None:
        return 0.0
    if "__cudnn$fmha" in i.rest:
        (batch, length, heads, head_dim), keys = (dims(shape) for shape in i.operands()[:2])
        return 2.0 * KERNEL_PRODUCTS[kind] * batch * heads * length * keys[1] * head_dim
    pairs = re.search(r"pairs_(\d+)", i.scope)
    if not pairs:
        return 0.0
    queries = next(dims(shape) for shape in i.operands() if shape.startswith(("bf16", "f32")))  # after tables of tiles
    head_dim = min(queries[-2:])  # stored before or after the tokens, of which there are more
    return 2.0 * KERNEL_PRODUCTS[kind] * int(pairs.group(1)) * math.prod(queries[:-2]) * head_dim


def _convolution_flops(i: Instruction) -> float:
    """FLOP of a product that a TPU program writes as a convolution.

    Its batch axes stand as spatial ones, dilated so that only the diagonal meets. Positions that fall on padding or
    between dilated inputs are not computed.
    """
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    left, right, out = (dict(zip(labels, dims(shape), strict=True)) for labels, shape in
                        zip((inputs, kernel, outputs), (*i.operands()[:2], i.shape), strict=True))
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.rest) or [""] * 2)[1]))
    count = 2.0 * out["b"] * out["f"] * right["i"]
    for axis in (label for label in outputs if label.isdigit()):
        count *= _products_along(int(axis), window, out[axis], right[axis], left[axis])
    return count


def _products_along(axis: int, window: dict[str, str], outputs: int, kernel: int, inputs: int) -> int:
    """Counts the (output, kernel) pairs along a spatial axis that meet an input; the last three are lengths."""
    def setting(name: str, default: str = "1") -> str:
        return window[name].split("x")[axis] if name in window else default

    low, dilation = int(setting("pad", "0_0").split("_")[0]), int(setting("lhs_dilate"))
    positions = (np.arange(outputs)[:, None] * int(setting("stride")) - low
                 + np.arange(kernel) * int(setting("rhs_dilate")))
    return ((positions >= 0) & (positions <= (inputs - 1) * dilation) & (positions % dilation == 0)).sum()


def _collective(i: Instruction) -> collections.Counter:
    """{Collective: bytes that one device sends} of one instruction; empty where it is no collective."""
    kind = i.op.removesuffix("-start")
    if kind not in COLLECTIVES:
        return collections.Counter()
    group, stride = hlo.groups(i.rest)
    arrays = hlo.sizes(i.shape)
    whole: float = sum(arrays)  # several arrays may travel together
    if i.op in ("all-gather-start", "reduce-scatter-start"):
        whole *= group / (group + 1)  # its result holds the operands too
    elif i.op == "collective-permute-start":
        whole = max(arrays)  # operand, result and two counters
    elif kind == "reduce-scatter":
        whole *= group
    share = 1 if kind == "collective-permute" else (group - 1) / group * (2 if kind == "all-reduce" else 1)
    overlapped = i.overlapped or i.op.endswith("-start")
    return collections.Counter({Collective(kind, group, stride, overlapped): whole * share})
