"""Reading a compiled program's text (`compiled.as_text()`): matrix products, collectives, cycle estimates.

A loop's body counts as often as the loop runs; XLA's own cost analysis counts it once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32,
         "s64": 64, "u64": 64, "f64": 64}
_VIEWS = ("bitcast", "get-tuple-element", "tuple", "reshape")  # of arrays that another instruction made
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    shape: str  # as written: f32[2,3]{1,0}, or a tuple of those
    op: str
    rest: str  # operands and attributes
    shapes: dict[str, str]  # of its computation: instruction -> shape
    scope: str  # its op_name ("jit(step)/while/body/..."); an operand's or the fusion's where it has none
    overlapped: bool = False  # started by one instruction and awaited by another

    def operand(self, index: int) -> str:
        """Shape of an operand."""
        return self.shapes[_operands(self.rest)[index]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange among groups of one size."""

    kind: str
    group: int  # devices that exchange
    stride: int  # between the device numbers of a group; tells the mesh axis
    overlapped: bool  # started and awaited apart, so that other work may run meanwhile


class Program:
    """A module's text, taken apart once."""

    def __init__(self, hlo: str):
        self._computations: dict[str, list[Instruction]] = {}
        lines: list[Instruction] = []
        for line in re.sub(r"kernel_metadata=\{\n.*\n\}", "", hlo).splitlines():
            head = re.match(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
            if head:
                lines, shapes, scopes = [], {}, {}
                self._computations[head.group(2)] = lines
                if head.group(1):
                    self._entry = head.group(2)
            elif match := _INSTRUCTION.match(line):
                name, shape, _, rest = match.groups()
                own = re.search(r'op_name="([^"]*)"', rest)
                inherited = next((scopes[n] for n in _operands(rest) if scopes.get(n)), "")
                shapes[name], scopes[name] = shape, own.group(1) if own else inherited
                lines.append(Instruction(*match.groups(), shapes, scopes[name]))
        for name, found in self._computations.items():
            if name.startswith("all-reduce-scatter"):  # how a TPU program writes a scatter
                found[:] = [dataclasses.replace(i, op="reduce-scatter", shape=found[-1].shape) if i.op == "all-reduce"
                            else i for i in found]
        self._mark_async_fusions()
        callers = {called: i.scope for lines in self._computations.values() for i in lines if i.op == "fusion"
                   for called in re.findall(r"calls=%?([\w.\-]+)", i.rest)}
        for name, scope in callers.items():
            self._computations[name] = [i if i.scope else dataclasses.replace(i, scope=scope)
                                        for i in self._computations[name]]

    def _mark_async_fusions(self) -> None:
        """A collective that runs beside products stands three times or more in a TPU program: in the fusion that starts
        it, in every product that carries a step of it, and in the fusion that ends it. The first counts."""
        for lines in list(self._computations.values()):
            for i in lines:
                called = re.search(r"calls=%?([\w.\-]+)", i.rest) if i.op == "fusion" else None
                if not called:
                    continue
                inside = self._computations[called.group(1)]
                if i.name.startswith("async-collective-start"):
                    inside[:] = [dataclasses.replace(c, overlapped=True) for c in inside]
                elif i.name.startswith("async-collective-done") or "async_collective_fusion" in called.group(1):
                    inside[:] = [c for c in inside if c.op not in COLLECTIVES]

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

    def executed_flops(self, scope: str = "") -> float:
        """FLOP of the matrix products (`dot`, on TPU `convolution`, and those inside attention kernels); scope: of
        those under that `named_scope`."""
        inside = re.compile(rf"[/(]{scope}[/)]" if scope else "")
        return float(self.total(lambda i: collections.Counter(
            {"flops": _flops(i) if inside.search(i.scope) else 0.0}))["flops"])

    def kernel_flops(self) -> float:
        """The part of `executed_flops` inside attention kernels."""
        return float(self.total(lambda i: collections.Counter(
            {"flops": kernel_flops(i) if i.op == "custom-call" else 0.0}))["flops"])

    def largest_arrays(self, count: int) -> list[tuple[int, str, str]]:
        """(bytes, shape, op_name) of the largest arrays that instructions make, one per shape and op_name."""
        made = {(size(i.shape), re.sub(r"\{.*", "", i.shape), i.scope) for name, lines in self._computations.items()
                if "fus" not in name for i in lines if not i.shape.startswith("(") and i.op not in _VIEWS}
        return sorted(made, reverse=True)[:count]

    def collective_bytes(self) -> collections.Counter:
        """{Collective: bytes that one device sends}, by ring algorithms: (n - 1) / n of the whole for a gather or a
        scatter, twice that for an all-reduce."""
        return self.total(_collective, inside_fusions=True)

    def estimated_cycles(self) -> float:
        """Sum of the compiler's cycle estimates; kernels and collectives carry none."""
        def cycles(i: Instruction):
            found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
            return collections.Counter({"cycles": int(found.group(1)) if found else 0})

        return float(self.total(cycles, inside_fusions=False)["cycles"])

    def _called(self, instruction: Instruction, inside_fusions: bool) -> list[tuple[str, int]]:
        if instruction.op == "while":
            return [(re.search(r"body=%?([\w.\-]+)", instruction.rest).group(1), self._trips(instruction))]
        if instruction.op == "fusion" and not inside_fusions:
            return []
        names = "calls|true_computation|false_computation" + ("|to_apply" if instruction.op == "call" else "")
        return [(name, 1) for name in re.findall(rf"(?:{names})=%?([\w.\-]+)", instruction.rest)]

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as annotated (CPU, GPU), or the bound of its condition, as in every `lax.scan`
        (TPU): the counter starts at 0."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known.group(1))
        condition = self._computations[re.search(r"condition=%?([\w.\-]+)", loop.rest).group(1)]
        root, constants = condition[-1], [i for i in condition if i.op == "constant" and i.shape.startswith("s32[]")]
        if root.op != "compare" or "direction=LT" not in root.rest or len(constants) != 1:
            raise ValueError(f"while loop {loop.name} has no known trip count: its work cannot be counted")
        return int(re.match(r"(\d+)", constants[0].rest).group(1))


def _operands(rest: str) -> list[str]:
    """Names of an instruction's operands."""
    written = re.split(r"\), |\)$", rest, maxsplit=1)[0]
    return re.findall(r"%([\w.\-]+)", written) or [part.split(" ")[-1] for part in written.split(", ")]


def dims(shape: str) -> tuple[int, ...]:
    """Dimensions of an array's shape."""
    return tuple(int(n) for n in _SHAPE.search(shape).group(2).split(",") if n)


def size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(math.prod(int(n) for n in numbers.split(",") if n) * _BITS.get(kind, 0) // 8
               for kind, numbers in _SHAPE.findall(shape))


def _flops(i: Instruction) -> float:
    if i.op == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest).group(1)
        left = dims(i.operand(0))
        return 2.0 * math.prod(dims(i.shape)) * math.prod(left[int(axis)] for axis in contracting.split(",") if axis)
    if i.op == "convolution":
        return _convolution_flops(i)
    if i.op == "custom-call":
        return kernel_flops(i)
    return 0.0


