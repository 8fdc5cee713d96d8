"""Who sees whom: one table per training or inference form, and everything that is derived from it.

A table maps (query group, key group) to a `Rule` on blocks; a pair that is not listed never sees. From the table
come the dense mask (the oracle of the tests), the spans of the blockwise kernel, which tokens no output depends
on, and the picture of the mask. Tables are a family's data: a config names one, and training stages may differ.

Where the block size is sampled while training, spans cover what is visible under any size, and `sampled_mask` takes
away at run time what is not visible under the one that was sampled: nothing is compiled again.
"""

import dataclasses
import enum
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from world_model.attention.tokens import Group, Segment, Sequence, merge_ranges


class Rule(enum.Enum):
    """Which blocks of the keys a query sees."""

    OWN = "own block"
    EARLIER = "earlier blocks"
    UP_TO_OWN = "earlier blocks and its own"
    WINDOW = "its own and earlier blocks inside the window, and the first frame"
    RECENT = "its own and earlier blocks inside the window"
    RECENT_EARLIER = "earlier blocks inside the window"
    ALL = "every block"
    UP_TO_NEXT = "earlier blocks, its own and the one after it"
    BUT_LAST = "earlier blocks without the last of them"


Table = Mapping[tuple[Group, Group], Rule]


def get_table(name: str, tables: Mapping[str, Table]) -> Table:
    """The table of that name among a family's. Raises ValueError listing the names there are."""
    if name not in tables:
        raise ValueError(f"no visibility table {name!r}; there are {sorted(tables)}")
    return tables[name]


def allows(rule: Rule, query, key):
    """Whether a rule lets block `query` see block `key`, windows aside; numbers or arrays."""
    if rule is Rule.OWN:
        return query == key
    if rule in (Rule.EARLIER, Rule.RECENT_EARLIER, Rule.BUT_LAST):
        return key < query - (rule is Rule.BUT_LAST)
    if rule is Rule.ALL:
        return key >= 0 * query
    return key <= query + (rule is Rule.UP_TO_NEXT)


def in_window(rule: Rule, frame, end, window_frames: int):
    """Whether a rule lets a query whose block ends before frame `end` see frame `frame`, blocks aside; numbers or
    arrays. The published window is counted in frames from there and may cut a block; 0: no window."""
    if rule not in (Rule.WINDOW, Rule.RECENT, Rule.RECENT_EARLIER) or not window_frames:
        return frame >= 0 * end
    recent = frame >= end - window_frames
    return recent | (frame == 0) if rule is Rule.WINDOW else recent


def sees(table: Table, query: Segment, key: Segment, window_frames: int = 0) -> bool:
    """Whether tokens of `query` attend to tokens of `key`, under any block size that may be sampled. window_frames
    counts the block's own frames; 0 = all."""
    rule = table.get((query.group, key.group))
    if rule is None:
        return False
    blocks = zip(query.blocks or (query.block,), key.blocks or (key.block,), strict=True)
    if not any(allows(rule, q, k) for q, k in blocks):
        return False
    return bool(in_window(rule, key.frame, query.last_frame + 1, window_frames))


def sampled_mask(table: Table, queries: Sequence, keys: Sequence, choice, window_blocks):
    """bool [segments of queries, segments of keys]: who sees whom under the sampled block size. Traced.

    choice: int32, index into every segment's `blocks`. window_blocks: int32, the farthest block that is seen counts
    this many blocks away, whatever the rule.
    """
    query, key = (jnp.array([s.blocks for s in side])[:, choice] for side in (queries, keys))
    query, key = query[:, None], key[None, :]
    mask = jnp.zeros((len(queries), len(keys)), bool)
    for rule in dict.fromkeys(table.values()):
        of_rule = np.array([[table.get((q.group, k.group)) is rule for k in keys] for q in queries])
        mask |= of_rule & allows(rule, query, key)
    return mask & (jnp.abs(query - key) <= window_blocks)


