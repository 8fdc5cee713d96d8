"""What the pipeline knows about one robot: the type of the entries in embodiments.py."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable

import numpy as np

from data_pipelines.robots.views import VIEW_LAYOUTS


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """An affine map of a dimension, and where its result is cut off."""

    low: str | None  # statistic that becomes -1; None: 0 becomes 0
    high: str  # statistic that becomes 1, or, where `low` is none or the mean, how far from 0 becomes 1
    clip: float | None = None  # largest magnitude of the result
    margin: float = 0.0  # added to the divisor

    @property
    def quantiles(self) -> tuple[str, ...]:
        """The quantiles that statistics need to have."""
        return tuple(name for name in (self.low, self.high) if name and re.fullmatch(r"q\d\d", name))


# By name. Those from `bounds_99` on are of the code published with arXiv 2607.06403 (commit 36a9bab), whose forerunner
# (arXiv 2601.18692) calls the unclipped ones without `_unclipped`; both add 1e-6 to the divisor.
NORMALISATIONS = {
    "quantile": Normalisation("q01", "q99", 1.0),
    "min_max": Normalisation("min", "max", 1.0),
    "bounds_99": Normalisation("q01", "q99", 1.5, 1e-6),
    "bounds_99_unclipped": Normalisation("q01", "q99", None, 1e-6),
    "bounds_98": Normalisation("q02", "q98", 1.5, 1e-6),
    "bounds_98_unclipped": Normalisation("q02", "q98", None, 1e-6),
    "range": Normalisation("min", "max", 1.0, 1e-6),
    "range_unclipped": Normalisation("min", "max", None, 1e-6),
    "mean_std": Normalisation("mean", "std", None, 1e-6),
    "std": Normalisation(None, "std", None, 1e-6),
}


YOUNGER = ("per_step", "sine_slot")  # fields that the first latent caches did not know


def _shown(entry) -> str:
    """The repr of a robot or a dimension, which latent caches hold: of a younger field only what is set."""
    fields = (f for f in dataclasses.fields(entry) if f.repr)
    shown = [f.name for f in fields if f.name not in YOUNGER or getattr(entry, f.name) != f.default]
    return f"{type(entry).__name__}({', '.join(f'{name}={getattr(entry, name)!r}' for name in shown)})"


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One number of a robot's state or action, in the robot's units."""

    __repr__ = _shown

    name: str
    slot: int  # in data_pipelines.robots.slots
    relative_to: str | None = None  # action only: predicted minus this state dimension at the block's start
    constant: bool = False  # never moves in the data; maps to 0 instead of being an error
    # For actions only, what the robot may be sent; None: anything.
    low: float | None = None
    high: float | None = None
    max_speed: float | None = None  # change of the command per second
    moves: str | None = None  # state dimension that it is a target of: commands start there, and holding means it
    sine_slot: int | None = None  # state only: of an angle in rad, whose cosine is then in `slot` and its sine here

    @property
    def target_of(self) -> str | None:
        """The state dimension that the command is a target of; what is relative to one is."""
        return self.moves or self.relative_to

    def check(self, where: str) -> None:
        """Raises ValueError where a limit is no number, low is above high, or nothing could move."""
        where = f"{where} {self.name!r}"
        for name in ("low", "high", "max_speed"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{where}: {name} = {value}: expected a finite number, or None for no limit")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{where}: low = {self.low} is above high = {self.high}")
        if self.max_speed is not None and self.max_speed <= 0:
            raise ValueError(f"{where}: max_speed = {self.max_speed}: expected more than 0 units per second")


