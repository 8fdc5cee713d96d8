"""Published layouts of weights, as data: where the network's tensors are, what they are called, what they lack.

    wan        original Wan: DIR/diffusion_pytorch_model*.safetensors
    diffusers  DIR/transformer/diffusion_pytorch_model*.safetensors, or DIR itself
    dreamzero  DIR/model*.safetensors, the network's tensors under action_head.model.

All three hold a network of family "dreamzero" or its video part; beside the latter, an export of ours has the action
parts in action_heads*.safetensors.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from world_model.families.dreamzero import DreamZeroSpec
from world_model.interop.diffusers_names import DIFFUSERS
from world_model.interop.names import ACTION_MODULES, DREAMZERO, WAN, NameTable
from world_model.interop.safetensors_io import Weights

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


@dataclasses.dataclass(frozen=True)
class Component:
    """Tensors of a source that are not the network's: by prefix, with the part of ours that they belong to."""

    prefix: str
    part: str


@dataclasses.dataclass(frozen=True)
class Format:
    """One published layout."""

    stem: str  # of the files' names
    folders: tuple[str, ...]  # where they may be, under the directory that is given
    prefix: str  # of the network's names
    table: NameTable
    fresh: tuple[Fresh, ...] = ()
    components: tuple[Component, ...] = ()

    def open(self, directory: str | Path) -> tuple[Weights, "Format"]:
        """The weights, and this format as they have it: with action parts where those are there.

        Raises WeightsError where files are missing, damaged or contradict their index.
        """
        folders = [Path(directory) / folder for folder in self.folders]
        folder = next((f for f in folders if any(f.glob(f"{self.stem}*"))), folders[0])
        if ACTION_HEADS not in self.fresh or not any(folder.glob(f"{ACTION_STEM}*")):
            return Weights(folder, self.stem), self
        table = dataclasses.replace(self.table, modules=self.table.modules + ACTION_MODULES)
        fresh = tuple(rule for rule in self.fresh if rule is not ACTION_HEADS)
        return Weights(folder, self.stem, ACTION_STEM), dataclasses.replace(self, table=table, fresh=fresh)


FORMATS = {
    "wan": Format("diffusion_pytorch_model", ("",), "", WAN, (ACTION_HEADS, IMAGE_BRANCH)),
    "diffusers": Format("diffusion_pytorch_model", ("transformer", ""), "", DIFFUSERS, (ACTION_HEADS, IMAGE_BRANCH)),
    "dreamzero": Format("model", ("",), "action_head.model.", DREAMZERO, components=(
        Component("action_head.text_encoder.", "text encoder"),
        Component("action_head.image_encoder.", "image encoder"),
        Component("action_head.vae.", "video codec"))),
}
