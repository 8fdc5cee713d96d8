"""DreamZero's matrix products, for the teacher-forced forward with actions (convention:
world_model/analysis/flops.py)."""

from world_model.analysis.flops import Parts, Work, frozen, stack, trained, visible_pairs
from world_model.attention import tokens, visibility
from world_model.attention.tokens import CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, STATE
from world_model.families.dreamzero.layout import GROUPS, HEADS_READ, DreamZeroSpec, make_sequence
from world_model.families.wan.spec import PATCH


def forward_flops(spec: DreamZeroSpec) -> Parts:
    """The products of one sample, by part."""
    table = spec.table()
    sequence = make_sequence(spec)
    kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
    sequence = tokens.select(sequence, kept.__contains__)
    read = tokens.select(sequence, lambda s: s.group in HEADS_READ)
    pairs, pairs_read = (visible_pairs(table, q, sequence, spec.window_frames) for q in (sequence, read))
    text, image = spec.text_length, spec.image_tokens if spec.image_dim else 0
    work = Work(tokens.length(sequence), tokens.length(read), pairs, pairs_read, text, image)
    return stack(work, spec.dim, spec.ffn_dim, spec.num_layers) | _ends(spec, sequence, text, image)


def _ends(spec: DreamZeroSpec, sequence: tokens.Sequence, text: int, image: int) -> Parts:
    """Products of embedders and heads."""
    count = {g: sum(s.length for s in sequence if s.group is g) for g in GROUPS}
    video = count[CLEAN_VIDEO] + count[NOISY_VIDEO]
    rows = video // spec.tokens_per_frame + count[NOISY_ACTION] + count[STATE]
    d, hidden, actions = spec.dim, spec.action_hidden_dim, count[NOISY_ACTION]
    return {
        "patch_embedding": frozen((video, PATCH**2 * spec.input_channels, d)),
        "context_embedding": frozen((text, spec.text_dim, d), (image, spec.image_dim, spec.image_dim))
        + trained((text, d, d), (image, spec.image_dim, d)),
        "time_embedding": frozen((rows, spec.freq_dim, d)) + trained((rows, d, d), (rows, d, 6 * d)),
        "action_and_state": frozen((actions, spec.action_dim, d), (count[STATE], spec.state_dim, hidden))
        + trained((actions, 2 * d, d), (actions, d, d), (count[STATE], hidden, d),
                  (actions, d, hidden), (actions, hidden, spec.action_dim)),
        "head": trained((count[NOISY_VIDEO], d, PATCH**2 * spec.latent_channels)),
    }
