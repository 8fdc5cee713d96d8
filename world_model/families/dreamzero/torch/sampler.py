"""Whole rollouts in PyTorch: world_model/families/base/sampler.py's procedure over torch_runtime's sessions (extra:
torch)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from world_model.diffusion.solvers import Euler, UniPC, make_solver
from world_model.diffusion.step_skipping import THRESHOLDS, make_skipping
from world_model.families.base.sampler import Known
from world_model.families.dreamzero.torch.runtime import Forward, Runtime, Session


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
class Rollout:
    """Denoises block after block; settings as in world_model/families/base/sampler.py."""

    runtime: Runtime
    solver: str = "unipc"
    steps: int = 16
    shift: float = 5.0
    video_final_sigma: float = 0.0
    guidance: float = 1.0  # v = u + guidance (c - u), of the video
    action_guidance: float = 1.0  # likewise of the actions
    skipping: str = "none"  # steps that reuse the last prediction: world_model/diffusion/step_skipping.py
    skip_thresholds: tuple = THRESHOLDS  # of skipping = "adaptive"

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

    def start(self, text: Tensor, image: Tensor | None = None, unconditional_text: Tensor | None = None) -> Session:
        """A session for `denoise`. With guidance both branches are one batch, the conditional one first."""
        if self.guided:
            if unconditional_text is None:
                raise ValueError("guidance other than 1 needs unconditional_text")
            text = torch.cat([text, unconditional_text])
        return self.runtime.start(text.to(self.dtype), self._input(image))

    @torch.no_grad()
    def prefill(self, session: Session, latents: Tensor, condition: Tensor | None = None) -> None:
        """The session's next block as it really was, into the cache of all branches."""
        session.prefill(self._input(latents), self._input(condition))

    @torch.no_grad()
    def denoise(self, session: Session, latents: Tensor, actions: Tensor, state: Tensor,
                condition: Tensor | None = None, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """Noise of the session's next block -> its clean latents and actions. Steps are in the noise's dtype, the
        network in its own. What is known goes straight from its noise to its value."""
        solvers = (make_solver(self.solver, self.steps, self.shift, self.video_final_sigma),
                   make_solver(self.solver, self.steps, self.shift))
        video_stepper, action_stepper = (Stepper(solver) for solver in solvers)
        state, condition = self._input(state), self._input(condition)
        skipping = make_skipping(self.skipping, self.steps, self.skip_thresholds)
        memory = skipping.init(_array(latents))
        if known is not None:
            straight = ((latents - known.latents) / float(solvers[0].sigmas[0]),
                        (actions - known.actions) / float(solvers[1].sigmas[0]))
        for i in range(self.steps):
            run, memory = skipping.decide(i, memory)
            if run:
                times = [self._both(x.new_full(x.shape[:2], float(solver.timesteps[i])))
                         for x, solver in zip((latents, actions), solvers, strict=True)]
                video, action = self._velocity(session.denoise(
                    noisy_latents=self._input(latents), video_timestep=times[0], condition=condition,
                    noisy_actions=self._input(actions), action_timestep=times[1], state=state), latents.dtype)
                memory = skipping.note(memory, _array(video))
                if known is not None:
                    video = torch.where(known.latent_mask, straight[0], video)
                    action = torch.where(known.action_mask, straight[1], action)
            latents, actions = video_stepper.step(i, video, latents), action_stepper.step(i, action, actions)
        return latents, actions

    def _velocity(self, out: Forward, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of video and actions, guided."""
        video, action = out.video.to(dtype), out.action.to(dtype)
        if not self.guided:
            return video, action
        return guide(video, self.guidance), guide(action, self.action_guidance)

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return (self.guidance, self.action_guidance) != (1, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return self.runtime.model.head.head.weight.dtype

    def _input(self, x: Tensor | None) -> Tensor | None:
        """For both branches, as the network computes."""
        return x if x is None else self._both(x.to(self.dtype))

    def _both(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.guided else x


def guide(velocity: Tensor, scale: float) -> Tensor:
    """One velocity of both branches', the conditional one first."""
    conditional, unconditional = velocity.chunk(2)
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def _array(x: Tensor) -> np.ndarray:
    """On the host, for the rule that decides which steps run."""
    return x.float().cpu().numpy()
