"""Many episodes on one model: requests in robot units in, chunks of commands out, a batch at a time.

The server and the closed-loop evaluation both act through here. An engine is used by one thread.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.robots.robot import Robot
from data_pipelines.robots.slots import slot_mask
from launch.serving.safety import Guard
from launch.serving.servable import Servable
from world_model.families.base.policy import Chunk


class Request(NamedTuple):
    """One episode asks for its next chunk."""

    session: int  # number of the engine's session
    block: int  # the block to predict; 1 begins a new window at `frames`
    views: dict  # name -> uint8 [1 or engine.block_frames, H, W, 3], oldest first
    state: np.ndarray  # [state dims], robot units, at the last frame
    text: tuple[np.ndarray, int] | None  # tokens of the prompt, for block 1
    key: tuple[int, int]  # (episode, chunk): what the noise is drawn from, beside the seed
    in_flight: np.ndarray  # [k, action dims], robot units: actions after the last frame that will be executed anyhow
    # Of the session's chunk before, for safety.Guard:
    last: np.ndarray | None = None  # [action dims], its last command
    executed: bool = False  # whether the robot is known to have come to that one
    held: bool = False
    done: np.ndarray | None = None  # [actions_per_block, action dims], as executed; None: as they were answered


class Answer(NamedTuple):
    """What the model says to a request."""

    actions: np.ndarray  # float32 [actions_per_block, action dims], absolute, robot units
    gap: float | None  # root mean square between the latents imagined for the last block and those observed
    latents: np.ndarray | None  # float32 [frames_per_block, h, w, C]: the imagined next block, where one is imagined
    interventions: dict[str, int]  # numbers that safety.Guard has changed, by kind
    held: bool = False  # whether the robot is held


class ModelError(RuntimeError):
    """The model's numbers cannot be executed."""


