"""Published layouts of weights, as data: where the network's tensors are, what they are called, what they lack.

    wan        original Wan: DIR/diffusion_pytorch_model*.safetensors
    diffusers  DIR/transformer/diffusion_pytorch_model*.safetensors, or DIR itself
    dreamzero  DIR/model*.safetensors, the network's tensors under action_head.model.

All three hold a network of family "dreamzero" or its video part.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from world_model.families.dreamzero import DreamZeroSpec
from world_model.interop.diffusers_names import DIFFUSERS
from world_model.interop.names import DREAMZERO, WAN, NameTable


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

    def folder(self, directory: str | Path) -> Path:
        """The first folder that holds weights; the first of all where none does, for an error to name."""
        folders = [Path(directory) / folder for folder in self.folders]
        return next((f for f in folders if any(f.glob(f"{self.stem}*"))), folders[0])


FORMATS = {
    "wan": Format("diffusion_pytorch_model", ("",), "", WAN, (ACTION_HEADS, IMAGE_BRANCH)),
    "diffusers": Format("diffusion_pytorch_model", ("transformer", ""), "", DIFFUSERS, (ACTION_HEADS, IMAGE_BRANCH)),
    "dreamzero": Format("model", ("",), "action_head.model.", DREAMZERO, components=(
        Component("action_head.text_encoder.", "text encoder"),
        Component("action_head.image_encoder.", "image encoder"),
        Component("action_head.vae.", "video codec"))),
}
