"""One denoising step of one autoregressive block as a `torch.export` program: a file that PyTorch alone runs.

    program = torch.export.load("step.pt2").module()
    video, action = program(text, image, keys, values, noisy_latents, video_timestep, condition, noisy_actions,
                            action_timestep, state)

Shapes are fixed by the arguments it was made with; what stands where, who sees whom and the rotary table of its block
are constants in it. Keys and values are what a session's cache holds, stacked over layers (extra: torch).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from world_model.families.dreamzero.layout import MASK_CHANNELS
from world_model.families.dreamzero.torch.loading import load, read_config
from world_model.families.dreamzero.torch.runtime import Cache, CachedBlocks, Runtime

Arguments = tuple[Tensor | None, ...]


class DenoiseStep(nn.Module):
    """Velocities of block `session.block`, from the embedded prompt and the cached past."""

    def __init__(self, session: CachedBlocks):
        super().__init__()
        self.model = session.runtime.model  # its parameters are this module's
        self.runtime: Runtime = session.runtime
        self.table, self.block, self.sequence = session.table, session.block, session.cache.sequence

    def forward(self, text: Tensor, image: Tensor | None, keys: Tensor, values: Tensor, noisy_latents: Tensor,
                video_timestep: Tensor, condition: Tensor | None, noisy_actions: Tensor, action_timestep: Tensor,
                state: Tensor) -> tuple[Tensor, Tensor]:
        """text [B, Lt, D], image [B, Li, D]: embedded; keys, values [layers, B, L, n, d]; the others as in
        model.ForwardInputs, of this block -> (video, action) velocities."""
        past = Cache(self.sequence, list(zip(keys.unbind(0), values.unbind(0), strict=True)))
        out = self.runtime.forward(
            (text, image), table=self.table, first_block=self.block, past=past, noisy_latents=noisy_latents,
            video_timestep=video_timestep, condition=condition, noisy_actions=noisy_actions,
            action_timestep=action_timestep, state=state)
        return out.video, out.action


def arguments(session: CachedBlocks, **parts: Tensor | None) -> Arguments:
    """What DenoiseStep takes, from a session that has its past cached and the parts of its next block."""
    keys, values = (torch.stack(x) for x in zip(*session.cache.keys_values, strict=True))
    names = ("noisy_latents", "video_timestep", "condition", "noisy_actions", "action_timestep", "state")
    return (*session.context, keys, values, *(parts.get(name) for name in names))


@torch.no_grad()
def save(session: CachedBlocks, path: str | Path, **parts: Tensor | None) -> None:
    """Writes the step of the session's next block; `parts` give the shapes."""
    program = torch.export.export(DenoiseStep(session), arguments(session, **parts), strict=False)
    torch.export.save(program, path)


@torch.no_grad()
def write_step(directory: str, out: str, *, block: int, batch: int, dtype: str) -> str:
    """Writes the step of `block` for `batch` samples from an export; returns a sentence about the file. Raises
    WeightsError where the export does not load, ValueError on a block that the model does not have."""
    runtime, _ = load(directory, dtype=getattr(torch, dtype))
    if not 1 <= block <= runtime.layout.num_blocks:
        raise ValueError(f"--block={block}: the model has blocks 1 to {runtime.layout.num_blocks}")
    session, parts = example(runtime, batch, block, **read_config(directory)["inputs"])
    save(session, out, **parts)
    shapes = {name: None if x is None else tuple(x.shape) for name, x in parts.items()}
    cached = session.cache.keys_values[0][0].shape[1]
    return f"block {block} after {cached} cached tokens; {shapes}"


def example(runtime: Runtime, batch: int, block: int, latent_size: tuple[int, int], text_length: int, image_tokens: int
            ) -> tuple[CachedBlocks, dict]:
    """(a session that stands before `block`, the parts of that block), zeros of the export's sizes and dtype."""
    model, layout, dtype = runtime.model, runtime.layout, runtime.model.head.head.weight.dtype
    channels, joined = model.out_dim, model.patch_embedding.in_channels != model.out_dim

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=dtype)

    def condition(frames: int) -> Tensor | None:
        return zeros(frames, *latent_size, MASK_CHANNELS + channels) if joined else None

    def times(count: int) -> Tensor:
        return torch.full((batch, count), 500.0)

    image = zeros(image_tokens, model.img_emb["proj"][1].in_features) if hasattr(model, "img_emb") else None
    session = runtime.start(zeros(text_length, model.text_embedding[0].in_features), image)
    frames, actions = layout.frames_per_block, layout.actions_per_block
    for count in (1, *[frames] * (block - 1)):
        session.prefill(zeros(count, *latent_size, channels), condition(count))
    return session, {
        "noisy_latents": zeros(frames, *latent_size, channels), "video_timestep": times(frames),
        "condition": condition(frames), "noisy_actions": zeros(actions, model.action_encoder.W1.W.shape[1]),
        "action_timestep": times(actions),
        "state": zeros(layout.states_per_block, model.state_encoder.layer1.W.shape[1])}
