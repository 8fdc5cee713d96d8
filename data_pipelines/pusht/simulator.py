"""The gym-pusht simulator with chosen colours and a small anti-aliased picture (extra: sim).

World: 512 x 512 pixels, y down, 10 control steps per second. The action is the absolute position that the agent's
PD controller aims at; nothing moves unless it is pushed (the simulator damps every velocity away).
"""

import dataclasses
import os

import numpy as np

WORLD = 512  # side of the world, pixels
RATE = 10.0  # control steps per second
AGENT_RADIUS = 15.0  # pixels

Colour = str | tuple[int, int, int]  # a pygame colour name or RGB


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours of the drawing; the default is the simulator's own."""

    background: Colour = "White"
    goal: Colour = "LightGreen"
    block: Colour = "LightSlateGray"
    agent: Colour = "RoyalBlue"
    wall: Colour = "LightGray"


class Simulator:
    """One PushT world. Poses are (x, y, angle) of the block's origin, the middle of the bar's outer edge."""

    def __init__(self, agent: np.ndarray, block: np.ndarray, palette: Palette = Palette()):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame is only asked to fill surfaces
        from gym_pusht.envs.pusht import PushTEnv

        self._env = PushTEnv(obs_type="state")
        # The simulator sets the position first and the angle second, which turns the block about its centre of mass:
        # undo that here, so that the pose asked for is the pose there is.
        self._env.reset(options={"reset_to_state": [*agent, *block[:2], 0.0]})
        self._env.block.angle = float(block[2])
        self._env.block.position = tuple(map(float, block[:2]))
        self._env.space.reindex_shapes_for_body(self._env.block)
        self._palette = palette
        self._paint()

    def _paint(self) -> None:
        import pygame

        env = self._env
        for shape in env.space.shapes:
            colour = {env.block: self._palette.block, env.agent: self._palette.agent}.get(
                shape.body, self._palette.wall)
            shape.color = pygame.Color(colour)

    @property
    def agent(self) -> np.ndarray:
        """float64 [2], pixels."""
        return np.array(self._env.agent.position)

    @property
    def block(self) -> np.ndarray:
        """float64 [3]: x, y in pixels, angle in radians."""
        return np.array([*self._env.block.position, self._env.block.angle])

    @property
    def goal(self) -> np.ndarray:
        """float64 [3], as `block`."""
        return np.array(self._env.goal_pose)

    def step(self, action: np.ndarray) -> float:
        """Aims the agent at `action` [2] (pixels) for 0.1 s; returns the share of the goal covered by the block."""
        return float(self._env.step(np.asarray(action, np.float64))[4]["coverage"])

    def render(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]. Averages over areas: moving edges then change the pixels smoothly."""
        import cv2

        pixels = np.frombuffer(self._draw().get_view("0"), np.uint8).reshape(WORLD, WORLD, 4)  # BGRX
        small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[..., 2::-1])

    def _draw(self):
        """The simulator's drawing, in this palette."""
        import pygame
        from gym_pusht.envs.pymunk_override import DrawOptions

        env, surface = self._env, pygame.Surface((WORLD, WORLD), depth=32)
        surface.fill(pygame.Color(self._palette.background))
        goal = env.get_goal_pose_body(env.goal_pose)
        for shape in env.block.shapes:
            corners = [goal.local_to_world(corner) for corner in shape.get_vertices()]
            pygame.draw.polygon(surface, pygame.Color(self._palette.goal), np.round(corners).tolist())
        env.space.debug_draw(DrawOptions(surface))
        return surface
