"""Opens an export as a model that acts: PyTorch runs the weights, and what goes with them is in the same directory.

    encoders/kept-*.safetensors    what a checkpoint keeps of the frozen encoders: fitted arrays, or the hash of a file
    encoders/TOKENIZER             a copy of the tokenizer's file, where there is one
    provenance.json                the config; statistics.json: the normalisation (launch/export.py)

In LeRobot's layout (launch/exporting/lerobot.py) these stand in a folder inside.

The frozen encoders themselves run in JAX in either runtime. Where their weights are files (encoders.*_weights), these
are not copied: they are read from the config's paths and held to their hashes.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.statistics.stored import STATISTICS
from launch.exporting import lerobot
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored, restored_config
from world_model import kinds
from world_model.families.base.policy import Policy
from world_model.training import checkpoint
from world_model.weights import safetensors_io
from world_model.weights.safetensors_io import Weights
from world_model.weights.tensor_files import WeightsError, read_json

FOLDER, STEM = "encoders", "kept"
_NO_EXPORT = "give a directory of launch.export, or a training run with --checkpoint"
_PROVENANCE = kinds.fields({
    "family": kinds.text, "step": kinds.whole(), "config": kinds.MAP, "base": checkpoint.BASE},
    required=("family", "step", "config"))


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model for launch.serving.engine.Engine."""

    experiment: Experiment
    step: int
    statistics: dict
    frozen: dict  # the encoders' arrays
    directory: Path
    device: str

    def policy(self, sessions: int, channels: np.ndarray, batch_sizes: tuple[int, ...], **sampling) -> Policy:
        """See Restored; nothing compiles, so any batch will do. Raises WeightsError where the weights do not load,
        ValueError without PyTorch or its device, or where the family does not run in PyTorch."""
        try:
            import torch

            make = self.experiment.family.part("torch_policy", "launch.serve --export")
        except ModuleNotFoundError as error:
            raise ValueError(f"an export runs in PyTorch, and {error.name!r} is missing: pip install -e '.[torch]'") \
                from error
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device={self.device}: PyTorch {torch.__version__} finds no CUDA device here")
        experiment = self.experiment
        with lerobot.plain_export(self.directory) as directory:
            return make(directory, self.device, experiment.sampler(**sampling), experiment.inputs, self.frozen,
                        sessions, channels)


def write_encoders(directory: Path, restored: Restored) -> None:
    """Writes what `open_export` needs of the frozen encoders."""
    folder, tokenizer = directory / FOLDER, restored.config.encoders.get("tokenizer")
    folder.mkdir()
    arrays = checkpoint.flatten(jax.tree.map(np.asarray, restored.kept))
    safetensors_io.write(folder, sorted(arrays.items()), stem=STEM)
    if tokenizer:
        shutil.copy(tokenizer, folder / Path(tokenizer).name)


def read_encoders(directory: Path) -> dict:
    """What the exported checkpoint kept of its encoders, by part; {} where the directory has none."""
    kept: dict[str, dict] = {}
    if (directory / FOLDER).is_dir():
        for name, array in Weights(directory / FOLDER, STEM).items():
            part, _, rest = name.partition(".")
            kept.setdefault(part, {})[rest] = array
    return kept


def open_export(directory: str | Path, device: str = "cpu") -> Exported:
    """Raises WeightsError where something is missing; weights are read when a policy is made."""
    directory = Path(directory)
    inside = lerobot.inside(directory)
    provenance, statistics = read_provenance(inside), read_statistics(inside)
    if not (inside / FOLDER).is_dir():
        raise WeightsError(f"{inside / FOLDER}: missing, as in exports of earlier versions; export the run again")
    config = restored_config(provenance["config"], f"{inside}/provenance.json: config")
    if tokenizer := config.encoders.get("tokenizer"):
        config.encoders.tokenizer = str(inside / FOLDER / Path(tokenizer).name)
    experiment = Experiment(config)
    found = read_encoders(inside)
    kept = {part: found.get(part, {}) for part in experiment.inputs.encoders}
    frozen = jax.tree.map(jnp.asarray, experiment.load_encoders(kept))
    return Exported(experiment, provenance["step"], statistics, frozen, directory, device)


def read_provenance(directory: Path) -> dict:
    """What an export says that it is. Raises WeightsError where it does not."""
    return read_json(directory / "provenance.json", _PROVENANCE, _NO_EXPORT)


def read_statistics(directory: Path) -> dict:
    """The normalisation that an export was trained with. Raises WeightsError where it does not say."""
    return read_json(directory / "statistics.json", STATISTICS, _NO_EXPORT)