# Products over the tile pairs that an attention kernel computes: scores and output; going back, scores again and
# four gradients, of which one kernel or two may make their shares.
_KERNEL_PRODUCTS = {"fwd": 2, "dkv": 5}


def kernel_flops(i: Instruction) -> float:
    """Of a splash attention kernel; its scope says how many (query, key) pairs the tiles cover that it computes."""
    pairs, kernel = re.search(r"pairs_(\d+)", i.scope), re.search(r"splash_mha_(\w+?)_", i.scope)
    if not pairs or not kernel or "tpu_custom_call" not in i.rest:  # buffers are made in the kernel's scope as well
        return 0.0
    shapes = (i.operand(n) for n in range(len(_operands(i.rest))))
    queries = next(dims(shape) for shape in shapes if shape.startswith(("bf16", "f32")))  # after the tables of tiles
    head_dim = min(queries[-2:])  # stored before or after the tokens, of which there are more
    return 2.0 * _KERNEL_PRODUCTS[kernel.group(1)] * int(pairs.group(1)) * math.prod(queries[:-2]) * head_dim


def _convolution_flops(i: Instruction) -> float:
    """TPU products: batch axes stand as spatial ones, dilated so that only the diagonal meets; places that fall on
    padding or between dilated inputs are not computed."""
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    left, right, out = (dict(zip(labels, dims(shape), strict=True)) for labels, shape in
                        ((inputs, i.operand(0)), (kernel, i.operand(1)), (outputs, i.shape)))
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
    group, stride = _groups(i.rest)
    arrays = [size(f"{dtype}[{numbers}]") for dtype, numbers in _SHAPE.findall(i.shape)]
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


def _groups(rest: str) -> tuple[int, int]:
    """(devices in a group, stride between their numbers), of any of the three ways in which groups are written."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        members = _numbers(listed.group(1))
    elif tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?),? ", rest):
        members = _iota(tiled.group(2)).reshape(_numbers(tiled.group(1)))[0].tolist()
    elif meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        used = re.findall(r"'(\w+)'(:?)", meshed.group(3))
        if any(part for _, part in used):
            raise ValueError(f"replica groups over part of an axis: {meshed.group(0)}")
        numbers = _iota(meshed.group(2) or f"[{math.prod(sizes.values())}]").reshape(list(sizes.values()))
        inner = [list(sizes).index(name) for name, _ in used]
        members = np.moveaxis(numbers, inner, range(-len(inner), 0)).reshape(-1, math.prod(
            numbers.shape[axis] for axis in inner))[0].tolist()
    elif pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        members = [int(n) for n in pairs.groups()]
    else:
        raise ValueError(f"collective over groups that are written in an unknown way: {rest[:200]}")
    return len(members), members[1] - members[0] if len(members) > 1 else 0


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0) -> numbers 0..7 laid out as [4, 2], transposed."""
    shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
