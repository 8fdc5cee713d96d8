"""LingBot-VA's matrix products (convention: world_model/flops.py).

Visible pairs are the mean over the chunk sizes that are drawn, without the window: where it bites there are fewer.
"""

import dataclasses

import numpy as np

from world_model import tokens, visibility
from world_model.families.lingbot_va import GROUPS, HEADS_READ, PATCH, LingBotVASpec, make_sequence
from world_model.flops import Parts, Work, frozen, stack, trained, visible_pairs
from world_model.tokens import Group


def forward_flops(spec: LingBotVASpec) -> Parts:
    """Of one sample."""
    table, sequence = visibility.get_table(spec.visibility), make_sequence(spec, spec.layout.latent_frames)
    kept = visibility.needed(table, sequence, set(HEADS_READ))
    sequence = tokens.restart(sequence, kept.__contains__)
    read = tokens.restart(sequence, lambda s: s.group in HEADS_READ)
    under = lambda side, i: tuple(dataclasses.replace(s, blocks=s.blocks[i:i + 1]) for s in side)
    pairs, pairs_read = (
        float(np.mean([visible_pairs(table, under(q, i), under(sequence, i)) for i in range(spec.max_chunk_frames)]))
        for q in (sequence, read))
    work = Work(tokens.length(sequence), tokens.length(read), pairs, pairs_read, spec.text_length)
    return stack(work, spec.dim, spec.ffn_dim, spec.num_layers) | _ends(spec, sequence)


def _ends(spec: LingBotVASpec, sequence: tokens.Sequence) -> Parts:
    """Embedders and heads."""
    count = {g: sum(s.length for s in sequence if s.group is g) for g in GROUPS}
    video, actions = (count[a] + count[b] for a, b in ((Group.CLEAN_VIDEO, Group.NOISY_VIDEO),
                                                       (Group.CLEAN_ACTION, Group.ACTION)))
    d, text, rows = spec.dim, spec.text_length, 3 * spec.layout.latent_frames + 1
    return {
        "patch_embedding": frozen((video, PATCH**2 * spec.latent_channels, d)),
        "action_embedding": frozen((actions, spec.action_dim, d)),
        "context_embedding": frozen((text, spec.text_dim, d)) + trained((text, d, d)),
        "time_embedding": frozen((rows, spec.freq_dim, d)) + trained((rows, d, d), (rows, d, 6 * d)),
        "head": trained((count[Group.NOISY_VIDEO], d, PATCH**2 * spec.latent_channels),
                        (count[Group.ACTION], d, spec.action_dim)),
    }
