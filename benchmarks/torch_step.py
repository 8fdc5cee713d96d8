"""A train step of DreamZero in PyTorch, as fast as plain PyTorch makes it, to stand beside ours in the same process:

    python -m benchmarks.full_width --config=configs/dreamzero_14b.py ... --reference=benchmarks/torch_step.py

Both sides do the same work: float32 weights that are cast to bfloat16 once a step, the same tokens left out (clean ones
that nothing depends on; queries of the last layer that no head reads), gradients clipped by their norm, AdamW. This one
is compiled by torch.compile, with flex attention over block masks that are built once, and the fused AdamW.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex

from world_model.attention import tokens as token_segments
from world_model.attention import visibility
from world_model.attention.tokens import CLEAN_VIDEO
from world_model.batch import Layout
from world_model.families.dreamzero.layout import HEADS_READ, MASK_CHANNELS, DreamZeroSpec, make_sequence
from world_model.families.dreamzero.torch.network import DreamZero
from world_model.families.dreamzero.torch.runtime import Runtime
from world_model.families.dreamzero.weights.reference_format import network_sizes
from world_model.families.wan.torch_layers import span_attention


def make_step(shape: dict, device: str):
    """See benchmarks/reference.py. Raises ValueError where the shape is another family's."""
    fields = {name: value for name, value in shape.items() if name not in ("batch", "compute_dtype")}
    if "action_hidden_dim" not in fields:
        raise ValueError("benchmarks/torch_step.py is a step of DreamZero; this is the shape of another family")
    spec = DreamZeroSpec(**fields | {"layout": Layout(**fields["layout"])})
    torch.manual_seed(0)
    with torch.device(device):
        model = DreamZero(**network_sizes(spec))
        parts = random_parts(spec, shape["batch"])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    step = Step(model, spec, parts, getattr(torch, shape["compute_dtype"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.95, 0.999), weight_decay=1e-5, fused=True)

    def run() -> None:
        step.loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def random_parts(spec: DreamZeroSpec, batch: int) -> dict[str, Tensor | None]:
    """One batch under the names of model.ForwardInputs, as Runtime takes them."""
    layout, latent = spec.layout, (spec.latent_height, spec.latent_width)
    frames, actions = layout.latent_frames, layout.num_actions

    def video(channels: int) -> Tensor:
        return torch.randn(batch, frames, *latent, channels)

    return {"clean_latents": video(spec.latent_channels), "noisy_latents": video(spec.latent_channels),
            "condition": video(MASK_CHANNELS + spec.latent_channels) if spec.concat_first_frame else None,
            "video_timestep": 1000 * torch.rand(batch, frames), "action_timestep": 1000 * torch.rand(batch, actions),
            "noisy_actions": torch.randn(batch, actions, spec.action_dim),
            "state": torch.randn(batch, layout.num_states, spec.state_dim),
            "text": torch.randn(batch, spec.text_length, spec.text_dim),
            "image": torch.randn(batch, spec.image_tokens, spec.image_dim) if spec.image_dim else None}


class Step:
    """The loss on one batch. Positions, rows and masks are made once."""

    def __init__(self, model: DreamZero, spec: DreamZeroSpec, parts: dict, dtype: torch.dtype):
        self.model, self.parts = model, {name: x if x is None or "timestep" in name else x.to(dtype)
                                         for name, x in parts.items()}
        self.dtype, self.text, self.image = dtype, self.parts.pop("text"), self.parts.pop("image")
        table = spec.table()
        kept = visibility.needed(table, make_sequence(spec), set(HEADS_READ), spec.window_frames)
        self.clean = sum(s.group is CLEAN_VIDEO for s in kept)
        runtime = Runtime(model.to(dtype), spec.layout, table, table, spec.window_frames)
        with torch.no_grad():
            self.tokens, sequence = runtime._embed(0, **self.parts | {
                "clean_latents": self.parts["clean_latents"][:, :self.clean]})
        model.float()
        (start, stop), = token_segments.token_ranges(sequence, lambda s: s.group in HEADS_READ)
        read = token_segments.select(sequence, lambda s: s.group in HEADS_READ)
        device = self.text.device
        self.read, self.grid = slice(start, stop), (spec.layout.latent_frames, *spec.grid)
        self.attention = flex_over(table, sequence, sequence, spec.window_frames, device)
        self.attention_read = flex_over(table, read, sequence, spec.window_frames, device)
        for layer in model.blocks:
            layer.compile()

    def loss(self) -> Tensor:
        """Mean square error of both velocities, whose targets are the noisy inputs here."""
        weights = {name: p.to(self.dtype) for name, p in self.model.named_parameters()}
        video, action = torch.func.functional_call(Forward(self.model), {f"model.{k}": w for k, w in weights.items()},
                                                   (self,))
        return ((video - self.parts["noisy_latents"]).float().square().mean()
                + (action - self.parts["noisy_actions"]).float().square().mean())


class Forward(nn.Module):
    """A network's velocities; a module, so that `functional_call` finds its weights."""

    def __init__(self, model: DreamZero):
        super().__init__()
        self.model = model

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """-> (video, actions)."""
        model, parts, tokens = self.model, step.parts, step.tokens
        clean, noisy = parts["clean_latents"][:, :step.clean], parts["noisy_latents"]
        if (condition := parts["condition"]) is not None:
            clean, noisy = (torch.cat([x, condition[:, :x.shape[1]]], -1) for x in (clean, noisy))
        x = torch.cat([
            model.patches(clean), model.patches(noisy), model.action_encoder(parts["noisy_actions"],
            parts["action_timestep"]), model.state_encoder(parts["state"])], 1)
        context, time = model.context(step.text, step.image), model.time(tokens.timesteps)
        modulation = model.time_projection(time).unflatten(-1, (6, -1))
        for block in model.blocks[:-1]:
            x, _ = block(x, modulation, tokens, context, step.attention)
        x, _ = model.blocks[-1](x, modulation, tokens, context, step.attention_read, read=step.read)
        actions = parts["noisy_actions"].shape[1]
        time = time[:, tokens.rows[step.read]][:, :-actions]
        return model.video(x[:, :-actions], time, step.grid), model.action_decoder(x[:, -actions:])


def flex_over(table, queries, keys, window_frames: int, device):
    """Flex attention of queries to keys by a visibility table: a function for `Layer`. On a CPU, where PyTorch has no
    gradient of it, span by span."""
    if device.type == "cpu":
        return span_attention(visibility.make_spans(table, queries, keys, window_frames))
    seen = torch.tensor([[visibility.sees(table, q, k, window_frames) for k in keys] for q in queries], device=device)
    rows, columns = (torch.from_numpy(np.ascontiguousarray(token_segments.segment_of_token(s))).to(device)
                     for s in (queries, keys))
    lengths = token_segments.length(queries), token_segments.length(keys)
    mask = flex.create_block_mask(lambda b, h, q, k: seen[rows[q], columns[k]], None, None, *lengths, device=device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex.flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask)
        return out.transpose(1, 2).flatten(-2)

    return attend
