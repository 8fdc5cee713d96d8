"""DreamZero's sampler in PyTorch: the procedure of families/dreamzero/sampler.py (extra: torch)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from world_model.diffusion.inpainting import Inpainting, inpainting_velocity
from world_model.diffusion.solvers import Euler, UniPC, make_solver
from world_model.diffusion.step_skipping import THRESHOLDS, make_skipping
from world_model.families.dreamzero.torch.runtime import CachedBlocks, Forward, Runtime
from world_model.families.wan.torch_layers import Guided


class Stepper:
    """A solver's steps on tensors; remembers what a multi-step method needs. One per sample that is denoised."""

    def __init__(self, solver: Euler | UniPC):
        self.solver = solver
        self.past: tuple[Tensor, ...] = ()

    def step(self, i: int, velocity: Tensor, sample: Tensor) -> Tensor:
        """Sample at sigmas[i] and its velocity -> sample at sigmas[i + 1]; i counts up from 0."""
        sigmas = self.solver.sigmas
        if isinstance(self.solver, Euler):
            return sample + float(sigmas[i + 1] - sigmas[i]) * velocity
        x0 = sample - float(sigmas[i]) * velocity
        last, x0_1, x0_2 = self.past or (sample, torch.zeros_like(sample), torch.zeros_like(sample))
        corrected = _weighted(self.solver.corrector[i], (last, x0_1, x0_2, x0))
        self.past = corrected, x0, x0_1
        return _weighted(self.solver.predictor[i], (corrected, x0, x0_1))


def _weighted(weights, tensors) -> Tensor:
    return sum(float(w) * x for w, x in zip(weights, tensors, strict=True))


@dataclasses.dataclass(frozen=True)
class DreamZeroTorchSampler(Guided):
    """Denoises block after block; settings as in DreamZeroSampler."""

    runtime: Runtime
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0
    guidance: float = 1.0  # v = u + guidance (c - u), of the video
    action_guidance: float = 1.0  # guidance of the actions
    skipping: str = "none"  # steps that reuse the last prediction: world_model/diffusion/step_skipping.py
    skip_thresholds: tuple = THRESHOLDS  # (cosine, steps) pairs, for skipping = "adaptive"

    @torch.no_grad()
    def __call__(self, first_latents: Tensor, text: Tensor, state: Tensor, noise: Sequence[tuple[Tensor, Tensor]],
                 condition: Tensor | None = None, image: Tensor | None = None,
                 unconditional_text: Tensor | None = None, history: Tensor | None = None
                 ) -> tuple[Tensor, Tensor]:
        """-> latents [B, F, h, w, C] with the given first frame, actions [B, N, action_dim], normalised.

        Args:
          first_latents: [B, 1, h, w, C]; text [B, Lt, Dt]; state [B, S, P]; condition [B, F, h, w, 4 + C].
          noise: per block, of its video and its actions.
          unconditional_text: needed where a guidance is not 1.
          history: real latents [B, F, h, w, C] for the cache; without it, the rollout's own.
        """
        layout = self.runtime.layout
        session = self.start(text, image, unconditional_text)
        latents, actions = [first_latents], []
        for block in range(len(noise) + 1):
            frames = slice(0, 1) if block == 0 else slice(
                1 + (block - 1) * layout.frames_per_block, 1 + block * layout.frames_per_block)
            condition_now = None if condition is None else condition[:, frames]
            if block:
                states = state[:, (block - 1) * layout.states_per_block:block * layout.states_per_block]
                denoised = self.denoise(session, *noise[block - 1], states, condition_now)
                latents.append(denoised[0])
                actions.append(denoised[1])
            if block < len(noise):
                clean = latents[-1] if history is None else history[:, frames]
                self.prefill(session, clean, condition_now)
        return torch.cat(latents, 1), torch.cat(actions, 1)

    def start(self, text: Tensor, image: Tensor | None = None, unconditional_text: Tensor | None = None
              ) -> CachedBlocks:
        """A session for `denoise`."""
        text = self.branches(text, unconditional_text)
        return self.runtime.start(text.to(self.dtype), self._input(image))

    @torch.no_grad()
    def prefill(self, session: CachedBlocks, latents: Tensor, condition: Tensor | None = None) -> None:
        """The session's next block as it really was, into the cache of all branches."""
        session.prefill(self._input(latents), self._input(condition))

    @torch.no_grad()
    def denoise(self, session: CachedBlocks, latents: Tensor, actions: Tensor, state: Tensor,
                condition: Tensor | None = None, inpainting: Inpainting | None = None) -> tuple[Tensor, Tensor]:
        """Noise of the session's next block -> its clean latents and actions. Steps are in the noise's dtype, the
        network in its own."""
        solvers = (make_solver(self.solver, self.steps, self.shift, self.video_final_sigma),
                   make_solver(self.solver, self.steps, self.shift))
        steppers, skipping = [Stepper(solver) for solver in solvers], make_skipping(
            self.skipping, self.steps, self.skip_thresholds)
        state, condition = self._input(state), self._input(condition)
        planned, sample, velocity = skipping.planned(self.steps), (latents, actions), None
        memory = None if planned else skipping.init(_array(latents))  # the host waits for the device where it decides
        held = _inpainting_velocities(solvers, sample, inpainting)
        for i in range(self.steps):
            run, memory = (planned[i], None) if planned else skipping.decide(i, memory)
            if run:
                velocity = self._predict(session, solvers, i, sample, state, condition)
                memory = None if planned else skipping.note(memory, _array(velocity[0]))
                velocity = tuple(v if x is None else torch.where(*x, v)
                                 for x, v in zip(held, velocity, strict=True))
            sample = tuple(stepper.step(i, v, x) for stepper, v, x in zip(steppers, velocity, sample, strict=True))
        return sample

    def _predict(self, session: CachedBlocks, solvers, i: int, sample, state: Tensor, condition: Tensor | None
                 ) -> tuple[Tensor, Tensor]:
        """Guided velocities of video and actions at solver step i."""
        times = [self.both(x.new_full(x.shape[:2], float(solver.timesteps[i])))
                 for x, solver in zip(sample, solvers, strict=True)]
        out: Forward = session.denoise(
            noisy_latents=self._input(sample[0]), video_timestep=times[0], condition=condition,
            noisy_actions=self._input(sample[1]), action_timestep=times[1], state=state)
        dtype = sample[0].dtype
        return self.guide(out.video.to(dtype), self.guidance), self.guide(out.action.to(dtype), self.action_guidance)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.runtime.model.head.head.weight.dtype

    def _input(self, x: Tensor | None) -> Tensor | None:
        """x for both branches, as the network computes."""
        return None if x is None else self.both(x.to(self.dtype))


def _inpainting_velocities(solvers, noise: tuple[Tensor, Tensor], inpainting: Inpainting | None) -> list:
    """(mask, velocity towards its value) of what is given, for video and for actions; None where nothing is."""
    known = inpainting or Inpainting(None, None)
    parts = (known.latents, known.latent_mask), (known.actions, known.action_mask)
    return [None if value is None else (mask, inpainting_velocity(x, value, -float(solver.sigmas[0])))
            for solver, x, (value, mask) in zip(solvers, noise, parts, strict=True)]


def _array(x: Tensor) -> np.ndarray:
    """x on the host, for the rule that decides which steps run."""
    return x.float().cpu().numpy()
