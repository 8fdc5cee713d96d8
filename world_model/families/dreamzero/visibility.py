"""DreamZero's visibility tables: who sees whom in training and in cached rollouts."""

from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE
from world_model.attention.visibility import Rule, Table

CLEAN, NOISY, ACTION = CLEAN_VIDEO, NOISY_VIDEO, NOISY_ACTION

# Teacher-forced training (arXiv 2602.15922, section 3; published code: the teacher-forcing mask). A noisy block and its
# actions see each other, their own state, and the clean video of all earlier blocks; a state token sees its own block's
# state alone.
_TEACHER_FORCED: Table = {
    (CLEAN, CLEAN): Rule.WINDOW,
    (NOISY, CLEAN): Rule.EARLIER, (NOISY, NOISY): Rule.OWN, (NOISY, ACTION): Rule.OWN, (NOISY, STATE): Rule.OWN,
    (ACTION, CLEAN): Rule.EARLIER, (ACTION, NOISY): Rule.OWN, (ACTION, ACTION): Rule.OWN, (ACTION, STATE): Rule.OWN,
    (STATE, STATE): Rule.OWN,
}  # fmt: skip

# The released weights' own cached inference: a state token sees what its block's actions see, and everybody the frames
# of the last window alone, without the first one. Training does neither; kept for reproducing them
# (docs/references/dreamzero.md).
_STATE_SEES_ALL: Table = {
    **_TEACHER_FORCED, (CLEAN, CLEAN): Rule.RECENT,
    **{(query, CLEAN): Rule.RECENT_EARLIER for query in (NOISY, ACTION, STATE)},
    (STATE, NOISY): Rule.OWN, (STATE, ACTION): Rule.OWN,
}  # fmt: skip

# One copy of the video, no clean half: a block sees the noisy blocks before it.
_NO_CLEAN_COPY: Table = {
    (NOISY, NOISY): Rule.WINDOW, (NOISY, ACTION): Rule.OWN, (NOISY, STATE): Rule.OWN,
    (ACTION, NOISY): Rule.WINDOW, (ACTION, ACTION): Rule.OWN, (ACTION, STATE): Rule.OWN,
    (STATE, STATE): Rule.OWN,
}  # fmt: skip

# Which modality sees the other inside a block; published studies disagree on it (docs/references/dreamzero.md).
# Mutual is the teacher-forced table itself. The history and the state are seen by both in all of them.
_ACTION_SEES_VIDEO: Table = {pair: rule for pair, rule in _TEACHER_FORCED.items() if pair != (NOISY, ACTION)}
_VIDEO_SEES_ACTION: Table = {pair: rule for pair, rule in _TEACHER_FORCED.items() if pair != (ACTION, NOISY)}
_ISOLATED: Table = {pair: rule for pair, rule in _ACTION_SEES_VIDEO.items() if pair != (ACTION, NOISY)}

# Wan's own forward, before it is made causal: every frame sees every frame.
_BIDIRECTIONAL: Table = {(NOISY, NOISY): Rule.ALL}

TABLES: dict[str, Table] = {
    "dreamzero": _TEACHER_FORCED,
    "dreamzero_state_sees_all": _STATE_SEES_ALL,
    "dreamzero_no_clean": _NO_CLEAN_COPY,
    "dreamzero_action_sees_video": _ACTION_SEES_VIDEO,
    "dreamzero_video_sees_action": _VIDEO_SEES_ACTION,
    "dreamzero_isolated": _ISOLATED,
    "bidirectional": _BIDIRECTIONAL,
}
