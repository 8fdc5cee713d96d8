"""LingBot-VA's visibility tables: who sees whom under inverse and forward dynamics."""

from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO
from world_model.attention.visibility import Rule, Table

CLEAN, NOISY, ACTION = CLEAN_VIDEO, NOISY_VIDEO, NOISY_ACTION

# Blocks alternate (arXiv 2601.21998, section 3): a chunk's video is block 2 c, its actions are block 2 c + 1. Video is
# predicted from the clean past; actions from that past and the clean copy of their own chunk's video.
_INVERSE_DYNAMICS: Table = {
    (CLEAN, CLEAN): Rule.UP_TO_OWN, (CLEAN, CLEAN_ACTION): Rule.UP_TO_OWN,
    (CLEAN_ACTION, CLEAN): Rule.UP_TO_OWN, (CLEAN_ACTION, CLEAN_ACTION): Rule.UP_TO_OWN,
    (NOISY, CLEAN): Rule.EARLIER, (NOISY, CLEAN_ACTION): Rule.EARLIER, (NOISY, NOISY): Rule.OWN,
    (ACTION, CLEAN): Rule.EARLIER, (ACTION, CLEAN_ACTION): Rule.EARLIER, (ACTION, ACTION): Rule.OWN,
}  # fmt: skip

# Forward dynamics (arXiv 2601.21998, Eq. 13): video is predicted from its own chunk's actions as well. These must then
# not see the clean copy of that video, which would pass through them to where it is to be predicted.
_FORWARD_DYNAMICS: Table = {
    **_INVERSE_DYNAMICS, (NOISY, CLEAN_ACTION): Rule.UP_TO_NEXT, (CLEAN_ACTION, CLEAN): Rule.BUT_LAST,
}  # fmt: skip

# What is visible under one or the other, where a step samples which of them holds.
_EITHER_DYNAMICS: Table = {**_INVERSE_DYNAMICS, (NOISY, CLEAN_ACTION): Rule.UP_TO_NEXT}

TABLES: dict[str, Table] = {
    "lingbot_va": _INVERSE_DYNAMICS,
    "lingbot_va_forward_dynamics": _FORWARD_DYNAMICS,
    "lingbot_va_either_dynamics": _EITHER_DYNAMICS,
}
