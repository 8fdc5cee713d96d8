"""Parser of a compiled program's text (`compiled.as_text()`, HLO): computations, instructions, shapes, groups."""

import dataclasses
import math
import re

import numpy as np

SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32,
         "s64": 64, "u64": 64, "f64": 64}
BESIDE = "call-start"  # calls what SparseCores do beside the rest: on v7x gathers and scatters
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: a line of the program."""

    name: str
    shape: str  # as written: f32[2,3]{1,0}, or a tuple of those
    op: str
    rest: str  # operands and attributes
    shapes: dict[str, str]  # {instruction: shape} of the computation that it stands in
    scope: str  # its op_name ("jit(step)/while/body/..."); an operand's or the fusion's where it has none
    overlapped: bool = False  # whether one instruction starts it and another awaits it

    def operands(self) -> list[str]:
        """Returns the shapes of all operands."""
        return [self.shapes[name] for name in _operands(self.rest)]

    def operand_names(self) -> list[str]:
        """Names the instructions whose results it takes."""
        return _operands(self.rest)

    def called(self, attributes: str) -> list[str]:
        """Names the computations that stand under any of `attributes`, such as "calls|body"."""
        return re.findall(rf"(?:{attributes})=%?([\w.\-]+)", self.rest)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns ({computation: its instructions}, the name of the entry computation)."""
    computations: dict[str, list[Instruction]] = {}
    lines, entry = [], ""
    for line in re.sub(r"kernel_metadata=\{\n.*\n\}", "", text).splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
        if head:
            lines, shapes, scopes = [], {}, {}
            computations[head.group(2)] = lines
            entry = head.group(2) if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            name, shape, op, rest = match.groups()
            own = re.search(r'op_name="([^"]*)"', rest)
            inherited = next((scopes[n] for n in _operands(rest) if scopes.get(n)), "")
            shapes[name], scopes[name] = shape, own.group(1) if own else inherited
            lines.append(Instruction(name, shape, op, rest, shapes, scopes[name]))
    _name_scatters(computations)
    _mark_async_fusions(computations)
    _hand_down_scopes(computations)
    return computations, entry


def _name_scatters(computations: dict) -> None:
    """Renames the all-reduces that stand for scatters: a TPU program puts each in a computation of that name."""
    for name, found in computations.items():
        if name.startswith("all-reduce-scatter"):
            found[:] = [dataclasses.replace(i, op="reduce-scatter", shape=found[-1].shape) if i.op == "all-reduce"
                        else i for i in found]


def _mark_async_fusions(computations: dict) -> None:
    """Keeps one of the copies of a collective that runs beside products.

    A TPU program names it three times or more: in the fusion that starts it, in every product that carries a step of
    it, and in the fusion that ends it. The first stays and is marked as overlapped.
    """
    for i in [i for lines in computations.values() for i in lines if i.op in ("fusion", BESIDE)]:
        for called in i.called("calls|to_apply"):
            inside = computations[called]
            if i.op == BESIDE or i.name.startswith("async-collective-start"):
                inside[:] = [dataclasses.replace(c, overlapped=True) for c in inside]
            elif i.name.startswith("async-collective-done") or "async_collective_fusion" in called:
                inside[:] = [c for c in inside if c.op not in COLLECTIVES]


def _hand_down_scopes(computations: dict) -> None:
    """Gives instructions without a scope that of the fusion they stand in."""
    callers = {called: i.scope for lines in computations.values() for i in lines if i.op == "fusion"
               for called in i.called("calls")}
    for name, scope in callers.items():
        computations[name] = [i if i.scope else dataclasses.replace(i, scope=scope) for i in computations[name]]


def trips(loop: Instruction, computations: dict) -> int:
    """Counts how often a loop runs.

    CPU and GPU programs say it in an annotation. In a TPU program it is the bound of the loop's condition, because the
    counter of every `lax.scan` starts at 0, over the counter's step, which is more than 1 where the compiler takes a
    product in shares. Raises ValueError where neither tells.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known.group(1))
    condition = computations[loop.called("condition")[0]]
    root, constants = condition[-1], [i for i in condition if i.op == "constant" and i.shape[:5] in ("s32[]", "u32[]")]
    if root.op != "compare" or "direction=LT" not in root.rest or len(constants) != 1:
        raise ValueError(f"while loop {loop.name} has no known trip count: its work cannot be counted")
    return -(-_integer(constants[0]) // _step(root, condition, computations[loop.called("body")[0]]))


def _step(compare: Instruction, condition: list[Instruction], body: list[Instruction]) -> int:
    """What a loop's body adds to the counter that its condition compares; 1 where it is no constant."""
    counter = next(i for i in condition if i.name == _operands(compare.rest)[0])
    place = re.search(r"index=(\d+)", counter.rest)
    inside, made = {i.name: i for i in body}, _operands(body[-1].rest)
    moved = inside.get(made[int(place.group(1))]) if place else None
    added = [inside[name] for name in _operands(moved.rest) if name in inside] if moved and moved.op == "add" else []
    return next((_integer(i) for i in added if i.op == "constant"), 1)


def _integer(constant: Instruction) -> int:
    """The value of an integer constant."""
    return int(re.match(r"(\d+)", constant.rest).group(1))


def _operands(rest: str) -> list[str]:
    """Names an instruction's operands."""
    written = re.split(r"\), |\)$", rest, maxsplit=1)[0]
    return re.findall(r"%([\w.\-]+)", written) or [part.split(" ")[-1] for part in written.split(", ")]


def dims(shape: str) -> tuple[int, ...]:
    """Returns the dimensions of an array's shape, or of a tuple's first array."""
    return tuple(int(n) for n in SHAPE.search(shape).group(2).split(",") if n)


def sizes(shape: str) -> list[int]:
    """Returns the bytes of each array of a tuple, or of the one array."""
    return [math.prod(int(n) for n in numbers.split(",") if n) * _BITS.get(kind, 0) // 8
            for kind, numbers in SHAPE.findall(shape)]


def groups(rest: str) -> tuple[int, int]:
    """Returns (devices in a group, stride between their numbers) for every way in which HLO writes groups.

    Raises ValueError where the groups are written in an unknown way.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        members = _numbers(listed.group(1))
    elif tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?),? ", rest):
        members = _iota(tiled.group(2)).reshape(_numbers(tiled.group(1)))[0].tolist()
    elif meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", rest):
        members = _mesh_group(*meshed.groups())
    elif pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        members = [int(n) for n in pairs.groups()]
    else:
        raise ValueError(f"collective over groups that are written in an unknown way: {rest[:200]}")
    return len(members), members[1] - members[0] if len(members) > 1 else 0


def _mesh_group(axes: str, device_ids: str | None, used: str) -> list[int]:
    """Returns the first group of a mesh's devices along some of its axes."""
    lengths = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    along = re.findall(r"'(\w+)'(:?)", used)
    if any(part for _, part in along):
        raise ValueError(f"replica groups over part of an axis: {axes} {used}")
    numbers = _iota(device_ids or f"[{math.prod(lengths.values())}]").reshape(list(lengths.values()))
    inner = [list(lengths).index(name) for name, _ in along]
    count = math.prod(numbers.shape[axis] for axis in inner)
    return np.moveaxis(numbers, inner, range(-len(inner), 0)).reshape(-1, count)[0].tolist()


def _iota(text: str) -> np.ndarray:
    """Turns "[4,2]T(1,0)" into the numbers 0..7 laid out as [4, 2] and transposed."""
    shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
