"""Exports as policies in PyTorch: a `Policy` with an episode per session (extra: torch).

What the robot sees and reads goes through the frozen encoders in JAX, and noise is sampled from the same keys: to the
same requests both runtimes answer the same. Rows of a batch run one after another.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from world_model.diffusion.inpainting import Inpainting
from world_model.families.base.inputs import Inputs
from world_model.families.base.policy import Chunk


@dataclasses.dataclass
class Episode:
    """An episode under way."""

    state: Any  # what the runtime keeps
    imagined: np.ndarray | None = None  # [n, h, w, C], the block predicted last


class TorchPolicy:
    """What families share. A family says what happens to one episode: `load`, `sample_noise`, `begin_episode`,
    `observe_block`, `predict_block`; arrays there are tensors with a leading axis of one sample."""

    batch_sizes = (1,)  # nothing compiles

    def __init__(self, directory: Path, device: str, sampler, inputs: Inputs, frozen: dict, sessions: int,
                 channels: np.ndarray):
        """sampler: the JAX one; its settings are those of the runtime, and it samples the noise. Raises WeightsError
        where the export does not load."""
        self.device, self.inputs, self.frozen, self.count = device, inputs, frozen, sessions
        self.channels = self.tensor(channels)[None]
        if getattr(sampler, "branch_devices", 1) != 1:
            raise ValueError("branch_devices = 2: the PyTorch runtime runs both branches of the guidance as one batch")
        self.settings = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(sampler)
                         if field.name not in ("model", "branch_devices")}
        self.runtime = self.load(directory)
        self._noise = jax.jit(jax.vmap(lambda key, block: self.sample_noise(sampler, key[None], block)))
        self._start, self._encode_block = jax.jit(inputs.start), jax.jit(inputs.encode_block)
        self.reset()

    # --- what happens to one episode, told by a family -----------------------------------------------------------

    @property
    def last_block(self) -> int | None:
        """See `Policy`."""
        return None

    def load(self, directory: Path):
        """The runtime, with `settings`."""
        raise NotImplementedError

    def sample_noise(self, sampler, keys, block):
        """Initial noise of a block, by JAX: a tuple of arrays."""
        return sampler.noise(keys, block)

    def begin_episode(self, start) -> Any:
        """What the runtime keeps of an episode; start: what `Inputs.start` gave, as tensors."""
        raise NotImplementedError

    def observe_block(self, state, seen, actions: Tensor, block: int) -> Any:
        """What is kept after a block as it really happened; seen: what `Inputs.encode_block` gave."""
        raise NotImplementedError

    def predict_block(self, state, noise: tuple, robot_state: Tensor, block: int, inpainting: Inpainting
                      ) -> tuple[Tensor | None, Tensor]:
        """(latents or None, actions) of a block."""
        raise NotImplementedError

    # --- over sessions -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """See `Policy`."""
        self._episodes: list[Episode | None] = [None] * self.count

    def start(self, sessions, pictures, text_ids, text_length) -> None:
        """See `Policy`."""
        start = jax.device_get(self._start(self.frozen, pictures, text_ids, text_length))
        for row, session in enumerate(sessions):
            self._episodes[session] = Episode(self.begin_episode(self._row(start, row)))

    def observe(self, sessions, pictures, actions, block) -> np.ndarray | None:
        """See `Policy`."""
        seen, gaps = jax.device_get(self._encode_block(self.frozen, pictures)), []
        for row, session in enumerate(sessions):
            episode = self._episodes[session]
            if episode.imagined is not None:
                gaps.append(np.sqrt(np.square(seen[row] - episode.imagined).mean()))
            episode.state = self.observe_block(episode.state, self._row(seen, row), self._row(actions, row),
                                               int(block[row]))
        return np.float32(gaps) if gaps else None

    def act(self, sessions, state, block, keys, actions, given) -> Chunk:
        """See `Policy`."""
        noise, chunks = jax.device_get(self._noise(keys, block)), []
        for row, session in enumerate(sessions):
            of_row = tuple(self.tensor(x[row]) for x in noise)
            given_actions = Inpainting(self._row(actions, row), self._row(given, row))
            latents, predicted = self.predict_block(self._episodes[session].state, of_row,
                                                    self.tensor(state[row])[None, None], int(block[row]), given_actions)
            imagined = None if latents is None else latents[0].cpu().numpy()
            self._episodes[session].imagined = imagined
            chunks.append(Chunk(predicted[0].cpu().numpy(), imagined))
        return jax.tree.map(lambda *rows: np.stack(rows), *chunks)

    def imagine(self, *asked) -> Chunk:
        """See `Policy`: exports only act."""
        raise NotImplementedError("forward and inverse dynamics run in JAX")

    label = imagine

    def decode(self, latents) -> np.ndarray:
        """See `Policy`."""
        return np.asarray(jax.jit(self.inputs.decode_block)(self.frozen, latents))

    def tensor(self, x) -> Tensor:
        """A tensor of its own on the policy's device."""
        return torch.from_numpy(np.array(x)).to(self.device)

    def _row(self, tree, row: int):
        return jax.tree.map(lambda x: self.tensor(x[row:row + 1]), tree)
