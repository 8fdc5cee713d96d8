"""The weights that a run starts from (train.init_from), and what belongs to them: frozen encoders, normalisation, base.

Weights mean something only behind the encoders that they were trained with. Those come along, or the start is refused.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from world_model.differences import differences, first_difference
from world_model.layers.lora import ADAPTER
from world_model.training import checkpoint, checkpoint_reader
from world_model.training.checkpoint import CheckpointError

PRECOMPUTED = "_latents"  # suffix of a codec that stands for stored latents of the one without
ANONYMOUS = ("features", "none")  # encoders that do not say whose features the batch holds


@dataclasses.dataclass(frozen=True)
class Initial:
    """The newest checkpoint of the workdir train.init_from."""

    directory: Path  # its folder of checkpoints
    step: int
    meta: dict
    averaged: bool  # whether parameters are taken from the average, where it has them
    base: dict | None  # {format, base_hash} of the published weights that are under them; None where others are

    @classmethod
    def from_config(cls, config) -> "Initial | None":
        """The weights of train.init_from; None without it. Raises CheckpointError where there is no checkpoint."""
        if not config.train.init_from:
            return None
        directory = workdir(config) / "checkpoints"
        step = checkpoint.locate(directory)
        meta = checkpoint.read_json(directory, step, "meta")
        averaged = any(name.startswith("ema.") for name in meta["arrays"])
        adapters = (keys.get("lora_rank", 0) for keys in (config.model, meta["config"]["model"]))
        on_trained = step > 0 and tuple(map(bool, adapters)) == (True, False)  # adapters go on what was trained there
        return cls(directory, step, meta, averaged and config.train.init_weights == "average",
                   None if on_trained else meta.get("base"))

    def params(self, target: dict) -> dict:
        """The parameters, each read into its place and dtype in `target`, {name: abstract array}; without the adapters
        where the checkpoint has none. Raises CheckpointError naming the first that is missing or of another shape."""
        components = ("params", "ema") if self.averaged else ("params",)
        found = checkpoint_reader.stored_arrays(self.directory, self.step, components)
        wanted = {name: p for name, p in target.items() if name in found or not ADAPTER.search(name)}
        there, here = ({name: list(p.shape) for name, p in arrays.items()} for arrays in (found, wanted))
        if problem := first_difference(there, here, path="params"):
            raise CheckpointError(f"checkpoint {self.directory / str(self.step)} does not fit: {problem}")
        # One by one: a device has room for those that it holds in bfloat16, not for all of them in float32.
        return {name: found[name].placed(p.sharding).astype(p.dtype) for name, p in wanted.items()}

    def teacher(self, config) -> str:
        """The hash of these weights, by which a student names them. Raises CheckpointError where they are of another
        family, without hashes, or not those that distill.teacher names."""
        where = f"train.init_from = {config.train.init_from}"
        if self.meta["family"] != config.model.family:
            raise CheckpointError(f"{where} is of family {self.meta['family']!r}, and the student of "
                                  f"{config.model.family!r}: a student is its teacher's network, trained on")
        found = checkpoint.weights_hash(self.meta, self.averaged)
        if not found:
            raise CheckpointError(f"{where} holds no hashes (checkpoint.hashes = False): its student could not say "
                                  "whose it is")
        if config.distill.teacher not in ("", found):
            raise CheckpointError(f"{where} is another teacher than before: its weights of step {self.step} have the "
                                  f"hash {found}, distill.teacher is {config.distill.teacher}")
        return found

    def encoders(self, config) -> dict:
        """What the checkpoint keeps of its encoders, by part. Raises CheckpointError where the config's are others."""
        check_encoders(self.meta["config"], config.to_dict(), f"train.init_from = {config.train.init_from}")
        return checkpoint_reader.read_frozen(self.directory, self.step)

    def describe(self, statistics: dict) -> str:
        """What is started from, for people, and where this run's normalisation differs from the weights'."""
        kind = "average" if self.averaged else "raw"
        first = f"starts from the {kind} weights of {self.directory}, step {self.step}, with their encoders"
        if not self.meta["statistics"]:
            return first + "; they do not say what normalisation they were trained with"
        sides = ("train.init_from", "this run")
        found = list(differences(self.meta["statistics"], statistics, sides))
        return "\n".join([f"{first}; {len(found)} differences in normalisation", *(f"  {each}" for each in found)])


def workdir(config) -> Path:
    """The folder that train.init_from names; {seed} in it is the run's seed, where each starts from weights of its
    own."""
    return Path(config.train.init_from.replace("{seed}", str(config.seed)))


def with_teacher(config):
    """The config of a student, which names its teacher by hash; any other as it is, and one whose teacher is not there:
    a run that has begun does without. Raises CheckpointError as `Initial.teacher`."""
    if "distill" not in config or not (workdir(config) / "checkpoints").is_dir():
        return config
    initial = Initial.from_config(config)
    config = config.copy_and_resolve_references()
    config.distill.teacher = initial.teacher(config)
    return config


def check_encoders(saved: dict, now: dict, where: str) -> None:
    """Raises CheckpointError where two configs, as plain dicts, do not name the same encoders."""
    for part in ("video", "text", "image"):
        trained, wanted = (config.get("encoders", {}).get(part) for config in (saved, now))
        names = {str(name).removesuffix(PRECOMPUTED) for name in (trained, wanted)}
        if trained and wanted and len(names) > 1 and not names & set(ANONYMOUS):
            raise CheckpointError(f"{where}: its weights were trained with encoders.{part} = {trained!r}, and this "
                                  f"config has {wanted!r}")


def kept_encoders(experiment, make: dict[str, Callable[[], dict]]) -> dict:
    """What a run keeps of its encoders: what the weights that it starts from bring, else what `make` makes by part.

    Raises CheckpointError where the weights bring none of an encoder that would be fitted anew.
    """
    initial = Initial.from_config(experiment.config)
    brought = initial.encoders(experiment.config) if initial else {}
    kept = {part: brought.get(part) or fresh() for part, fresh in make.items()}
    for part, arrays in kept.items():
        if initial and not brought.get(part) and arrays.keys() - {"sha256"}:
            raise CheckpointError(
                f"train.init_from = {experiment.config.train.init_from} brings no {part} encoder, and this run's would "
                "be fitted anew: the weights were trained with another. Import the export again, if it is one of ours; "
                f"else let encoders.{part} name the encoder that they know")
    return kept
