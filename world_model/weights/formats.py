"""The engine of published layouts: where the network's tensors are, what they are called, what they lack.

A family describes its layouts as `PublishedFormat`s in its folder; `open` makes of one and a directory the weights that
conversion.py reads.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from world_model.weights.names import Modules, NameTable
from world_model.weights.safetensors_io import Weights, WeightsError


def _always(_) -> bool:
    return True


def _no_check(folder: Path, spec) -> None:
    """Checks nothing: no file beside the tensors could contradict them."""


@dataclasses.dataclass(frozen=True)
class InitRule:
    """A rule by which parameters of ours that published weights do not have are initialised."""

    pattern: str  # regular expression, searched in native names
    why: str
    applies: Callable[[Any], bool] = _always  # whether the rule holds for a model of these sizes (the family's spec)


@dataclasses.dataclass(frozen=True)
class Component:
    """Tensors beside the network's: the beginning of their keys, as a regular expression, and what they are."""

    keys: str
    what: str
    applies: Callable[[Path], bool] = _always  # whether the weights of that folder have it


@dataclasses.dataclass(frozen=True)
class SideFiles:
    """Files that may stand beside the network's and hold more of its modules, which then need no rule."""

    stem: str  # the files' names begin so
    modules: Modules
    rule: InitRule  # what initialises these modules where the files are not there


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
    """Opened weights under the names of their table; reading one reads it from its file."""

    directory: Path
    where: dict[str, tuple[Weights, str]]  # name in the table -> (reader, key there)
    table: NameTable
    rules: tuple[InitRule, ...]
    left_in_source: dict[str, int]  # component that is not the network -> its tensors
    check: Callable[[Path, Any], None]  # (directory, spec); raises WeightsError where a config there is another model's
    beside_base: str  # see PublishedFormat

    def __getitem__(self, name: str) -> np.ndarray:
        weights, key = self.where[name]
        return weights[key]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """(shape, dtype as safetensors spells it)."""
        weights, key = self.where[name]
        return weights.headers[key]

    def place(self, name: str) -> str:
        """File and key, for errors."""
        weights, key = self.where[name]
        return f"{weights.path_of(key)}: {key}"

    @property
    def files(self) -> list[Path]:
        """All files that tensors come from, sorted."""
        return sorted({weights.path_of(key) for weights, key in self.where.values()})

    def over(self, base: "OpenedWeights") -> "OpenedWeights":
        """These tensors, and the base's for all others."""
        return dataclasses.replace(self, where=base.where | self.where, rules=base.rules)


@dataclasses.dataclass(frozen=True)
class PublishedFormat:
    """One published layout."""

    stem: str  # the files' names begin so
    folders: tuple[str, ...]  # where the files may be, under the directory that is given; * stands for a run's step
    prefixes: tuple[str, ...]  # prefixes of the network's keys; the first that fits is taken off
    table: NameTable
    rules: tuple[InitRule, ...] = ()
    components: tuple[Component, ...] = ()
    mistaken: tuple[Component, ...] = ()  # tensors by which another layout is known, and what is to be done
    side_files: SideFiles | None = None
    inserted: str = ""  # a level that some versions of peft put into names
    check: Callable[[Path, Any], None] = _no_check  # see OpenedWeights
    beside_base: str = r"(?!)"  # regular expression of native names that are no part of the base of adapters
    # (file of published normalisation, folder of the weights, robot, actions of a block) -> one dataset's statistics;
    # raises WeightsError where they are another robot's. None: the layout has no such file.
    read_statistics: Callable[[Path, Path, Any, int], dict] | None = None

    def open(self, directory: str | Path, allow_pickle: bool = False) -> OpenedWeights:
        """Reads headers; side files are opened where they are there. allow_pickle: take .pth and the like as well.

        Raises WeightsError where files are missing, damaged, contradict their index or hold what has no place here.
        """
        folder = self._folder(Path(directory))
        table, rules, stems, side = self.table, self.rules, [self.stem], self.side_files
        if side and any(folder.glob(f"{side.stem}*")):
            table = dataclasses.replace(table, modules=table.modules + side.modules)
            rules, stems = tuple(rule for rule in rules if rule is not side.rule), [*stems, side.stem]
        weights, where, others = Weights(folder, *stems, allow_pickle=allow_pickle), {}, {}
        components = [component for component in self.components if component.applies(folder)]
        for key in weights:
            if component := next((c.what for c in components if re.match(c.keys, key)), None):
                others[component] = others.get(component, 0) + 1
                continue
            if other := next((c.what for c in self.mistaken if re.match(c.keys, key)), None):
                raise WeightsError(f"{weights.path_of(key)}: {key}: {other}")
            name = self._name(weights, key)
            if name in where:
                raise WeightsError(f"{weights.path_of(key)}: {key}: names the same tensor as {where[name][1]}")
            where[name] = weights, key
        return OpenedWeights(folder, where, table, rules, others, self.check, self.beside_base)

    def _folder(self, directory: Path) -> Path:
        """The first of `folders` that has files; the first of all where none has."""
        for pattern in self.folders:
            folders = sorted(directory.glob(pattern)) if pattern else [directory]
            found = [folder for folder in folders if any(folder.glob(f"{self.stem}*"))]
            if len(found) > 1:
                raise WeightsError(f"{directory}: holds the weights of {len(found)} steps, from {found[0]} to "
                                   f"{found[-1]}; give the directory of one")
            if found:
                return found[0]
        return directory / self.folders[0]

    def _name(self, weights: Weights, key: str) -> str:
        prefix = next((prefix for prefix in self.prefixes if key.startswith(prefix)), None)
        if prefix is None:
            raise WeightsError(f"{weights.path_of(key)}: {key}: expected a name that begins with {self.prefixes[-1]}; "
                               "is it another format?")
        name = key.removeprefix(prefix)
        return name.replace(self.inserted, ".") if self.inserted else name