def dense_mask(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0) -> np.ndarray:
    """bool [Lq, Lk], True where the query token sees the key token."""
    rows = [[sees(table, q, k, window_frames) for k in keys] for q in queries]
    lengths_q, lengths_k = [s.length for s in queries], [s.length for s in keys]
    return np.repeat(np.repeat(np.array(rows, bool), lengths_q, axis=0), lengths_k, axis=1)


@dataclasses.dataclass(frozen=True)
class Span:
    """Query tokens that all see exactly the same key tokens, or (block size sampled) at most these; ranges are
    (start, stop)."""

    queries: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]  # indices of its query segments


def make_spans(table: Table, queries: Sequence, keys: Sequence, window_frames: int = 0,
               least: int = 0) -> tuple[Span, ...]:
    """The mask as few dense rectangles: no masked product is computed. Raises ValueError on a blind query.

    Where the block size is sampled, spans are masked at run time anyway: adjacent segments of a group then share one
    until it has at least `least` query tokens.
    """
    seen_by: dict[tuple, set[int]] = {}
    rows_of: dict[tuple, list[int]] = {}
    shared = _Shared(least)
    for row, q in enumerate(queries):
        seen = tuple(i for i, k in enumerate(keys) if sees(table, q, k, window_frames))
        if not seen:
            raise ValueError(f"{q.group} of block {q.block} sees no token: attention over nothing is undefined")
        name = shared.name(q) if q.blocks else seen
        seen_by.setdefault(name, set()).update(seen)
        rows_of.setdefault(name, []).append(row)
    return tuple(
        Span(merge_ranges([(queries[row].start, queries[row].stop) for row in rows]),
             merge_ranges([(keys[i].start, keys[i].stop) for i in sorted(seen_by[name])]), tuple(rows))
        for name, rows in rows_of.items())


class _Shared:
    """Names of shared spans: a group and a number, a new one once the last has `least` tokens."""

    def __init__(self, least: int):
        self.least, self.filled, self.number = least, {}, {}

    def name(self, segment: Segment) -> tuple[Group, int]:
        group = segment.group
        if self.filled.get(group, self.least) >= self.least:
            self.filled[group], self.number[group] = 0, self.number.get(group, -1) + 1
        self.filled[group] += segment.length
        return group, self.number[group]


def needed(table: Table, sequence: Sequence, outputs: set[Group], window_frames: int = 0) -> set[Segment]:
    """Segments on which some output depends through any number of layers; the rest need not be computed.

    In teacher-forced training the last clean block is seen by nobody: 2 of 18 frames of work for nothing.
    """
    reached = {s for s in sequence if s.group in outputs}
    frontier = reached
    while frontier:
        frontier = {k for k in sequence if k not in reached
                    and any(sees(table, q, k, window_frames) for q in frontier)}
        reached = reached | frontier
    return reached


def render(table: Table, sequence: Sequence, window_frames: int = 0, pixels: int = 512) -> np.ndarray:
    """The mask as a uint8 [n, n, 3] picture: one cell a segment, coloured by the key's group, lines between groups."""
    cell = max(4, pixels // max(1, len(sequence)))
    image = np.full((cell * len(sequence), cell * len(sequence), 3), 245, np.uint8)
    for i, q in enumerate(sequence):
        for j, k in enumerate(sequence):
            if sees(table, q, k, window_frames):
                image[i * cell:(i + 1) * cell - 1, j * cell:(j + 1) * cell - 1] = k.group.colour
    for i in range(1, len(sequence)):
        if sequence[i].group is not sequence[i - 1].group:
            image[i * cell - 1] = image[:, i * cell - 1] = 60
    return image


def legend(sequence: Sequence) -> dict[str, tuple[int, int, int]]:
    """{a group's name: its colour in `render`}, in the order of the sequence."""
    return {str(segment.group): segment.group.colour for segment in sequence}
