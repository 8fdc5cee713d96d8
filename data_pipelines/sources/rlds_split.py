"""What the metadata of a TFDS dataset say of one split."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.episode import BadEpisode
from data_pipelines.sources.examples import check_classes
from data_pipelines.storage import files

STEPS = "steps/"  # before the names of a step's fields
_LOST = 2**20  # records of a shard that may be missing from it, each to be reported


class Split(NamedTuple):
    """One split."""

    shards: list[str]  # names of its files
    kind: str  # the files' format: array_record or tfrecord
    fields: dict[str, tuple]  # field of an episode -> its shape and type
    info: Any  # as tensorflow_datasets has it

    def plainest(self) -> str:
        """The field of a step that takes least to read, without its prefix."""
        steps = {name: shape for name, (shape, _) in self.fields.items() if name.startswith(STEPS)}
        if not steps:
            raise BadEpisode("an episode has no steps")
        return min(steps, key=lambda name: (len(steps[name]), name)).removeprefix(STEPS)


def open_split(path: str, split: str) -> Split:
    """Reads the metadata. Raises BadEpisode where there is no such split, ValueError where they make no sense."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import flatten_nest_dict

    with _local_metadata(path) as folder:
        if (described := Path(folder) / "features.json").exists():
            check_classes(described.read_bytes(), f"{path}/features.json")
        try:
            builder = tfds.builder_from_directory(folder)
            layout = builder.info.features.get_serialized_info()
            shards = {split: sorted(info.filenames) for split, info in builder.info.splits.items()}
        except Exception as error:  # TFDS raises many kinds
            raise ValueError(f"{path}: features.json or dataset_info.json makes no sense to "
                             f"tensorflow_datasets: {str(error)[:300] or error!r}") from error
        if split not in builder.info.splits:
            raise BadEpisode(f"{path}: no split {split!r}; there are {sorted(builder.info.splits)}")
        info, kind, names = builder.info.splits[split], builder.info.file_format.value, shards[split]
    fields = {name: (spec.shape, spec.np_dtype) for name, spec in flatten_nest_dict(layout).items()}
    _check_lengths(path, names, info.shard_lengths)
    return Split(names, kind, fields, info)


def _check_lengths(path: str, names: Sequence[str], lengths: Sequence[int]) -> None:
    """Raises ValueError where a shard is said to hold more records than it has bytes, and more than a torn one
    may have lost."""
    sizes = files.sizes(path)
    for name, length in zip(names, lengths):
        if not 0 <= length <= max(sizes.get(name, 0), _LOST):
            raise ValueError(f"{path}/dataset_info.json: {name} cannot hold {length} records")


def _local_metadata(path: str):
    """A context with a folder of the files that describe the dataset; for an address it is a copy of them."""
    if not files.is_remote(path):
        return contextlib.nullcontext(path)
    folder = tempfile.TemporaryDirectory()
    for file in files.list_files(path):
        name = file.rsplit("/", 1)[1]
        if "-of-" not in name:  # shards have it in their names
            (Path(folder.name) / name).write_bytes(files.read_bytes(file))
    return folder
