"""Between the model and the robot: what is sent stays inside what the robot may do, and every change is counted."""

import dataclasses

import numpy as np

from data_pipelines.robots.embodiments import Embodiment

KINDS = ("limit", "speed", "held")


@dataclasses.dataclass(frozen=True)
class Checked:
    """Commands that may be executed, and how many numbers were changed to make them so."""

    actions: np.ndarray  # float32 [N, action dims]
    interventions: dict[str, int]  # by kind


class Guard:
    """The limits of an embodiment: `Dimension.low`, `high` and `max_speed`.

    hold_gap: above this gap between observed and imagined latents the robot is held where it is: the model has not
    understood what it sees. None: never.
    """

    def __init__(self, embodiment: Embodiment, hold_gap: float | None = None):
        states = [d.name for d in embodiment.state]
        self._low, self._high = _bound(embodiment, "low", -np.inf), _bound(embodiment, "high", np.inf)
        self._step = _bound(embodiment, "max_speed", np.inf) / embodiment.rate
        # What a command starts from: the state that it moves, where the two have the same unit.
        self._origin = [states.index(d.moves) if d.moves else None for d in embodiment.action]
        if hold_gap is not None and None in self._origin:
            name = next(d.name for d in embodiment.action if not d.moves)
            raise ValueError(f"the robot cannot be held: action {name!r} of embodiment {embodiment.name!r} says no "
                             "state that it moves")
        self._hold_gap = hold_gap

    def check(self, actions: np.ndarray, state: np.ndarray, gap: float | None) -> Checked:
        """actions [N, action dims] absolute and finite, state [state dims]; robot units."""
        if self._hold_gap is not None and gap is not None and gap > self._hold_gap:
            still = np.array([state[i] for i in self._origin], np.float32)
            return Checked(np.tile(still, (len(actions), 1)), {"limit": 0, "speed": 0, "held": len(actions)})
        inside = np.clip(actions, self._low, self._high)
        safe, before = inside.copy(), np.array([np.nan if i is None else state[i] for i in self._origin])
        for t, wanted in enumerate(inside):
            known = np.isfinite(before)
            origin = np.where(known, before, wanted)
            safe[t] = before = np.clip(wanted, origin - self._step, origin + self._step)
        return Checked(safe.astype(np.float32), {"limit": int((inside != actions).sum()),
                                                 "speed": int((safe != inside).sum()), "held": 0})


def _bound(embodiment: Embodiment, name: str, free: float) -> np.ndarray:
    """That limit of every action dimension; `free` where it has none."""
    limits = [getattr(dimension, name) for dimension in embodiment.action]
    return np.array([free if limit is None else limit for limit in limits])
