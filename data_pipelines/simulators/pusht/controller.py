"""A scripted controller that pushes the block; what it does next can be told from the picture alone.

It repeats three legs: it goes around the block to a contact point, pushes straight through it for as long as that
brings the block nearer to the goal pose, and backs off. It takes the contact whose push is predicted to gain most per
pixel travelled. The prediction is exact for this simulator, in which a block moves only by frictionless contact: a push
along the inward normal n at offset r from the centre of mass gives the twist with v = k n, w = k (r x n) / rho^2, where
rho^2 = inertia / mass and k makes the contact point keep up with the agent.
"""

import numpy as np

from data_pipelines.simulators.pusht.simulator import AGENT_RADIUS, WORLD

BAR, THICK, STEM = 60.0, 30.0, 120.0  # the T: half width of the bar, thickness, length along the stem (pixels)
CENTRE = np.array([0.0, 45.0])  # centre of mass in the block's frame
RHO2 = 3000.0  # inertia / mass of the block, pixels^2
OUTLINE = np.array([[-BAR, 0], [BAR, 0], [BAR, THICK], [THICK / 2, STEM], [-THICK / 2, STEM], [-BAR, THICK]])  # hull

LOOKAHEAD = 28.0  # pixels from the agent to its target: about 10 pixels per step
CLEARANCE = AGENT_RADIUS + 7  # kept between the agent's centre and the block while going around it
STANDOFF = AGENT_RADIUS + 20  # distance from the contact at which a push begins
STRIDE = 4.0  # integration step of the prediction, pixels
MARGIN = 24.0  # the agent keeps this far from the edge of the world


def _contacts() -> tuple[np.ndarray, np.ndarray]:
    """The contact points and outward normals in the block's frame, each [14, 2]."""
    edges: list[tuple[tuple, list[tuple]]] = [
             ((0, -1), [(x, 0) for x in (-48, -24, 0, 24, 48)]),
             ((-1, 0), [(-BAR, 15), (-THICK / 2, 75), (-THICK / 2, 100)]),
             ((1, 0), [(BAR, 15), (THICK / 2, 75), (THICK / 2, 100)]),
             ((0, 1), [(-40, THICK), (40, THICK), (0, STEM)])]
    pairs = [(point, normal) for normal, points in edges for point in points]
    return np.array([p for p, _ in pairs], float), np.array([n for _, n in pairs], float)


POINTS, NORMALS = _contacts()


