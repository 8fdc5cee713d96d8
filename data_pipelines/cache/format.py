"""How a latent cache lies on disk, and what makes it another cache.

    manifest.json            identity: what the numbers depend on; a run that would make others is refused
    encoders.safetensors     the encoders' arrays, as PART.NAME
    statistics.json          the statistics that state and actions are normalised by
    texts.array_record       features of every distinct prompt, bfloat16 [its tokens, width]
    NAME/index.safetensors   lengths and rates of all episodes of a dataset, where windows may begin in them, and the
                             prompts of each training episode
    NAME/shard-I.array_record   window i is record i % W of shard i // W; empty where the window was unreadable
    NAME/shard-I.json        the shard's size, hash and unreadable windows; written last
    _SUCCESS                 everything is there: the content of all shard-I.json, sizes and hashes of the other files
"""

import copy
import hashlib
import math
import re
from collections.abc import Iterable

import numpy as np

from data_pipelines.dataset import ORIGIN
from data_pipelines.robots.embodiments import name_in_files, renamed
from data_pipelines.storage import files
from world_model import kinds

FORMAT = 2  # how the files are laid out
CONTENTS = 1  # what the stored numbers mean: raised by hand when the code makes other ones of the same recordings
_CONTENTS_OF_CODE = {"8ebc1564bd8ff3cb": 1}  # manifests written before 2026-11-28 hold a hash of source files instead
_LIMITS = re.compile(r""", low=[^,)]*, high=[^,)]*, max_speed=[^,)]*, moves=(None|'[^']*'|"[^"]*")""")  # a Dimension's
TEXTS = "texts.array_record"
ABOUT = kinds.fields({"records": kinds.whole(), "bytes": kinds.whole(high=2**63), "sha256": kinds.text},
                     required=("bytes", "sha256"))  # what is known of a file
ABOUT_SHARD = kinds.fields({"records": kinds.whole(), "bytes": kinds.whole(high=2**63), "sha256": kinds.text,
                            "bad": kinds.map_of(kinds.text)}, required=("records", "bytes", "sha256", "bad"))
_DATASET = kinds.fields({"embodiment": kinds.text, "robot": kinds.text}, required=("embodiment", "robot"))
MANIFEST = kinds.fields({"identity": kinds.fields(
    {"code": kinds.either(kinds.whole(), kinds.text), "datasets": kinds.map_of(_DATASET)}), "encoders": kinds.text,
    "windows_per_shard": kinds.whole(1), "windows": kinds.map_of(kinds.whole())},
    required=("identity", "windows_per_shard"))
SUCCESS = kinds.fields({"format": kinds.whole(), "files": kinds.map_of(ABOUT),
                         "shards": kinds.map_of(kinds.map_of(ABOUT_SHARD))}, required=("files", "shards"))
_INDEX = {"lengths": ("i", 1), "rates": ("f", 1), "kept": ("i", 2), "text": ("i", 1)}  # name -> kind of number, axes
_ORDER = ("latents", "first_latents", "image_features", "frame_mask", "state", "actions", "action_mask")


class CacheError(OSError):
    """A latent cache that is unfinished, damaged, or another run's."""


def record_fields(spec: dict[str, tuple]) -> dict[str, tuple]:
    """name -> (shape, dtype) of what a record holds, in its order: the fields of `spec` but the text's features, which
    stand once for each prompt, and those that say where a row comes from. Fields without a place in _ORDER follow."""
    order = dict.fromkeys((*_ORDER, *spec))
    return {name: spec[name] for name in order if name in spec and name not in ("text_features", *ORIGIN)}


def record_bytes(spec: dict[str, tuple]) -> int:
    """The size of a record in bytes."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in record_fields(spec).values())


def parse_manifest(data: bytes, where: str) -> dict:
    """manifest.json with a `comparable` identity."""
    manifest = kinds.parse(data, MANIFEST, where)
    return manifest | {"identity": comparable(manifest["identity"])}


def comparable(identity: dict) -> dict:
    """The identity as all versions of this code would have written it: a number for a hash of source files, robots by
    their oldest names and without what they may be sent, which changes nothing that is stored."""
    found = copy.deepcopy(identity)
    if found.get("code") in _CONTENTS_OF_CODE:
        found["code"] = _CONTENTS_OF_CODE[found["code"]]
    for dataset in found.get("datasets", {}).values():
        dataset["embodiment"] = name_in_files(dataset["embodiment"])
        for old, new in renamed().items():
            dataset["robot"] = dataset["robot"].replace(f"(name={new!r},", f"(name={old!r},")
        dataset["robot"] = _LIMITS.sub("", dataset["robot"])
    return found


def checked_index(index: dict[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Returns the index. Raises ValueError where an array is missing, of another kind, or holds what cannot be."""
    for name, (kind, axes) in _INDEX.items():
        if name not in index or index[name].dtype.kind != kind or index[name].ndim != axes:
            found = f"{index[name].dtype} {index[name].shape}" if name in index else "none"
            raise ValueError(f"{file}: {name}: expected numbers of kind {kind!r} on {axes} axes, found {found}")
    if not (index["lengths"] >= 0).all() or not np.isfinite(index["rates"]).all() or not (index["rates"] > 0).all():
        raise ValueError(f"{file}: lengths below 0, or rates that are not above 0")
    return index


def shard_file(path: str, dataset: str, shard: int, suffix: str) -> str:
    """The path of a shard's file: PATH/NAME/shard-00003SUFFIX."""
    return f"{path}/{dataset}/shard-{shard:05d}{suffix}"


def index_name(dataset: str) -> str:
    """The name of a dataset's index in the cache: NAME/index.safetensors."""
    return f"{dataset}/index.safetensors"


def load_encoders(path: str, parts: Iterable[str]) -> dict:
    """Reads the encoders' arrays of a cache, {part: {name: array}}, as a checkpoint keeps them. parts: of the run's
    encoders; one without arrays is not in the file."""
    found: dict[str, dict] = {part: {} for part in parts}
    file = f"{path}/encoders.safetensors"
    for name, value in files.parse_tensors(files.read_bytes(file), file).items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = value
    return found


def arrays_hash(arrays: dict[str, np.ndarray]) -> str:
    """A hash of the arrays' names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()[:16]
