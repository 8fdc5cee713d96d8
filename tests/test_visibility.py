"""The visibility table against the published rules written out by hand, and what is derived from it."""

import numpy as np
import pytest

from world_model.attention import tokens, visibility
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE
from world_model.batch import Layout
from world_model.families.dreamzero.layout import GROUPS
from world_model.families.dreamzero.visibility import TABLES

LAYOUT = Layout(frames=25, height=8, width=8, frames_per_block=2, actions_per_block=8, states_per_block=1)
FRAME = 3  # tokens per frame
CLEAN, NOISY, ACTION = CLEAN_VIDEO, NOISY_VIDEO, NOISY_ACTION


def sequence(*groups):
    return tokens.make_sequence(LAYOUT, FRAME, [(g, range(LAYOUT.num_blocks + 1)) for g in groups])


def by_hand(window_frames: int) -> np.ndarray:
    """The teacher-forcing mask with actions (docs/references/dreamzero.md), token by token."""
    tokens_ = [(g, f, 0 if f == 0 else 1 + (f - 1) // 2) for g in (CLEAN, NOISY) for f in range(7) for _ in range(FRAME)]
    tokens_ += [(ACTION, None, 1 + i // 8) for i in range(24)] + [(STATE, None, 1 + i) for i in range(3)]
    mask = np.zeros((len(tokens_), len(tokens_)), bool)
    for i, (qg, _, qb) in enumerate(tokens_):
        for j, (kg, kf, kb) in enumerate(tokens_):
            end = 1 + 2 * qb
            if qg is CLEAN:
                mask[i, j] = kg is CLEAN and kb <= qb and (kf == 0 or not window_frames or kf >= max(1, end - window_frames))
            elif qg is STATE:
                mask[i, j] = kg is STATE and kb == qb
            else:
                mask[i, j] = kb < qb if kg is CLEAN else kb == qb
    return mask


@pytest.mark.parametrize("window_frames", [0, 7, 5, 4, 3])
def test_the_table_is_the_published_mask(window_frames):
    whole = sequence(CLEAN, NOISY, ACTION, STATE)
    mask = visibility.dense_mask(visibility.get_table("dreamzero", TABLES), whole, whole, window_frames)
    np.testing.assert_array_equal(mask, by_hand(window_frames))


@pytest.mark.parametrize("name, blind", [("action_sees_video", {(NOISY, ACTION)}), ("video_sees_action", {(ACTION, NOISY)}),
                                         ("isolated", {(NOISY, ACTION), (ACTION, NOISY)})])
def test_the_ablated_tables_hide_one_modality_from_the_other_and_nothing_else(name, blind):
    whole = sequence(*GROUPS)
    group = np.repeat([str(s.group) for s in whole], [s.stop - s.start for s in whole])
    mutual, ablated = (visibility.dense_mask(visibility.get_table(n, TABLES), whole, whole)
                       for n in ("dreamzero", f"dreamzero_{name}"))
    hidden = sum((np.outer(group == str(q), group == str(k)) for q, k in blind), np.zeros_like(mutual))
    np.testing.assert_array_equal(ablated, mutual & ~hidden.astype(bool))


@pytest.mark.parametrize("name", sorted(name for name in TABLES if name.startswith("dreamzero")))
@pytest.mark.parametrize("window_frames", [0, 3])
def test_spans_cover_exactly_the_mask(name, window_frames):
    groups = (NOISY, ACTION, STATE) if name == "dreamzero_no_clean" else GROUPS
    whole, table = sequence(*groups), visibility.get_table(name, TABLES)
    mask, covered = visibility.dense_mask(table, whole, whole, window_frames), None
    covered = np.zeros(mask.shape, int)
    for span in visibility.make_spans(table, whole, whole, window_frames):
        rows = np.concatenate([np.arange(*r) for r in span.queries])
        columns = np.concatenate([np.arange(*r) for r in span.keys])
        covered[np.ix_(rows, columns)] += 1
    np.testing.assert_array_equal(covered, mask.astype(int))


def test_the_last_clean_block_is_not_needed_and_everything_else_is():
    whole = sequence(*GROUPS)
    needed = visibility.needed(visibility.get_table("dreamzero", TABLES), whole, {NOISY, ACTION})
    assert {s for s in whole if s not in needed} == {s for s in whole if s.group is CLEAN and s.block == 3}


def test_a_blind_query_is_an_error():
    with pytest.raises(ValueError, match="noisy action of block 1 sees no token"):
        visibility.make_spans({(STATE, STATE): visibility.Rule.OWN}, sequence(ACTION), sequence(STATE))


def test_unknown_table_lists_the_names():
    with pytest.raises(ValueError, match="dreamzero_no_clean"):
        visibility.get_table("dreamzer", TABLES)


def test_the_picture_shows_every_visible_cell():
    whole, table = sequence(*GROUPS), visibility.get_table("dreamzero", TABLES)
    picture = visibility.render(table, whole, pixels=256)
    cell = picture.shape[0] // len(whole)
    centres = picture[cell // 2::cell, cell // 2::cell]
    seen = np.array([[visibility.sees(table, q, k) for k in whole] for q in whole])
    np.testing.assert_array_equal((centres != 245).any(-1), seen)