def _rotate(angle: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates [..., 2] by [...] radians."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = vector[..., 0], vector[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], -1)


def pose_error(block: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The distance between block poses [..., 3] in pixels: that of the centres of mass, and 60 pixels per radian."""
    gap = (block[..., :2] + _rotate(block[..., 2], CENTRE)) - (goal[:2] + _rotate(goal[2], CENTRE))
    turn = (block[..., 2] - goal[2] + np.pi) % (2 * np.pi) - np.pi
    return np.sqrt((gap ** 2).sum(-1) + (60 * turn) ** 2)


def predict_push(block: np.ndarray, steps: int) -> np.ndarray:
    """Predicts block poses [steps + 1, 14, 3] while the agent pushes straight through each contact, STRIDE pixels a
    step."""
    pose = np.repeat(np.asarray(block, float)[None], len(POINTS), 0)
    heading = -_rotate(pose[:, 2], NORMALS)
    touch = pose[:, :2] + _rotate(pose[:, 2], POINTS)  # the agent's rim, moving along the heading
    poses = [pose]
    for _ in range(steps):
        inward = -_rotate(pose[:, 2], NORMALS)
        centre = pose[:, :2] + _rotate(pose[:, 2], CENTRE)
        arm = touch - centre
        torque = arm[:, 0] * inward[:, 1] - arm[:, 1] * inward[:, 0]
        # The contact point has to advance along the normal as far as the rim does.
        k = STRIDE * (heading * inward).sum(-1) / (1 + torque ** 2 / RHO2)
        centre, angle = centre + k[:, None] * inward, pose[:, 2] + k * torque / RHO2
        pose = np.concatenate([centre - _rotate(angle, CENTRE), angle[:, None]], -1)
        touch = touch + STRIDE * heading
        poses.append(pose)
    return np.stack(poses)


def hull(block: np.ndarray):
    """The convex hull of the block, grown by the agent's clearance (a shapely polygon)."""
    import shapely

    corners = block[:2] + _rotate(np.full(len(OUTLINE), block[2]), OUTLINE)
    return shapely.Polygon(corners).buffer(CLEARANCE, quad_segs=4)


def keeps_clear(agent: np.ndarray, block: np.ndarray) -> bool:
    """True where the agent is outside the grown hull."""
    return not hull(block).contains(_point(agent))


def path_around(obstacle, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The shortest path [n, 2] around a convex polygon: the shorter side of the rubber band about it and both ends.

    From a start inside the polygon the path first leaves it by the shortest way. A side that leaves the world counts
    as much longer.
    """
    import shapely

    if obstacle.contains(_point(start)):
        rim = np.array(obstacle.exterior.interpolate(obstacle.exterior.project(_point(start))).coords[0])
        out = start + (rim - start) * (1 + 1 / max(float(np.linalg.norm(rim - start)), 1e-9))
        return np.concatenate([[start], path_around(obstacle, out, end)])
    if not shapely.LineString([start, end]).intersects(obstacle):
        return np.stack([start, end])
    ring = np.array(obstacle.union(shapely.MultiPoint([start, end])).convex_hull.exterior.coords)[:-1]
    first, last = (int(((ring - p) ** 2).sum(-1).argmin()) for p in (start, end))
    ring = np.roll(ring, -first, 0)
    last = (last - first) % len(ring)
    sides = [ring[:last + 1], np.concatenate([ring[:1], ring[:last - 1:-1]])]
    return min(sides, key=lambda side: _length(side) + 10 * np.abs(side - _inside(side)).sum())


def _inside(points: np.ndarray) -> np.ndarray:
    return np.clip(points, MARGIN, WORLD - MARGIN)


def _length(path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum())


class PushController:
    """Gives targets to the agent of one episode. `act` is called once per step, with what can be seen.

    A leg (choose | approach | push | retreat) is kept until it is done; where the block is nudged on the way, the
    controller chooses anew.
    """

    def __init__(self, goal: np.ndarray):
        self._goal = np.asarray(goal, float)
        self._leg = "choose"

    def act(self, agent: np.ndarray, block: np.ndarray) -> np.ndarray:
        """The target for an agent [2] and a block pose [3]: absolute, float64 [2], pixels, inside the world."""
        if self._leg == "retreat" and keeps_clear(agent, block):
            self._leg = "choose"
        if self._leg == "choose" or (self._leg == "approach" and np.abs(block - self._seen)[:2].max() > 6):
            self._choose(agent, block)
        if self._leg == "approach" and np.linalg.norm(agent - self._ready) < LOOKAHEAD / 2:
            self._leg, self._best = "push", np.inf
        if self._leg == "push":
            error = float(pose_error(block, self._goal))
            self._best = min(self._best, error)
            travelled = float((agent - self._ready) @ self._heading)
            if travelled > self._distance or error > self._best + 1:
                self._leg = "retreat"
        return _inside(self._target(agent))

    def _target(self, agent: np.ndarray) -> np.ndarray:
        if self._leg == "retreat":
            return agent - LOOKAHEAD * self._heading
        if self._leg == "push":
            travelled = float((agent - self._ready) @ self._heading)
            return self._ready + (travelled + LOOKAHEAD) * self._heading
        ahead = self._way.project(_point(agent)) + LOOKAHEAD
        return np.array(self._way.interpolate(ahead).coords[0])

    def _choose(self, agent: np.ndarray, block: np.ndarray) -> None:
        """Chooses the contact with the best predicted gain per pixel of way, and plans the way there."""
        import shapely

        poses = predict_push(block, steps=40)
        errors = pose_error(poses, self._goal)
        reach = errors.argmin(0)
        gain = errors[0] - errors.min(0)
        normals = _rotate(np.full(len(POINTS), block[2]), NORMALS)
        obstacle = hull(block)
        ready = np.array([_leave(obstacle, p, n) for p, n in zip(
            block[:2] + _rotate(np.full(len(POINTS), block[2]), POINTS), normals)])
        ways = [path_around(obstacle, agent, r) for r in ready]
        inside = (ready == _inside(ready)).all(-1)
        score = np.where(inside, gain / (np.array([_length(way) for way in ways]) + STRIDE * reach + 60), -1.0)
        best = int(score.argmax())
        self._leg, self._ready, self._heading = "approach", ready[best], -normals[best]
        self._way = shapely.LineString([*_inside(ways[best]), ready[best] + 100 * self._heading])
        self._seen = block
        gap = float((block[:2] + _rotate(block[2], POINTS[best]) - ready[best]) @ self._heading) - AGENT_RADIUS
        self._distance = gap + STRIDE * reach[best]


def _leave(obstacle, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The first place on the ray from a contact along its normal that is outside the obstacle and far enough."""
    distance = STANDOFF
    while obstacle.contains(_point(point + distance * normal)):
        distance += 4
    return point + distance * normal


def _point(xy: np.ndarray):
    import shapely

    return shapely.Point(xy)
