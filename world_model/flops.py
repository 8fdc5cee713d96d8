"""Counting the work: matrix products of one training sample, by part, and those a compiled program executes.

Convention, stated wherever a figure stands: 2 FLOP per multiply-add; matrix products alone; attention over visible
pairs alone; backward = two products per forward product, but one where the input is frozen (no gradient with
respect to data or encoder features); tokens that no output depends on do not count; no recomputation.
"""

import re

from world_model import tokens, visibility
from world_model.families.dreamzero import HEADS_READ, PATCH, DreamZeroSpec
from world_model.tokens import Group


def training_flops(spec: DreamZeroSpec, *, text_tokens: int | None = None) -> dict[str, float]:
    """FLOP of forward and backward per sample by part, for the teacher-forced forward with actions."""
    forward = forward_flops(spec, text_tokens=text_tokens)
    return {part: sum(flops * (2 if frozen else 3) for flops, frozen in products)
            for part, products in forward.items()}


def forward_flops(spec: DreamZeroSpec, *, text_tokens: int | None = None) -> dict[str, list[tuple[float, bool]]]:
    """part -> [(forward FLOP per sample, whether the product's input is frozen)]."""
    table = visibility.get_table(spec.visibility)
    blocks = range(spec.layout.num_blocks + 1)
    sequence = tokens.make_sequence(spec.layout, spec.tokens_per_frame, [(g, blocks) for g in Group])
    kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
    sequence = tokens.restart(sequence, kept.__contains__)
    read = tokens.restart(sequence, lambda s: s.group in HEADS_READ)
    pairs_all, pairs_read = (visible_pairs(table, q, sequence, spec.window_frames) for q in (sequence, read))
    count_all, count_read, inner = tokens.length(sequence), tokens.length(read), spec.num_layers - 1
    count = {g: sum(s.length for s in sequence if s.group is g) for g in Group}
    video = count[Group.CLEAN_VIDEO] + count[Group.NOISY_VIDEO]
    d, text = spec.dim, spec.text_length if text_tokens is None else text_tokens
    image = spec.image_tokens if spec.image_dim else 0
    rows = video // spec.tokens_per_frame + count[Group.ACTION] + count[Group.STATE]
    trained = lambda *products: [(2.0 * m * k * n, False) for m, k, n in products]
    frozen = lambda *products: [(2.0 * m * k * n, True) for m, k, n in products]
    querying, queried = inner * count_all + count_read, spec.num_layers * count_all
    hidden, actions = spec.action_hidden_dim, count[Group.ACTION]
    return {
        "self_attention_projections": trained((2 * querying, d, d), (2 * queried, d, d)),
        "self_attention": trained((2 * (inner * pairs_all + pairs_read), d, 1)),
        "cross_attention_projections": trained((2 * querying, d, d)),
        "cross_attention_context": trained((2 * spec.num_layers * (text + image), d, d)),
        "cross_attention": trained((2 * querying, text + image, d)),
        "mlp": trained((2 * querying, d, spec.ffn_dim)),
        "patch_embedding": frozen((video, PATCH**2 * spec.input_channels, d)),
        "context_embedding": frozen((text, spec.text_dim, d), (image, spec.image_dim, spec.image_dim))
        + trained((text, d, d), (image, spec.image_dim, d)),
        "time_embedding": frozen((rows, spec.freq_dim, d)) + trained((rows, d, d), (rows, d, 6 * d)),
        "action_and_state": frozen((actions, spec.action_dim, d), (count[Group.STATE], spec.state_dim, hidden))
        + trained((actions, 2 * d, d), (actions, d, d), (count[Group.STATE], hidden, d),
                  (actions, d, hidden), (actions, hidden, spec.action_dim)),
        "head": trained((count[Group.NOISY_VIDEO], d, PATCH**2 * spec.latent_channels)),
    }


def visible_pairs(table, queries, keys, window_frames: int) -> int:
    """Number of (query token, key token) pairs that attend."""
    return sum(q.length * k.length for q in queries for k in keys
               if visibility.sees(table, q, k, window_frames))


# --- what a compiled program executes -------------------------------------------------------------------------

_SHAPE = re.compile(r"^\(?(?:\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


def executed_flops(hlo: str) -> float:
    """FLOP of the matrix products in a compiled module's text (`compiled.as_text()`), loop bodies times trip count.

    XLA's own cost analysis counts a loop's body once. Raises ValueError on a loop whose trip count is not known.
    """
    computations = _computations(hlo)
    totals: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in totals:
            totals[name] = sum(_flops_of(line, shapes, total) for shapes, lines in [computations[name]]
                               for line in lines)
        return totals[name]

    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.M).group(1)
    return total(entry)


def _computations(hlo: str) -> dict[str, tuple[dict, list[str]]]:
    """computation name -> ({instruction: shape}, instruction lines)."""
    found, shapes, lines = {}, {}, []
    for line in hlo.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
        if head:
            shapes, lines = {}, []
            found[head.group(1)] = (shapes, lines)
        elif match := _INSTRUCTION.match(line):
            shapes[match.group(1)] = _dims(match.group(2))
            lines.append(line)
    return found


def _dims(shape: str) -> tuple[int, ...]:
    match = _SHAPE.match(shape)
    return tuple(int(n) for n in match.group(1).split(",") if n) if match else ()


def _flops_of(line: str, shapes: dict, total) -> float:
    name, _, op, rest = _INSTRUCTION.match(line).groups()
    if op == "dot":
        left = re.match(r"(?:\w+\[[\d,]*\](?:\{[\d,]*\})? )?%?([\w.\-]+)", rest).group(1)
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest).group(1)
        size = 2.0
        for n in shapes[name]:
            size *= n
        for i in contracting.split(","):
            size *= shapes[left][int(i)]
        return size
    if op == "while":
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
        if not trips:
            raise ValueError(f"while loop {name} has no known trip count: its work cannot be counted")
        return int(trips.group(1)) * total(re.search(r"body=%?([\w.\-]+)", rest).group(1))
    called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", rest)
    return sum(total(c) for c in called)