@dataclasses.dataclass(eq=False)
class Engine:
    """A model with room for so many sessions."""

    model: Servable
    robot: Robot
    sessions: int
    batch_sizes: tuple[int, ...] = (1, 8)  # batches of a step; a compiled model fills them up to the next size
    seed: int = 0
    fixed_noise: bool = False  # every chunk from the same noise, as the reference does
    hold_gap: float | None = None  # passed to safety.Guard
    sampling: dict = dataclasses.field(default_factory=dict)  # settings of the rollout, over the model's evaluate.*
    forward: bool = False  # answers what actions on their way, a whole chunk, lead to (Policy.imagine)

    def __post_init__(self):
        width = self.model.experiment.model.spec.action_dim
        self._nothing = np.zeros((self.robot.layout.actions_per_block, width), np.float32)
        self._channels = slot_mask(self.embodiment.action_slots, width)
        self.policy = self.model.policy(self.sessions, self._channels, self.batch_sizes, **self.sampling)
        self.guard = Guard(self.embodiment, self.hold_gap)
        self.batch_sizes = tuple(sorted(self.batch_sizes))
        self._root = jax.random.key(self.seed)
        self._sent: dict[int, np.ndarray] = {}  # session -> the commands answered last, normalised

    @property
    def embodiment(self) -> Embodiment:
        """The robot's entry."""
        return self.robot.embodiment

    @property
    def imagines_video(self) -> bool:
        """Whether answers hold latents."""
        return self.model.experiment.family.imagines_video

    @property
    def block_frames(self) -> int:
        """Raw frames of a block."""
        return self.robot.layout.block_frames

    @property
    def last_block(self) -> int | None:
        """The block after which a window is full; None: it slides on."""
        return self.policy.last_block

    def reset(self) -> None:
        """Empties every window."""
        self.policy.reset()

    def tokenize(self, instruction: str) -> tuple[np.ndarray, int]:
        """(ids, length) of the robot's prompt. Raises ValueError where it is too long."""
        return self.model.experiment.inputs.tokenize(self.robot.prompt(instruction))

    def warm(self) -> None:
        """Compiles everything that is called later. Raises ModelError where the model's actions are not finite."""
        layout = self.robot.layout

        def zeros(count: int) -> dict:
            return {view: np.zeros((count, layout.height, layout.width, 3), np.uint8)
                    for view in self.embodiment.views}

        state = self.robot.statistics["state"]["mean"] if self.embodiment.state else []
        first = Request(0, 1, zeros(1), np.asarray(state, float), self.tokenize(""), (0, 0),
                        np.zeros((0, len(self.embodiment.action))))
        later = first._replace(block=2, views=zeros(self.block_frames))
        for size in self.policy.batch_sizes:
            answers = self.step([first] * size)
            if self.last_block != 1:
                self.step([later] * size)
        if isinstance(answers[0], ModelError):
            raise answers[0]
        if self.imagines_video:
            self.decode(answers[0].latents)

    def step(self, requests: list[Request]) -> "list[Answer | ModelError]":
        """Answers at most max(batch_sizes) requests of different sessions; ModelError: actions that are not finite."""
        starting = [r for r in requests if r.block == 1]
        going_on = [r for r in requests if r.block > 1]
        gaps = {}
        if starting:
            self._start(starting)
        if going_on:
            gaps = dict(zip((id(r) for r in going_on), self._observe(going_on)))
        chunk = self._act(requests, self.policy.imagine if self.forward else self.policy.act)
        return [self._answer(request, chunk.actions[row], None if chunk.latents is None else chunk.latents[row],
                             gaps.get(id(request))) for row, request in enumerate(requests)]

    def label(self, requests: list[Request]) -> list[np.ndarray]:
        """Commands of each request's block, as it was imagined last: those that its video shows (inverse dynamics)."""
        chunk = self._act(requests, self.policy.label)
        return [self.robot.commands(actions, r.state) for actions, r in zip(chunk.actions, requests, strict=True)]

    def follow(self, requests: list[Request]) -> np.ndarray | None:
        """Latents [requests, frames_per_block, h, w, C] of each request's block, imagined anew from its actions in
        flight (forward dynamics)."""
        return self._act(requests, self.policy.imagine).latents

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """An answer's latents -> uint8 [block_frames, height, width, 3]."""
        return self.policy.decode(latents[None])[0]

    def _start(self, requests: list[Request]) -> None:
        ids, lengths = zip(*(r.text for r in requests))
        self.policy.start(_sessions(requests), self._pictures(requests), np.stack(ids), np.int32(lengths))

    def _observe(self, requests: list[Request]) -> list[float | None]:
        # A block's frames say that the whole chunk was executed, where nobody says otherwise as it was answered.
        executed = np.stack([self._sent.get(r.session, self._nothing) if r.done is None else
                             self._predicted(r.done, r.state) for r in requests])
        gaps = self.policy.observe(_sessions(requests), self._pictures(requests), executed,
                                   np.int32([r.block - 1 for r in requests]))
        return [None] * len(requests) if gaps is None else gaps.tolist()

    def _act(self, requests: list[Request], ask: Callable[..., Chunk]) -> Chunk:
        state = np.stack([self.robot.state(r.state) for r in requests])
        # The sampler's noise depends on the block too; episode and chunk enter here.
        names = np.array([(0, 0) if self.fixed_noise else r.key for r in requests], np.uint32)
        keys = jax.vmap(lambda name: jax.random.fold_in(jax.random.fold_in(self._root, name[0]), name[1]))(names)
        return ask(_sessions(requests), state, np.int32([r.block for r in requests]), keys, *self._in_flight(requests))

    def _in_flight(self, rows: list[Request]) -> tuple[np.ndarray, np.ndarray]:
        """(actions [B, actions_per_block, action_dim], bool of the same shape: where they are given)."""
        actions = np.stack([self._predicted(request.in_flight, request.state) for request in rows])
        known = np.zeros_like(actions, bool)
        for row, request in enumerate(rows):
            known[row, :len(request.in_flight)] = self._channels
        return actions, known

    def _predicted(self, commands: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Commands [k, action dims] as the model would have predicted them in that state, [actions_per_block,
        action_dim]: zeros after the last, as training has them past a robot's horizon."""
        found = self._nothing.copy()
        found[:len(commands)] = self.robot.predicted(commands, state, len(self._channels))
        return found

    def _pictures(self, rows: list[Request]):
        looks = [self.model.experiment.inputs.pictures(self.robot, r.views) for r in rows]
        return jax.tree.map(lambda *each: np.stack(each), *looks)

    def _answer(self, request: Request, actions: np.ndarray, latents: np.ndarray | None, gap: float | None):
        commands = self.robot.commands(actions, request.state)
        if not np.isfinite(commands).all():
            return ModelError(f"the model predicted actions that are not finite, in state {request.state.tolist()}")
        on_its_way = len(request.in_flight) > 0
        safe = self.guard.check(commands, request.state, gap, held=request.held,
                                executed=request.executed or on_its_way,
                                last=request.in_flight[0] if on_its_way else request.last)
        self._sent[request.session] = self._predicted(safe.actions, request.state)
        return Answer(safe.actions, gap, latents, safe.interventions, safe.held)


def _sessions(requests: list[Request]) -> np.ndarray:
    return np.int32([r.session for r in requests])
