"""Writes miniatures as TFDS, LeRobot (lerobot.py) or plain videos lay files out."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.simulators.miniatures.fields import Field, Numbers, Picture, Text, columns
from data_pipelines.simulators.miniatures.lerobot import write_lerobot
from data_pipelines.simulators.miniatures.sets import MINIATURES, Miniature
from data_pipelines.simulators.recorder import jpeg, mp4, write_once, write_tfds

FORMAT = 1  # raised by hand when a miniature's contents change


def write(out: Path, sets: Mapping[str, Miniature] = MINIATURES) -> bool:
    """Writes OUT/NAME of each set, and OUT/NAME_keep.json where it has ranges to keep. False where OUT holds the same
    already; others are replaced. Raises FileExistsError where OUT holds anything else."""
    recipe = {"format": FORMAT, "sets": {name: repr(mini) for name, mini in sets.items()}}
    parts = tuple(f"{name}{end}" for name in {*sets, *MINIATURES} for end in ("", "_keep.json"))
    return write_once(out, recipe, parts, lambda folder: _write(folder, sets))


def _write(folder: Path, sets: Mapping[str, Miniature]) -> None:
    makers = {"rlds": _rlds, "lerobot": write_lerobot, "video_files": _clips}
    for name, mini in sets.items():
        makers[mini.kind](folder / name, mini)
        if mini.keep:
            ranges = {mini.keep.format(i): [[0, mini.steps - 2]] for i in range(mini.episodes)}
            (folder / f"{name}_keep.json").write_text(json.dumps(ranges))


def _rlds(out: Path, mini: Miniature) -> None:
    import tensorflow_datasets as tfds

    def feature(field: Field | bool | int):
        if isinstance(field, Picture):
            return tfds.features.Image(shape=(field.height, field.width, 3), encoding_format="jpeg")
        if isinstance(field, Text):
            return tfds.features.Text()
        if isinstance(field, Numbers):
            return tfds.features.Tensor(shape=(field.width,), dtype=np.dtype(field.dtype))
        return np.bool_ if isinstance(field, bool) else np.int32

    flags = {name: np.bool_ for name in ("is_first", "is_last", "is_terminal")}
    steps = _nested({field: feature(each) for field, each in mini.fields.items()}) | flags | {
        "discount": np.float32, "reward": np.float32}
    about = _nested({field: feature(each) for field, each in mini.episode.items()})
    write_tfds(out, out.name, {"steps": tfds.features.Dataset(steps), **about},
               (_episode(mini, i) for i in range(mini.episodes)))


def _episode(mini: Miniature, episode: int) -> dict:
    """One episode as TFDS takes it."""
    numbers = columns(mini.fields, mini.steps, episode)
    pictures = {name: [jpeg(frame) for frame in field.frames(name, mini.steps, episode)]
                for name, field in mini.fields.items() if isinstance(field, Picture)}
    texts = {name: field.text for name, field in mini.fields.items() if isinstance(field, Text)}
    steps = [_nested({name: values[t] for name, values in (numbers | pictures).items()} | texts) | {
        "is_first": t == 0, "is_last": t == mini.steps - 1, "is_terminal": False, "discount": 1.0,
        "reward": float(t == mini.steps - 1)} for t in range(mini.steps)]
    about = {name: field.text.format(episode) if isinstance(field, Text) else field
             for name, field in mini.episode.items()}
    return {"steps": steps, **_nested(about)}


def _nested(flat: dict) -> dict:
    """{"a/b": value} as {"a": {"b": value}}."""
    found: dict = {}
    for name, value in flat.items():
        *levels, last = name.split("/")
        inner = found
        for level in levels:
            inner = inner.setdefault(level, {})
        inner[last] = value
    return found


def _clips(out: Path, mini: Miniature) -> None:
    out.mkdir()
    (camera,) = (field for field in mini.fields.values() if isinstance(field, Picture))
    for i in range(mini.episodes):
        frames = camera.frames("image", mini.steps, i)
        (out / f"clip_{i}.mp4").write_bytes(mp4(frames, mini.rate))
    captions = [{"file": f"clip_{i}.mp4", "caption": Text().text} for i in range(mini.episodes)]
    (out / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