class _Instruction(str):
    """Text that knows the format "lower"."""

    def __format__(self, spec: str) -> str:
        return self.lower() if spec == "lower" else super().__format__(spec)


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """One robot, or video without a robot. Latent caches hold its repr: a new field goes into YOUNGER.
    (They compare it without what actions may be sent: data_pipelines/cache/format.py.)"""

    __repr__ = _shown

    name: str
    id: int  # in batch["embodiment_id"]
    views: tuple[str, ...]  # camera names in tiling order
    view_layout: str  # key of data_pipelines.robots.views.VIEW_LAYOUTS
    rate: float  # control steps per second; video at another rate is read at the nearest frames
    horizon: int | None = None  # actions of a block that are learnt and executed; None: all of them
    state: tuple[Dimension, ...] = ()
    action: tuple[Dimension, ...] = ()
    normalisation: str = "quantile"  # key of NORMALISATIONS
    prompt: str = "{instruction}"  # {instruction:lower} is the instruction in lower case
    instruction: str = ""  # what a policy is asked for where nobody says
    # Why actions have no limits, where some have none.
    unlimited: str = dataclasses.field(default="", repr=False, compare=False)
    per_step: bool = False  # each step of a block has action statistics of its own

    def __post_init__(self):
        check_known(f"embodiment {self.name!r}: view_layout", self.view_layout, VIEW_LAYOUTS)
        check_known(f"embodiment {self.name!r}: normalisation", self.normalisation, NORMALISATIONS)
        if not 0 < self.rate < math.inf or not self.views or "{instruction" not in self.prompt:
            raise ValueError(f"embodiment {self.name!r} needs rate > 0, at least one view and a prompt with "
                             f"'{{instruction}}'; found {self.rate}, {self.views}, {self.prompt!r}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"embodiment {self.name!r}: horizon = {self.horizon}: expected at least 1 action, or None")
        for part, dims, slots in (("state", self.state, self.state_slots), ("action", self.action, self.action_slots)):
            self._check_unique(part, "slot", slots.tolist())
            self._check_unique(part, "name", [d.name for d in dims])
            for dim in dims:
                dim.check(f"embodiment {self.name!r}: {part}")
        for dim in self.action:
            if dim.sine_slot is not None:
                raise ValueError(f"embodiment {self.name!r}: action {dim.name!r} has a sine_slot: of states alone a "
                                 "cosine and a sine are learnt from")
            self._check_names_state(dim, "relative_to", dim.relative_to)
            self._check_names_state(dim, "moves", dim.moves)

    def _check_unique(self, part: str, what: str, values: list) -> None:
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ValueError(f"embodiment {self.name!r}: {part} {what} used twice: {twice}")

    def _check_names_state(self, dim: Dimension, field: str, name: str | None) -> None:
        if name is not None:
            check_known(f"embodiment {self.name!r}: action {dim.name!r} {field}", name, [d.name for d in self.state])

    def check_views(self, count: int) -> None:
        """Raises ValueError where the robot has more cameras than a sample has views."""
        if len(self.views) > count:
            raise ValueError(f"embodiment {self.name!r} has {len(self.views)} cameras ({', '.join(self.views)}), but a "
                             f"sample has {count} views")

    def learned_steps(self, block: int) -> int:
        """How many of a block's actions are learnt and executed."""
        return min(self.horizon or block, block)

    def format_prompt(self, instruction: str) -> str:
        """The text that the text encoder reads."""
        return self.prompt.format(instruction=_Instruction(instruction))

    @property
    def state_slots(self) -> np.ndarray:
        """int64 [state dims + angles]: the sines' behind all others."""
        return np.array([*(d.slot for d in self.state), *(self.state[i].sine_slot for i in self.angles)], np.int64)

    @property
    def angles(self) -> list[int]:
        """The state dimensions of which cosine and sine are learnt from."""
        return [i for i, dim in enumerate(self.state) if dim.sine_slot is not None]

    @property
    def action_slots(self) -> np.ndarray:
        """int64 [action dims]."""
        return np.array([d.slot for d in self.action], np.int64)


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError naming the nearest of the known names where `name` is none of them."""
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{what} = {name!r} is unknown{hint} Known: {sorted(known)}")
