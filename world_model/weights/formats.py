"""Published layouts of weights, as data: where the network's tensors are, what they are called, what they lack.

    wan        original Wan: DIR/diffusion_pytorch_model*.safetensors
    diffusers  DIR/transformer/diffusion_pytorch_model*.safetensors, or DIR itself
    dreamzero  DIR/model*.safetensors, the network's tensors under action_head.model.
    lingbot_va, lingbot_va_mot  DIR/transformer/diffusion_pytorch_model*.safetensors beside a config.json

The first three hold a network of family "dreamzero" or its video part; beside the latter, an export of ours has the
action parts in action_heads*.safetensors. A DreamZero checkpoint may be full, or LoRA: the base under its names and
adapters under peft's, or adapters and action parts alone.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from world_model.families.base.spec import Spec
from world_model.families.dreamzero.model import DreamZeroSpec
from world_model.families.lingbot_va import released_format as lingbot_va_format
from world_model.families.wan.diffusers_names import DIFFUSERS
from world_model.weights.names import ACTION_MODULES, DREAMZERO, WAN, NameTable
from world_model.weights.safetensors_io import Weights, WeightsError

ACTION_STEM = "action_heads"


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A rule by which parameters of ours that a source does not have are initialised."""

    pattern: str  # regular expression, searched in our names
    why: str
    applies: Callable[[DreamZeroSpec], bool] = lambda spec: True


ACTION_HEADS = Fresh(r"^(state_encoder|action_encoder|action_decoder)\.", "a video model has no actions")
IMAGE_BRANCH = Fresh(r"^image_embedding\.|\.[kv]_image(_norm)?\.", "Wan2.2-TI2V-5B has no image branch",
                     applies=lambda spec: not spec.concat_first_frame)
ADAPTERS = Fresh(r"\.lora_[ab]$", "a base has no adapters; they begin as nothing")


@dataclasses.dataclass(frozen=True)
class Component:
    """Tensors of a source that are not the network's: by prefix, with the part of ours that they belong to."""

    prefix: str
    part: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Opened weights under the names of their table; reading one reads it from its file."""

    directory: Path
    where: dict[str, tuple[Weights, str]]  # name in the table -> (reader, key there)
    table: NameTable
    fresh: tuple[Fresh, ...]
    apart: dict[str, int]  # component that is left where it is -> its tensors
    check: Callable[[Path, Spec], None]  # raises WeightsError where what stands beside the tensors is another model's

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

    def over(self, base: "Source") -> "Source":
        """These tensors, and the base's for all others."""
        return dataclasses.replace(self, where=base.where | self.where, fresh=base.fresh)


@dataclasses.dataclass(frozen=True)
class Format:
    """One published layout."""

    stem: str  # of the files' names
    folders: tuple[str, ...]  # where they may be, under the directory that is given
    prefixes: tuple[str, ...]  # of the network's names; the first that fits
    table: NameTable
    fresh: tuple[Fresh, ...]
    components: tuple[Component, ...] = ()
    inserted: str = ""  # a level that some versions of peft put into names
    family: str = "dreamzero"  # whose network it holds
    check: Callable[[Path, Spec], None] = lambda folder, spec: None  # see Source

    def open(self, directory: str | Path, allow_pickle: bool = False) -> Source:
        """With action parts where a file beside the weights holds them. allow_pickle: take .pth and the like as well.

        Raises WeightsError where files are missing, damaged, contradict their index or hold what has no place here.
        """
        folders = [Path(directory) / folder for folder in self.folders]
        folder = next((f for f in folders if any(f.glob(f"{self.stem}*"))), folders[0])
        table, fresh, stems = self.table, self.fresh, [self.stem]
        if ACTION_HEADS in fresh and any(folder.glob(f"{ACTION_STEM}*")):
            table = dataclasses.replace(table, modules=table.modules + ACTION_MODULES)
            fresh, stems = tuple(rule for rule in fresh if rule is not ACTION_HEADS), [*stems, ACTION_STEM]
        weights, where, apart = Weights(folder, *stems, allow_pickle=allow_pickle), {}, {}
        for key in weights:
            component = next((c.part for c in self.components if key.startswith(c.prefix)), None)
            if component:
                apart[component] = apart.get(component, 0) + 1
                continue
            name = self._name(weights, key)
            if name in where:
                raise WeightsError(f"{weights.path_of(key)}: {key}: names the same tensor as {where[name][1]}")
            where[name] = weights, key
        return Source(folder, where, table, fresh, apart, self.check)

    def _name(self, weights: Weights, key: str) -> str:
        prefix = next((prefix for prefix in self.prefixes if key.startswith(prefix)), None)
        if prefix is None:
            raise WeightsError(f"{weights.path_of(key)}: {key}: expected a name that begins with {self.prefixes[-1]}; "
                               "is it another format?")
        name = key.removeprefix(prefix)
        return name.replace(self.inserted, ".") if self.inserted else name


FORMATS = {
    "wan": Format("diffusion_pytorch_model", ("",), ("",), WAN, (ACTION_HEADS, IMAGE_BRANCH, ADAPTERS)),
    "diffusers": Format("diffusion_pytorch_model", ("transformer", ""), ("",), DIFFUSERS,
                        (ACTION_HEADS, IMAGE_BRANCH, ADAPTERS)),
    "dreamzero": Format(
        "model", ("",), ("action_head.model.base_model.model.", "action_head.model."), DREAMZERO, (ADAPTERS,),
        components=(Component("action_head.text_encoder.", "text encoder"),
                    Component("action_head.image_encoder.", "image encoder"),
                    Component("action_head.vae.", "video codec")), inserted=".base_layer."),
    **{family: Format(lingbot_va_format.STEM, (lingbot_va_format.FOLDER,), ("",), variant.table, (), family=family,
                      check=lingbot_va_format.check_config)
       for family, variant in lingbot_va_format.VARIANTS.items()},
}
