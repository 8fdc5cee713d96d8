"""DreamZero's matrix products, for the teacher-forced forward with actions (convention:
world_model/analysis/flops.py)."""

from world_model.analysis.flops import Parts, Work, frozen, stack, trained, visible_pairs
from world_model.attention import tokens, visibility
from world_model.attention.tokens import Group
from world_model.families.base.spec import PATCH
from world_model.families.dreamzero.model import GROUPS, HEADS_READ, DreamZeroSpec


def forward_flops(spec: DreamZeroSpec) -> Parts:
    """Of one sample."""
    table = visibility.get_table(spec.visibility)
    blocks = range(spec.layout.num_blocks + 1)
    sequence = tokens.make_sequence(spec.layout, spec.tokens_per_frame, [(g, blocks) for g in GROUPS])
    kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
    sequence = tokens.select(sequence, kept.__contains__)
    read = tokens.select(sequence, lambda s: s.group in HEADS_READ)
    pairs, pairs_read = (visible_pairs(table, q, sequence, spec.window_frames) for q in (sequence, read))
    text, image = spec.text_length, spec.image_tokens if spec.image_dim else 0
    work = Work(tokens.length(sequence), tokens.length(read), pairs, pairs_read, text, image)
    return stack(work, spec.dim, spec.ffn_dim, spec.num_layers) | _ends(spec, sequence, text, image)


def _ends(spec: DreamZeroSpec, sequence: tokens.Sequence, text: int, image: int) -> Parts:
    """Embedders and heads."""
    count = {g: sum(s.length for s in sequence if s.group is g) for g in GROUPS}
    video = count[Group.CLEAN_VIDEO] + count[Group.NOISY_VIDEO]
    rows = video // spec.tokens_per_frame + count[Group.ACTION] + count[Group.STATE]
    d, hidden, actions = spec.dim, spec.action_hidden_dim, count[Group.ACTION]
    return {
        "patch_embedding": frozen((video, PATCH**2 * spec.input_channels, d)),
        "context_embedding": frozen((text, spec.text_dim, d), (image, spec.image_dim, spec.image_dim))
        + trained((text, d, d), (image, spec.image_dim, d)),
        "time_embedding": frozen((rows, spec.freq_dim, d)) + trained((rows, d, d), (rows, d, 6 * d)),
        "action_and_state": frozen((actions, spec.action_dim, d), (count[Group.STATE], spec.state_dim, hidden))
        + trained((actions, 2 * d, d), (actions, d, d), (count[Group.STATE], hidden, d),
                  (actions, d, hidden), (actions, hidden, spec.action_dim)),
        "head": trained((count[Group.NOISY_VIDEO], d, PATCH**2 * spec.latent_channels)),
    }
