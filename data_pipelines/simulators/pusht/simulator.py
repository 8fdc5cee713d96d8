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
GOAL = (256.0, 256.0, np.pi / 4)  # the simulator's own, which it tells only once it is made

Colour = str | tuple[int, int, int]  # a pygame colour name or RGB


@dataclasses.dataclass(frozen=True)
class Palette:
    """The colours of a picture; by default the simulator's own."""

    background: Colour = "White"
    goal: Colour = "LightGreen"
    block: Colour = "LightSlateGray"
    agent: Colour = "RoyalBlue"
    wall: Colour = "LightGray"


class Simulator:
    """One PushT world. Poses are (x, y, angle) of the block's origin, the middle of the bar's outer edge."""

    def __init__(self, agent: np.ndarray, block: np.ndarray, palette: Palette = Palette()):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame only fills surfaces
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        from gym_pusht.envs.pusht import PushTEnv

        self._env = PushTEnv(obs_type="state")
        # The simulator sets the position first and the angle second, which turns the block about its centre of mass.
        # Angle and position are set again here, so that the block has the pose that is asked for.
        self._env.reset(options={"reset_to_state": [*agent, *block[:2], 0.0]})
        self._env.block.angle = float(block[2])
        self._env.block.position = tuple(map(float, block[:2]))
        self._env.space.reindex_shapes_for_body(self._env.block)
        self._palette = palette
        self._table = self._render_table()

    @property
    def agent(self) -> np.ndarray:
        """The agent's position, float64 [2], pixels."""
        return np.array(self._env.agent.position)

    @property
    def block(self) -> np.ndarray:
        """The block's pose, float64 [3]: x, y in pixels, angle in radians."""
        return np.array([*self._env.block.position, self._env.block.angle])

    @property
    def goal(self) -> np.ndarray:
        """The pose that the block should have, float64 [3], as `block`."""
        return np.array(self._env.goal_pose)

    def step(self, action: np.ndarray) -> float:
        """Aims the agent at `action` [2] (pixels) for 0.1 s; returns the share of the goal covered by the block."""
        return float(self._env.step(np.asarray(action, np.float64))[4]["coverage"])

    def render(self, size: int) -> np.ndarray:
        """The picture uint8 [size, size, 3]. Pixels are means over areas, so that moving edges change them smoothly."""
        import cv2

        cv2.setNumThreads(1)  # its threads cost more than such a small picture
        pixels = np.frombuffer(self._render_world().get_view("0"), np.uint8).reshape(WORLD, WORLD, 4)  # BGRX
        small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[..., 2::-1])

    def _render_world(self):
        """The simulator's picture in this palette, without its marks of contacts: the table, then what moves on it."""
        from gym_pusht.envs.pymunk_override import DrawOptions
        from pygame import Color
        from pymunk.space_debug_draw_options import SpaceDebugColor

        env, surface = self._env, self._table.copy()
        options, block, agent = DrawOptions(surface), *(
            SpaceDebugColor(*Color(colour)) for colour in (self._palette.block, self._palette.agent))
        options.draw_circle(env.agent.position, env.agent.angle, AGENT_RADIUS, agent, agent)
        for shape in env._block_shapes:  # in the order they were made; body.shapes is a set
            options.draw_polygon([env.block.local_to_world(v) for v in shape.get_vertices()], 0, block, block)
        return surface

    def _render_table(self):
        """The picture of what never moves: background, goal and walls."""
        import pygame
        from gym_pusht.envs.pymunk_override import DrawOptions
        from pymunk.space_debug_draw_options import SpaceDebugColor

        env, surface = self._env, pygame.Surface((WORLD, WORLD), depth=32)
        surface.fill(pygame.Color(self._palette.background))
        goal = env.get_goal_pose_body(env.goal_pose)
        for shape in env._block_shapes:
            corners = [goal.local_to_world(corner) for corner in shape.get_vertices()]
            pygame.draw.polygon(surface, pygame.Color(self._palette.goal), np.round(corners).tolist())
        wall = SpaceDebugColor(*pygame.Color(self._palette.wall))
        for shape in env.space.static_body.shapes:
            DrawOptions(surface).draw_fat_segment(shape.a, shape.b, shape.radius, wall, wall)
        return surface
