"""LingBot-VA's matrix products (convention: world_model/analysis/flops.py).

Visible pairs are the mean over the chunk sizes that are sampled, without the window: where it bites there are fewer.
"""

import dataclasses

import numpy as np

from world_model.analysis.flops import Parts, Work, frozen, stack, trained, visible_pairs
from world_model.attention import tokens, visibility
from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO
from world_model.families.lingbot_va.layout import GROUPS, HEADS_READ, VIDEO_GROUPS, LingBotVASpec, make_sequence
from world_model.families.lingbot_va.mixture import LingBotVAMoTSpec
from world_model.families.wan.spec import PATCH


def forward_flops(spec: LingBotVASpec) -> Parts:
    """The products of one sample, by part."""
    sequence, work = _work(spec)
    return stack(work, spec.dim, spec.ffn_dim, spec.num_layers) | _ends(spec, sequence, spec.dim)


def mot_forward_flops(spec: LingBotVAMoTSpec) -> Parts:
    """The products of one sample, by part; those of the action stream have their own names, self-attention is joint."""
    sequence, work = _work(spec)

    def count(groups: tuple) -> int:
        return sum(s.length for s in sequence if s.group in groups)

    video = work._replace(tokens=count(VIDEO_GROUPS), read=count(VIDEO_GROUPS[1:]))
    action = work._replace(tokens=work.tokens - video.tokens, read=work.read - video.read, pairs=0, pairs_read=0)
    narrow = stack(action, spec.action_stream_dim, spec.action_ffn_dim, spec.num_layers, spec.dim)
    text = frozen((work.text, spec.text_dim, spec.action_stream_dim)) + trained(
        (work.text, spec.action_stream_dim, spec.action_stream_dim))
    return (stack(video, spec.dim, spec.ffn_dim, spec.num_layers) | _ends(spec, sequence, spec.action_stream_dim)
            | {f"action_{part}": products for part, products in narrow.items() if part != "self_attention"}
            | {"action_context_embedding": text})


def _work(spec: LingBotVASpec) -> tuple[tokens.Sequence, Work]:
    table, sequence = spec.table(), make_sequence(spec, spec.layout.latent_frames)
    kept = visibility.needed(table, sequence, set(HEADS_READ))
    sequence = tokens.select(sequence, kept.__contains__)
    read = tokens.select(sequence, lambda s: s.group in HEADS_READ)

    def under(side, i: int) -> tokens.Sequence:
        return tuple(dataclasses.replace(s, blocks=s.blocks[i:i + 1]) for s in side)

    pairs, pairs_read = (
        float(np.mean([visible_pairs(table, under(q, i), under(sequence, i)) for i in range(spec.max_chunk_frames)]))
        for q in (sequence, read))
    return sequence, Work(tokens.length(sequence), tokens.length(read), pairs, pairs_read, spec.text_length)


def _ends(spec: LingBotVASpec, sequence: tokens.Sequence, action_width: int) -> Parts:
    """Products of embedders and heads."""
    count = {g: sum(s.length for s in sequence if s.group is g) for g in GROUPS}
    video, actions = (count[a] + count[b] for a, b in ((CLEAN_VIDEO, NOISY_VIDEO),
                                                       (CLEAN_ACTION, NOISY_ACTION)))
    d, a, text, frames = spec.dim, action_width, spec.text_length, spec.layout.latent_frames

    def time(rows: int, width: int) -> list:
        return frozen((rows, spec.freq_dim, width)) + trained((rows, width, width), (rows, width, 6 * width))

    return {
        "patch_embedding": frozen((video, PATCH**2 * spec.latent_channels, d)),
        "action_embedding": frozen((actions, spec.action_dim, a)),
        "context_embedding": frozen((text, spec.text_dim, d)) + trained((text, d, d)),
        "time_embedding": time(2 * frames, d) + time(frames + 1, a),
        "head": trained((count[NOISY_VIDEO], d, PATCH**2 * spec.latent_channels),
                        (count[NOISY_ACTION], a, spec.action_dim)),
    }
