"""Maps a robot's units to [-1, 1] and back: relative actions, scaling by statistics, slots.

One transform serves statistics, training and the robot: `to_relative` comes before counting and before training,
`to_robot_units` behind the model.
"""

import dataclasses

import numpy as np

from data_pipelines.robots.embodiment import NORMALISATIONS, Dimension, Embodiment

MIN_RANGE = 1e-6  # robot units; a dimension that moves less than this is constant


@dataclasses.dataclass(frozen=True)
class Scale:
    """An affine map of [low, low + span] to [-1, 1] per dimension; constant dimensions map to 0 and back to `low`."""

    low: np.ndarray  # float64 [dims]
    span: np.ndarray  # float64 [dims], 0 where constant
    clip: float | None = 1.0  # largest magnitude of what it gives

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Maps [..., dims] in robot units to float32 [..., dims], clipped."""
        moves = self.span > 0
        scaled = 2 * (values - self.low) / np.where(moves, self.span, 1) - 1
        if self.clip is not None:
            scaled = np.clip(scaled, -self.clip, self.clip)
        return np.where(moves, scaled, 0).astype(np.float32)

    def denormalise(self, values: np.ndarray) -> np.ndarray:
        """Maps [..., dims] to float64 [..., dims] in robot units."""
        return self.low + (np.asarray(values, np.float64) + 1) / 2 * self.span


def make_scale(statistics: dict, embodiment: Embodiment, part: str) -> Scale:
    """The scale of `part` ("state" or "action").

    Raises ValueError naming dataset, statistic and dimension where a statistic is missing or of another width, or a
    dimension that is not declared constant has no range.
    """
    where = f"statistics of dataset {statistics.get('dataset')!r}: {part}"
    dims: tuple[Dimension, ...] = getattr(embodiment, part)
    kind, values = NORMALISATIONS[embodiment.normalisation], statistics.get(part)
    low = _statistic(values, kind.low, dims, where) if kind.low else np.zeros(len(dims))
    high = _statistic(values, kind.high, dims, where)
    if kind.high == "std":  # that far on both sides of the middle becomes -1 and 1
        low, high = low - high, low + high
    span = high - low
    constant = np.array([d.constant for d in dims], bool)
    still = np.flatnonzero((span < MIN_RANGE) & ~constant)
    if len(still):
        listed = "; ".join(f"dimension {dims[i].name!r} has no range: {low[i]:g} to {high[i]:g}" for i in still)
        raise ValueError(f"{where} {listed}. {_advice(values, embodiment, dims, still)}")
    if kind.high == "std":
        low, span = low - kind.margin, span + 2 * kind.margin
    else:
        span = span + kind.margin
    return Scale(low, np.where(constant, 0.0, span), kind.clip)


def _advice(values: dict, embodiment: Embodiment, dims: tuple[Dimension, ...], still: np.ndarray) -> str:
    """What to do about the dimensions `still`, which have no range: those that move at all must not be dropped."""
    lowest, highest = (np.asarray(values.get(key, np.zeros(len(dims))), np.float64) for key in ("min", "max"))
    rare = [f"{dims[i].name!r} ({lowest[i]:g} to {highest[i]:g})" for i in still if highest[i] - lowest[i] >= MIN_RANGE]
    never = [dims[i].name for i in still if highest[i] - lowest[i] < MIN_RANGE]
    advice = []
    if rare:
        advice.append(f"Rare movements of {', '.join(rare)} lie outside of the quantiles: embodiment "
                      f"{embodiment.name!r} should declare normalisation=\"min_max\"")
    if never:
        advice.append(f"Either the recording is broken, or embodiment {embodiment.name!r} should declare "
                      f"Dimension({never[0]!r}, ..., constant=True)")
    return ". ".join(advice)


def _statistic(values: dict | None, key: str, dims: tuple, where: str) -> np.ndarray:
    """One statistic, float64 [dims]. Raises ValueError where it is missing, of another width, or not finite."""
    if values is None or key not in values:
        raise ValueError(f"{where} has no {key!r}; it has {sorted(values or ())}. Compute the statistics again")
    found = np.asarray(values[key], np.float64)
    if found.shape != (len(dims),):
        raise ValueError(f"{where} {key!r}: expected {len(dims)} dimensions, found shape {found.shape}")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise ValueError(f"{where} {key!r} of dimension {dims[bad[0]].name!r} is {found[bad[0]]}")
    return found


def _reference(state: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """The state [..., state dims] as what each action is relative to, [..., action dims]; 0 where it is absolute."""
    names = [d.name for d in embodiment.state]
    out = np.zeros((*state.shape[:-1], len(embodiment.action)), state.dtype)
    for i, dim in enumerate(embodiment.action):
        if dim.relative_to is not None:
            out[..., i] = state[..., names.index(dim.relative_to)]
    return out


def to_relative(action: np.ndarray, state: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Makes recorded actions [..., action dims] relative to the state [..., state dims] at their block's start."""
    return action - _reference(state, embodiment)


def to_absolute(action: np.ndarray, state: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Undoes `to_relative`."""
    return action + _reference(state, embodiment)


def to_robot_units(actions: np.ndarray, state: np.ndarray, embodiment: Embodiment, statistics: dict) -> np.ndarray:
    """Turns what the model predicts into what the robot executes.

    Args:
      actions: [N, action slots], normalised.
      state: robot units, [state dims] at the start of the block that all N actions belong to, or [N, state dims].

    Returns:
      float64 [N, action dims], absolute, in robot units and the embodiment's order.
    """
    scale = make_scale(statistics, embodiment, "action")
    relative = scale.denormalise(np.asarray(actions)[..., embodiment.action_slots])
    return to_absolute(relative, np.asarray(state, np.float64), embodiment)
