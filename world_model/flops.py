"""Counting the work: matrix products of one training sample, by part.

Convention, stated wherever a figure stands: 2 FLOP per multiply-add; matrix products alone; attention over visible
pairs alone; backward = two products per forward product, but one where the input is frozen (no gradient with
respect to data or encoder features); tokens that no output depends on do not count; no recomputation.
"""

from world_model import tokens, visibility
from world_model.families.dreamzero import GROUPS, HEADS_READ, PATCH, DreamZeroSpec
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
    sequence = tokens.make_sequence(spec.layout, spec.tokens_per_frame, [(g, blocks) for g in GROUPS])
    kept = visibility.needed(table, sequence, set(HEADS_READ), spec.window_frames)
    sequence = tokens.restart(sequence, kept.__contains__)
    read = tokens.restart(sequence, lambda s: s.group in HEADS_READ)
    pairs_all, pairs_read = (visible_pairs(table, q, sequence, spec.window_frames) for q in (sequence, read))
    count_all, count_read, inner = tokens.length(sequence), tokens.length(read), spec.num_layers - 1
    count = {g: sum(s.length for s in sequence if s.group is g) for g in GROUPS}
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
