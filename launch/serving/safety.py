"""Between the model and the robot: what is sent stays inside what the robot may do, and every change is counted."""

import dataclasses
import math

import numpy as np

from data_pipelines.robots.embodiments import Embodiment

KINDS = ("limit", "speed", "held")


@dataclasses.dataclass(frozen=True)
class Checked:
    """Commands that may be executed, and how many numbers were changed to make them so."""

    actions: np.ndarray  # float32 [N, action dims]
    interventions: dict[str, int]  # by kind
    held: bool  # whether the robot is held, now and until `Guard` lets it go


class Guard:
    """The limits of an embodiment: `Dimension.low`, `high` and `max_speed`.

    hold_gap: above this gap between observed and imagined latents the robot is held where it is: the model has not
    understood what it sees. It stays held until a gap is at or below hold_gap, whatever comes between. None: never.
    """

    def __init__(self, embodiment: Embodiment, hold_gap: float | None = None):
        """Raises ValueError where hold_gap is no positive number, or the robot cannot be held."""
        states = [d.name for d in embodiment.state]
        self._low, self._high = _bound(embodiment, "low", -np.inf), _bound(embodiment, "high", np.inf)
        self._step = _bound(embodiment, "max_speed", np.inf) / embodiment.rate
        # What a command starts from: the state that it moves, where the two have the same unit.
        self._origin = [states.index(d.target_of) if d.target_of else None for d in embodiment.action]
        if hold_gap is not None and not 0 < hold_gap < math.inf:
            raise ValueError(f"hold_gap = {hold_gap}: expected a positive, finite gap, or None to hold never")
        if hold_gap is not None and None in self._origin:
            name = next(d.name for d in embodiment.action if not d.target_of)
            raise ValueError(f"the robot cannot be held: action {name!r} of embodiment {embodiment.name!r} says no "
                             "state that it moves")
        self.hold_gap = hold_gap

    def check(self, actions: np.ndarray, state: np.ndarray, gap: float | None, *, held: bool = False,
              last: np.ndarray | None = None, executed: bool = False) -> Checked:
        """What may be sent in place of the actions.

        Args:
          actions: [N, action dims], absolute and finite; all in robot units.
          state: [state dims].
          gap: None where there is none; then `held` stays as it was.
          held: whether the robot was held by the chunk before.
          last: [action dims], the episode's command before these, None at its beginning.
          executed: whether the robot is known to have come to `last`; otherwise the first step is limited from the
            state where a command moves one, because somebody may have moved the robot meanwhile.
        """
        if self.hold_gap is not None and gap is not None:
            held = not gap <= self.hold_gap  # a gap that is no number holds too
        wanted = self._where(state) if held else actions
        inside = np.broadcast_to(np.clip(wanted, self._low, self._high), actions.shape)
        counts = {"limit": int((inside != wanted).sum()), "speed": 0, "held": len(actions) if held else 0}
        if held:
            return Checked(inside.astype(np.float32), counts, True)
        safe, before = inside.copy(), self._before(state, last, executed)
        for t, command in enumerate(inside):
            origin = np.where(np.isfinite(before), before, command)
            safe[t] = before = np.clip(command, origin - self._step, origin + self._step)
        return Checked(safe.astype(np.float32), counts | {"speed": int((safe != inside).sum())}, False)

    def _where(self, state: np.ndarray) -> np.ndarray:
        """The command that leaves the robot where it is, [action dims]; NaN where none is known."""
        return np.array([np.nan if i is None else state[i] for i in self._origin])

    def _before(self, state: np.ndarray, last: np.ndarray | None, executed: bool) -> np.ndarray:
        """The command before the first, [action dims]; NaN where none is known."""
        where = self._where(state)
        if last is None:
            return where
        return last if executed else np.where(np.isfinite(where), where, last)


def limits(embodiment: Embodiment) -> dict[str, dict[str, float]]:
    """{action: {low, high, max_speed}} as far as they are declared, robot units (per second)."""
    declared = {d.name: {key: getattr(d, key) for key in ("low", "high", "max_speed")} for d in embodiment.action}
    return {name: {key: value for key, value in each.items() if value is not None} for name, each in declared.items()}


def unlimited(embodiment: Embodiment) -> str:
    """A sentence about the limits that the embodiment does not declare; "" where it declares all."""
    missing = {}
    for what, keys in (("range", {"low", "high"}), ("maximum speed", {"max_speed"})):
        names = [name for name, found in limits(embodiment).items() if not keys <= found.keys()]
        if names:
            missing[what] = "any action" if len(names) == len(embodiment.action) else ", ".join(names)
    listed = " and ".join(f"no {what} for {names}" for what, names in missing.items())
    if not listed:
        return ""
    reason = f" ({embodiment.unlimited})" if embodiment.unlimited else ""
    return f"embodiment {embodiment.name!r} declares {listed}{reason}: there the guard changes nothing"


def _bound(embodiment: Embodiment, name: str, free: float) -> np.ndarray:
    """The limit of that name of every action dimension; `free` where it has none."""
    values = [getattr(dimension, name) for dimension in embodiment.action]
    return np.array([free if value is None else value for value in values])
