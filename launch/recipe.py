"""What a recipe needs, what of it is there, and what each step costs, before anything starts.

    python -m launch.recipe NAME[:ARM] [--check]          # NAME of configs/recipes/NAME.py

Files are looked for, not read: the data's as their metadata name them, the frozen encoders', the weights to begin with
and the latent cache. With --check the command fails where something that training reads is missing.
"""

import difflib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import flags

import configs.recipes
from data_pipelines.cache.format import record_bytes
from data_pipelines.sources import make_source
from data_pipelines.storage import files
from launch.evaluation.cost import share
from launch.setup import flags as launch_flags
from launch.setup import mixture
from launch.setup.datasets import MIXTURE_KEYS
from launch.setup.experiment import Experiment
from world_model.analysis.chips import CHIPS
from world_model.training import checkpoint

THERE, HALF, MISSING = "there", "HALF THERE", "MISSING"
GB = 1e9
DOLLARS_PER_GB_MONTH = 0.022  # object storage, list price of September 2026
ENCODERS = ("video_weights", "text_weights", "image_weights", "tokenizer")


class Part(NamedTuple):
    """Something that a recipe needs."""

    state: str  # THERE, HALF or MISSING
    path: str
    words: str


class Recipe:
    """A module of configs/recipes, one of its arms, and where its cache is."""

    def __init__(self, name: str, arm: str, cache: str = ""):
        """cache: its folder or address. Raises ValueError on a name or arm that is not there."""
        self.name, self.arm, self._module = name, arm, find(name)
        self.config = self._module.get_config(arm)
        self.cache = cache or f"cache/{name}{f'_{arm}' if arm else ''}"
        self.file = f"configs/recipes/{name}.py{f':{arm}' if arm else ''}"

    def parts(self) -> Iterator[Part]:
        """Yields everything that is needed, in the order in which it is fetched or made."""
        for name, entry in mixture.entries(self.config.data.datasets).items():
            yield self._dataset(name, entry)
            if keep := entry.get("keep"):
                yield self._file(keep)
        for key in ENCODERS:
            if path := self.config.encoders.get(key):
                yield self._file(path)
        if base := self.config.train.init_from:
            try:
                yield Part(THERE, base, f"step {checkpoint.locate(Path(base) / 'checkpoints')}")
            except checkpoint.CheckpointError:
                yield Part(MISSING, base, self._how(base))
        yield self._cache()

    def _dataset(self, name: str, entry) -> Part:
        if not files.exists(entry.path):
            return Part(MISSING, entry.path, self._how(entry.path))
        options = {key: value for key, value in entry.to_dict().items() if key not in (*MIXTURE_KEYS, "keep")}
        try:
            wanted = make_source(entry.source, name, **options).files
        except (OSError, ValueError) as error:
            return Part(HALF, entry.path, str(error))
        sizes = {folder: files.sizes(folder) for folder in {os.path.dirname(file) for file in wanted}}
        found = {file: sizes[os.path.dirname(file)].get(os.path.basename(file), 0) for file in wanted}
        if lacking := [file for file, size in found.items() if not size]:
            return Part(HALF, entry.path, f"{len(lacking):,} of its {len(found):,} files are missing or empty, the "
                                          f"first: {lacking[0]}; {self._how(entry.path)}")
        return Part(THERE, entry.path, f"{len(found):,} files, {sum(found.values()) / GB:,.1f} GB")

    def _file(self, path: str) -> Part:
        return Part(THERE, path, "") if files.exists(path) else Part(MISSING, path, self._how(path))

    def _cache(self) -> Part:
        command = f"python -m launch.precompute --config={self.file} --out={self.cache}"
        if files.exists(f"{self.cache}/_SUCCESS"):
            return Part(THERE, self.cache, f"train with --config.data.cache={self.cache}")
        if files.exists(f"{self.cache}/manifest.json"):
            return Part(HALF, self.cache, f"goes on with: {command}")
        return Part(MISSING, self.cache, f"optional, training is faster from it: {command}")

    def _how(self, path: str) -> str:
        """How a file or folder is got: what the recipe says of it, or of the folder that it lies in."""
        known = [place for place in self._module.GET if f"{path}/".startswith(f"{place}/")]
        return self._module.GET[max(known, key=len)] if known else "the recipe does not say where it comes from"

    def costs(self) -> Iterator[str]:
        """A sentence with its formula for each step that costs; none for an arm that costs nothing."""
        if not (cost := self._module.COST.get(self.arm)):
            return
        experiment = Experiment(self.config)
        size = record_bytes(experiment.inputs.stored_fields())
        total = cost["windows"] * size / GB
        yield (f"cache: {cost['windows']:,} windows x {size / 1e6:.2f} MB = {total:,.0f} GB; x "
               f"${DOLLARS_PER_GB_MONTH} = ${total * DOLLARS_PER_GB_MONTH:,.0f} a month. launch.plan --encoders says "
               "the time (docs/recipes.md); --workers share the work")
        steps, hours = self.config.train.steps, self.config.train.steps * cost["seconds"] / 3600
        price = CHIPS[cost["chip"]].dollars_per_hour
        money = (f"; x {cost['chips']} chips x ${price:.2f} an hour on demand = ${hours * cost['chips'] * price:,.0f}"
                 if price else f"; x {cost['chips']} chips")
        yield (f"training: {steps:,} steps of {self.config.train.global_batch_size} x {cost['seconds']:g} s = "
               f"{hours:,.1f} h on {cost['chips']} {cost['chip']}{money}")
        datasets, e = len(configs.recipes.entries(self.config.data.datasets)), self.config.evaluate
        yield (f"evaluation: at most {100 * share(experiment, datasets, cost['chips']):.2f}% of the training's FLOP: "
               f"{e.windows} windows of each of {datasets} data sets every {e.every:,} steps, {e.batch_size} rolled "
               f"out every {e.rollout_every:,}, filled up to a window a chip")


def find(name: str) -> ModuleType:
    """The module of a recipe. Raises ValueError naming the nearest where there is none."""
    folder = Path(configs.recipes.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"no recipe {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} There are: "
                         f"{', '.join(names)}")
    return importlib.import_module(f"configs.recipes.{name}")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError("give the name of a recipe, as droid_14b or droid_14b:5b")
    name, _, arm = argv[1].partition(":")
    recipe = Recipe(name, arm, flags.FLAGS.cache)
    print(f"{recipe.file}: its docstring has the commands in order")
    parts = list(recipe.parts())
    for part in parts:
        print(f"  {part.state:10}  {part.path}{f': {part.words}' if part.words else ''}", flush=True)
    print("\n".join(f"  {line}" for line in recipe.costs()))
    needed = [part.path for part in parts if part.state != THERE and part.path != recipe.cache]
    print(f"  train with: python -m launch.train --config={recipe.file} --workdir=RUN" if not needed else
          f"  {len(needed)} of {len(parts) - 1} things are missing")
    if needed and flags.FLAGS.check:
        raise ValueError(f"{recipe.file} cannot start: {', '.join(needed)}")


if __name__ == "__main__":
    flags.DEFINE_bool("check", False, "fails where something that training reads is missing")
    flags.DEFINE_string("cache", "", "folder of the latent cache, or its address; default: cache/NAME")
    launch_flags.run(main, arguments=True)
