"""Who is in the prefix, where it stands and who sees whom: families/lingbot_vla/prefix.py in PyTorch (extra: torch).

Nothing here is asked of the device, and all of it is made once for a prediction.
"""

import torch
from torch import Tensor

from world_model.families.lingbot_vla.prefix import frequencies, seen_in_prefix, view_positions
from world_model.families.lingbot_vla.spec import LingBotVLASpec


def prefix_tokens(spec: LingBotVLASpec, view_mask: Tensor, text_length: Tensor) -> tuple[Tensor, Tensor]:
    """view_mask bool [B, V], text_length int [B] -> (valid bool [B, Lp], positions int [axes, B, Lp])."""
    device = view_mask.device
    words = torch.arange(spec.text_length, device=device) < text_length[:, None]
    per_view = view_mask.repeat_interleave(spec.view_tokens + len(spec.view_markers), 1)
    depth = view_mask.repeat_interleave(spec.depth_queries, 1)
    valid = torch.cat([per_view, depth, words, words.new_ones(len(words), spec.queries)], 1)
    if not spec.rope_sections:
        return valid, (valid.cumsum(1) - 1)[None]
    inside, length = view_positions(spec)
    before = length * (view_mask.cumsum(1) - view_mask.long())
    views = before[..., None] + torch.from_numpy(inside).to(device)[:, None, None]
    start = length * view_mask.sum(1, keepdim=True)
    text = start + torch.arange(spec.text_length, device=device)
    queries = start + words.sum(1, keepdim=True) + torch.arange(spec.queries, device=device)
    line = torch.cat([text, queries], 1).expand(3, -1, -1)
    return valid, torch.where(valid, torch.cat([views.flatten(2), line], 2), 1)


def suffix_positions(valid: Tensor, positions: Tensor, count: int) -> Tensor:
    """int [axes, B, count], behind the last token of the prefix that exists."""
    first = torch.where(valid, positions, -1).amax((0, 2)) + 1
    line = first[:, None] + torch.arange(count, device=valid.device)
    return line.expand(len(positions), -1, -1)


def prefix_mask(spec: LingBotVLASpec, valid: Tensor) -> Tensor:
    """bool [B, Lp, Lp] (query, key). Tokens that do not exist see themselves, which nobody reads, as a softmax over
    nothing is no number."""
    mask = valid[:, :, None] & valid[:, None] & torch.from_numpy(seen_in_prefix(spec)).to(valid.device)
    return mask | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)


def suffix_mask(spec: LingBotVLASpec, valid: Tensor, actions: int) -> Tensor:
    """bool [B, 1 + actions, Lp + 1 + actions]: the state sees the prefix and itself, actions see all; of the queries
    for the future only where model.actions_see_future."""
    count = 1 + actions
    if not spec.actions_see_future:
        valid = valid & (torch.arange(valid.shape[1], device=valid.device) < valid.shape[1] - spec.query_tokens)
    own = torch.ones(count, count, dtype=torch.bool, device=valid.device)
    own[0, 1:] = False
    return torch.cat([valid[:, None].expand(-1, count, -1), own.expand(len(valid), -1, -1)], 2)


def rotary_table(spec: LingBotVLASpec, positions: Tensor) -> Tensor:
    """float32 [2, B, L, d/2]: cosines and sines of positions int [axes, B, L]."""
    frequency, axis = (torch.from_numpy(x).to(positions.device) for x in frequencies(spec))
    angles = positions.float()[axis].movedim(0, -1) * frequency
    return torch.stack([angles.cos(), angles.sin()])
