"""One denoising step of one autoregressive block as a `torch.export` program: a file that PyTorch alone runs.

    program = torch.export.load("step.pt2").module()
    video, action = program(text, image, keys, values, noisy_latents, video_timestep, condition, noisy_actions,
                            action_timestep, state)

Shapes are fixed by the arguments it was made with; what stands where, the mask and the rotary angles of its block are
constants in it. Keys and values are what a session's cache holds, stacked over blocks (extra: torch).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from world_model.families.dreamzero.torch.runtime import Cache, Runtime, Session

Arguments = tuple[Tensor | None, ...]


class DenoiseStep(nn.Module):
    """Velocities of block `session.block`, from the embedded prompt and the cached past."""

    def __init__(self, session: Session):
        super().__init__()
        self.model = session.runtime.model  # its parameters are this module's
        self.runtime: Runtime = session.runtime
        self.table, self.block, self.sequence = session.table, session.block, session.cache.sequence

    def forward(self, text: Tensor, image: Tensor | None, keys: Tensor, values: Tensor, noisy_latents: Tensor,
                video_timestep: Tensor, condition: Tensor | None, noisy_actions: Tensor, action_timestep: Tensor,
                state: Tensor) -> tuple[Tensor, Tensor]:
        """text [B, Lt, D], image [B, Li, D]: embedded; keys, values [blocks, B, L, n, d]; the others as in
        world_model/families/dreamzero/model.py Inputs, of this block -> (video, action) velocities."""
        past = Cache(self.sequence, list(zip(keys.unbind(0), values.unbind(0), strict=True)))
        out = self.runtime.forward(
            (text, image), table=self.table, first_block=self.block, past=past, noisy_latents=noisy_latents,
            video_timestep=video_timestep, condition=condition, noisy_actions=noisy_actions,
            action_timestep=action_timestep, state=state)
        return out.video, out.action


def arguments(session: Session, **parts: Tensor | None) -> Arguments:
    """What DenoiseStep takes, from a session that has its past cached and the parts of its next block."""
    keys, values = (torch.stack(x) for x in zip(*session.cache.keys_values, strict=True))
    names = ("noisy_latents", "video_timestep", "condition", "noisy_actions", "action_timestep", "state")
    return (*session.context, keys, values, *(parts.get(name) for name in names))


@torch.no_grad()
def save(session: Session, path: str | Path, **parts: Tensor | None) -> None:
    """Writes the step of the session's next block; `parts` give the shapes."""
    program = torch.export.export(DenoiseStep(session), arguments(session, **parts), strict=False)
    torch.export.save(program, path)
