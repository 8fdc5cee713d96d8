"""Exports over slots in PyTorch: a `world_model.policy.Policy` with a session per slot (extra: torch).

What the robot sees and reads goes through the frozen encoders in JAX, and noise is drawn from the same keys: to the
same requests both runtimes answer the same. TimestepRows of a batch run one after another.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from world_model.families.base.loss import Objective
from world_model.families.base.policy import Chunk, decode_later, encode_later
from world_model.families.base.sampler import Conditions, Known
from world_model.families.dreamzero.sampler import DreamZeroRollout
from world_model.families.dreamzero.torch import runtime as torch_runtime
from world_model.families.dreamzero.torch import sampler as torch_rollout
from world_model.families.lingbot_va.sampler import LingBotVARollout
from world_model.families.lingbot_va.torch import network as torch_lingbot_va
from world_model.families.lingbot_va.torch import sampler as torch_lingbot_va_rollout


@dataclasses.dataclass
class Slot:
    """An episode under way."""

    session: Any  # the runtime's
    condition: Tensor | None  # [1, F, h, w, 4 + C]
    imagined: np.ndarray | float = 0.0  # [n, h, w, C], the block predicted last


class TorchPolicy:
    """What families share. Each has a `runtime`, its rollout in PyTorch, and says what happens to one episode."""

    last_block: int | None = None
    batch_sizes = (1,)  # nothing compiles

    def __init__(self, directory: Path, device: str, rollout, objective: Objective, slots: int, channels: np.ndarray):
        """rollout: in JAX; its settings are those of `runtime`, and it draws the noise."""
        self.device, self.objective, self.count = device, objective, slots
        self.channels = self._tensor(channels)[None]
        if rollout.branch_devices != 1:
            raise ValueError("branch_devices = 2: the PyTorch runtime runs both branches of the guidance as one batch")
        self.settings = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout)
                         if f.name not in ("model", "branch_devices")}
        self.runtime = self.load(directory)
        self._noise = jax.jit(jax.vmap(lambda key, block: self.noise(rollout, key[None], block)))
        held = lambda function: jax.jit(lambda frozen, *x: function(dataclasses.replace(objective, frozen=frozen), *x))
        self._begin, self._encode, self._decode = map(held, (
            lambda encoders, *first: encoders.begin(*first), encode_later, decode_later))
        self.forget()

    # --- told by a family --------------------------------------------------------------------------------------------

    def load(self, directory: Path):
        """The runtime. Raises WeightsError where the export does not load."""
        raise NotImplementedError

    def noise(self, rollout, keys, block):
        """Of video and actions of a block, by JAX."""
        return rollout.noise(keys, block)

    def first(self, begun: Conditions, unconditional_text: Tensor | None) -> Slot:
        """A session that has seen the first frame."""
        raise NotImplementedError

    def seen(self, slot: Slot, latents: Tensor, actions: Tensor, block: int) -> None:
        """What really happened in a block."""
        raise NotImplementedError

    def predict(self, slot: Slot, noise: tuple[Tensor, Tensor], state: Tensor, block: int, known: Known
                ) -> tuple[Tensor, Tensor]:
        """(latents, actions) of a block."""
        raise NotImplementedError

    # --- over slots --------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """See `Policy`."""
        self._slots: list[Slot | None] = [None] * self.count

    def start(self, slots, frames, text_ids, text_length) -> None:
        """See `Policy`."""
        begun = jax.device_get(self._begin(self.objective.frozen, frames, text_ids, text_length))
        for row, slot in enumerate(slots):
            own = Conditions(*(None if x is None else self._tensor(x[row:row + 1]) for x in begun))
            self._slots[slot] = self.first(own, own.unconditional_text if self.runtime.guided else None)

    def observe(self, slots, frames, actions, block) -> np.ndarray:
        """See `Policy`."""
        latents = np.asarray(self._encode(self.objective.frozen, frames))
        gaps = [np.sqrt(np.square(seen - self._slots[slot].imagined).mean()) for seen, slot in zip(latents, slots)]
        for row, slot in enumerate(slots):
            self.seen(self._slots[slot], self._tensor(latents[row:row + 1]), self._tensor(actions[row:row + 1]),
                      int(block[row]))
        return np.float32(gaps)

    def act(self, slots, state, block, keys, actions, known) -> Chunk:
        """See `Policy`."""
        noise, chunks = jax.device_get(self._noise(keys, block)), []
        for row, slot in enumerate(slots):
            video, action = (self._tensor(x[row]) for x in noise)
            given = Known(self._tensor(actions[row:row + 1]), self._tensor(known[row:row + 1]),
                          torch.zeros_like(video), torch.zeros_like(video, dtype=torch.bool))
            latents, predicted = self.predict(self._slots[slot], (video, action), self._tensor(state[row])[None, None],
                                              int(block[row]), given)
            chunks.append(Chunk(predicted[0].cpu().numpy(), latents[0].cpu().numpy()))
            self._slots[slot].imagined = chunks[-1].latents
        return Chunk(*map(np.stack, zip(*chunks)))

    def decode(self, latents) -> np.ndarray:
        """See `Policy`."""
        return np.asarray(self._decode(self.objective.frozen, latents))

    def _tensor(self, x) -> Tensor:
        return torch.from_numpy(np.array(x)).to(self.device)


class DreamZeroPolicy(TorchPolicy):
    """Over torch_rollout.Rollout."""

    def __init__(self, directory: Path, device: str, rollout: DreamZeroRollout, *others):
        super().__init__(directory, device, rollout, *others)
        self.last_block = self.runtime.runtime.layout.num_blocks

    def load(self, directory: Path) -> torch_rollout.Rollout:
        """See `TorchPolicy`."""
        runtime, _ = torch_runtime.load(directory, self.device)
        return torch_rollout.Rollout(runtime, **self.settings)

    def first(self, begun: Conditions, unconditional_text: Tensor | None) -> Slot:
        """See `TorchPolicy`."""
        slot = Slot(self.runtime.start(begun.text, begun.image, unconditional_text), begun.condition)
        self.runtime.prefill(slot.session, begun.first_latents, self._condition(slot, 0))
        return slot

    def seen(self, slot: Slot, latents: Tensor, actions: Tensor, block: int) -> None:
        """See `TorchPolicy`; executed actions are not remembered."""
        slot.session.rewind(block)
        self.runtime.prefill(slot.session, latents, self._condition(slot, block))

    def predict(self, slot: Slot, noise: tuple[Tensor, Tensor], state: Tensor, block: int, known: Known
                ) -> tuple[Tensor, Tensor]:
        """See `TorchPolicy`."""
        return self.runtime.denoise(slot.session, *noise, state, self._condition(slot, block), known)

    def _condition(self, slot: Slot, block: int) -> Tensor | None:
        n = self.runtime.runtime.layout.frames_per_block
        first = 1 + (block - 1) * n
        frames = slice(first, first + n) if block else slice(0, 1)
        return None if slot.condition is None else slot.condition[:, frames]


class LingBotVAPolicy(TorchPolicy):
    """Over torch_lingbot_va_rollout.Rollout; a block is a chunk of one latent frame."""

    def __init__(self, directory: Path, device: str, rollout: LingBotVARollout, *others):
        super().__init__(directory, device, dataclasses.replace(rollout, chunk_frames=1), *others)

    def load(self, directory: Path) -> torch_lingbot_va_rollout.Rollout:
        """See `TorchPolicy`."""
        network, spec, _ = torch_lingbot_va.load(directory, self.device)
        return torch_lingbot_va_rollout.Rollout(network, spec, **self.settings)

    def noise(self, rollout, keys, block):
        """See `TorchPolicy`."""
        return rollout.noise(keys, block, 1)

    def first(self, begun: Conditions, unconditional_text: Tensor | None) -> Slot:
        """See `TorchPolicy`."""
        slot, spec = Slot(self.runtime.start(begun.text, unconditional_text), None), self.runtime.spec
        nothing = begun.first_latents.new_zeros(1, spec.actions_per_frame, spec.action_dim)
        self.seen(slot, begun.first_latents, nothing, 0)
        return slot

    def seen(self, slot: Slot, latents: Tensor, actions: Tensor, block: int) -> None:
        """See `TorchPolicy`."""
        self.runtime.observe(dataclasses.replace(slot.session, chunk=block, frame=block), latents, actions)

    def predict(self, slot: Slot, noise: tuple[Tensor, Tensor], state: Tensor, block: int, known: Known
                ) -> tuple[Tensor, Tensor]:
        """See `TorchPolicy`; what the prediction writes is dropped."""
        session = dataclasses.replace(slot.session, cache=dict(slot.session.cache), chunk=block, frame=block)
        return self.runtime.predict(session, *noise, None, self.channels, known)


POLICIES = {"dreamzero": DreamZeroPolicy, "lingbot_va": LingBotVAPolicy}
