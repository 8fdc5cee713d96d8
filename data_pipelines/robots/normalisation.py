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
    """An affine map of [low, low + span] to [-1, 1] per dimension; constant dimensions map to 0 and back to `low`.
    Angles map to their cosines, and their sines stand behind all dimensions (arXiv 2607.06403's code, `sincos`).

    With statistics of their own for the N steps of a block, values are [..., n, dims] from a block's first step on;
    after N steps the next block begins.
    """

    low: np.ndarray  # float64 [dims] or [N, dims]
    span: np.ndarray  # likewise, 0 where constant
    clip: float | None = 1.0  # largest magnitude of what it gives
    angles: list[int] = dataclasses.field(default_factory=list)  # dimensions in rad

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Maps [..., dims] in robot units to float32 [..., dims + angles], clipped."""
        low, span = self._of(values)
        angles = np.asarray(values)[..., self.angles]
        moves = span > 0
        scaled = 2 * (values - low) / np.where(moves, span, 1) - 1
        if self.clip is not None:
            scaled = np.clip(scaled, -self.clip, self.clip)
        scaled = np.where(moves, scaled, 0)
        scaled[..., self.angles] = np.cos(angles)
        return np.concatenate([scaled, np.sin(angles)], -1).astype(np.float32)

    def denormalise(self, values: np.ndarray) -> np.ndarray:
        """Maps [..., dims + angles] to float64 [..., dims] in robot units; angles lie in (-pi, pi]."""
        values, sines = np.split(np.asarray(values, np.float64), [self.low.shape[-1]], -1)
        low, span = self._of(values)
        found = low + (values + 1) / 2 * span
        found[..., self.angles] = np.arctan2(sines, values[..., self.angles])
        return found

    def _of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(low, span) of each of the values. Raises ValueError where nobody can know the steps that they are of."""
        if self.low.ndim == 1:
            return self.low, self.span
        if np.ndim(values) < 2:
            raise ValueError(f"these statistics differ from step to step of a block: expected values [..., steps, "
                             f"{self.low.shape[1]}] from a block's first step on, found shape {np.shape(values)}")
        steps = np.arange(np.shape(values)[-2]) % len(self.low)
        return self.low[steps], self.span[steps]


def make_scale(statistics: dict, embodiment: Embodiment, part: str) -> Scale:
    """The scale of `part` ("state" or "action").

    Raises ValueError naming dataset, statistic and dimension where a statistic is missing or of another width, or a
    dimension that is not declared constant has no range, of statistics per step at none of them.
    """
    where = f"statistics of dataset {statistics.get('dataset')!r}: {part}"
    dims: tuple[Dimension, ...] = getattr(embodiment, part)
    kind, values = NORMALISATIONS[embodiment.normalisation], statistics.get(part)
    block = statistics["actions_per_block"] if embodiment.per_step and part == "action" else None
    steps = None if block is None else embodiment.learned_steps(block)
    low = _statistic(values, kind.low, dims, where, steps) if kind.low else np.zeros(len(dims))
    high = _statistic(values, kind.high, dims, where, steps)
    if kind.high == "std":  # -1 and 1 lie one deviation on either side of the mean
        low, high = low - high, low + high
    span = high - low
    angles = embodiment.angles if part == "state" else []
    constant = np.array([d.constant for d in dims], bool) | (span < MIN_RANGE)
    still = [i for i, dim in enumerate(dims)
             if not dim.constant and i not in angles and constant[..., i].all()]
    if still:
        listed = "; ".join(f"dimension {dims[i].name!r} has no range: {low[..., i].min():g} to {high[..., i].max():g}"
                           for i in still)
        raise ValueError(f"{where} {listed}. {_advice(values, embodiment, dims, still)}")
    if kind.high == "std":
        low, span = low - kind.margin, span + 2 * kind.margin
        if constant.any():
            low = np.where(constant, _statistic(values, "mean", dims, where, steps), low)
    else:
        span = span + kind.margin
    span = np.where(constant, 0.0, span)
    if block is not None:  # steps past the horizon are neither learnt nor executed
        low, span = (np.pad(each, ((0, block - steps), (0, 0)), "edge") for each in (low, span))
    return Scale(low, span, kind.clip, angles)


def _advice(values: dict, embodiment: Embodiment, dims: tuple[Dimension, ...], still: list[int]) -> str:
    """What to do about the dimensions `still`, which have no range: those that move at all must not be dropped."""
    low, high = (np.asarray(values.get(key, np.zeros(len(dims))), np.float64) for key in ("min", "max"))
    moves = {i: (high - low)[..., i].max() >= MIN_RANGE for i in still}
    rare = [f"{dims[i].name!r} ({low[..., i].min():g} to {high[..., i].max():g})" for i in still if moves[i]]
    never = [dims[i].name for i in still if not moves[i]]
    advice = []
    if rare:
        advice.append(f"Rare movements of {', '.join(rare)} lie outside of the quantiles: embodiment "
                      f"{embodiment.name!r} should declare normalisation=\"min_max\"")
    if never:
        advice.append(f"Either the recording is broken, or embodiment {embodiment.name!r} should declare "
                      f"Dimension({never[0]!r}, ..., constant=True)")
    return ". ".join(advice)


def _statistic(values: dict | None, key: str, dims: tuple, where: str, steps: int | None) -> np.ndarray:
    """One statistic, float64 [dims], or [steps, dims] of as many steps or more. Raises ValueError where it is missing,
    of another shape, or not finite."""
    if values is None or key not in values:
        raise ValueError(f"{where} has no {key!r}; it has {sorted(values or ())}. Compute the statistics again")
    try:
        found = np.asarray(values[key], np.float64)
    except ValueError as error:
        raise ValueError(f"{where} {key!r}: its steps have different numbers of dimensions") from error
    if found.shape[-1:] != (len(dims),) or found.ndim != (2 if steps else 1):
        per_step = f"for each of {steps} steps, as the robot is declared per_step=True, " if steps else ""
        raise ValueError(f"{where} {key!r}: expected {per_step}{len(dims)} dimensions, found shape {found.shape}")
    if steps and len(found) < steps:
        raise ValueError(f"{where} {key!r}: expected {steps} steps of a block, found {len(found)}")
    found = found[:steps] if steps else found
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        at = f" at step {bad[0][0]}" if steps else ""
        raise ValueError(f"{where} {key!r} of dimension {dims[bad[0][-1]].name!r}{at} is {found[tuple(bad[0])]}")
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
