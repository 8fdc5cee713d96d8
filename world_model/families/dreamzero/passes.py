"""How a window's tokens go through DreamZero's layers: as they come, or in the order that the kernel would have."""

import functools

import numpy as np

from world_model.attention import flash, make_attend, tokens
from world_model.attention.context import get_attend_context
from world_model.attention.packing import PackedOrder
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION
from world_model.attention.visibility import Table
from world_model.families.dreamzero.layout import HEADS_READ, DreamZeroSpec, rotary_angles
from world_model.layers import rotary
from world_model.layers.timestep_rows import TimestepRows
from world_model.layers.transformer import ForwardPass


def plain_pass(spec: DreamZeroSpec, table: Table, sequence: tokens.Sequence, rows: TimestepRows) -> ForwardPass:
    """Tokens as they come; the last layer's queries are those that heads read: adjacent, after the clean copy and
    before the states."""
    read, clean = read_by_heads(sequence), _clean_parts(sequence)
    attend = functools.partial(make_attend, spec.attention, table, keys=sequence, window_frames=spec.window_frames)
    last = clean + (1 if any(s.group is NOISY_ACTION for s in sequence) else 0) + 1
    (start, stop), = tokens.token_ranges(sequence, lambda s: s.group in HEADS_READ)
    return ForwardPass(
        rows=rows, rotary=rotary.constant(rotary_angles(spec, sequence)), attend=attend(queries=sequence),
        output_rows=TimestepRows(rows.parts[clean:last]), output_row_start=sum(c for c, _ in rows.parts[:clean]),
        output_slice=slice(start, stop), attend_output=attend(queries=read),
        attend_context=get_attend_context(spec.attention))


def packed_pass(spec: DreamZeroSpec, table: Table, packed: PackedOrder, rows: TimestepRows
                ) -> tuple[ForwardPass, PackedOrder]:
    """Tokens in the kernel's packed order; the last layer's queries are all but the clean copy, which stands first.
    Returns also the packed order of those."""
    clean = _clean_parts(packed.sequence)
    last = PackedOrder(tokens.select(packed.sequence, lambda s: s.group is not CLEAN_VIDEO), packed.tile)
    attend = functools.partial(flash.make_attend_packed, table, keys=packed, window_frames=spec.window_frames)
    angles = np.where(packed.order[:, None] < 0, 0, rotary_angles(spec, packed.sequence)[packed.order])
    return ForwardPass(
        rows=TimestepRows(rows.parts, packed.order), rotary=rotary.constant(angles), attend=attend(queries=packed),
        output_rows=TimestepRows(rows.parts[clean:], last.order),
        output_row_start=sum(c for c, _ in rows.parts[:clean]),
        output_slice=slice(len(packed.order) - len(last.order), None), attend_output=attend(queries=last),
        attend_context=get_attend_context(spec.attention)), last


def read_by_heads(sequence: tokens.Sequence) -> tokens.Sequence:
    """The noisy video and actions."""
    return tokens.select(sequence, lambda s: s.group in HEADS_READ)


def _clean_parts(sequence: tokens.Sequence) -> int:
    """Parts of `TimestepRows` before those of the noisy copy."""
    return int(any(s.group is CLEAN_VIDEO for s in sequence))
