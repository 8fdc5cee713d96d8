"""Writes recordings of any simulator: episodes as an RLDS dataset (TFDS, array_record), pictures as PNG and mp4.

A recording is written into a temporary directory that is renamed when it is whole. DIR/recipe.json says what it was
made of, and the same recipe is not recorded twice (extras: sim, data).
"""

import concurrent.futures
import io
import json
import multiprocessing
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from world_model import kinds

RECIPE = "recipe.json"
# A key frame every ten frames, so that a window is a short seek away. Constant quantiser: the look-ahead of constant
# quality (mbtree) makes another file of the same frames now and then.
_X264 = {"qp": "12", "g": "10", "threads": "1"}

Progress = Callable[[str, int, int, int], None]  # (what, done, of, steps so far)


class Recording(NamedTuple):
    """One episode. Step t holds what is seen, and the action that is applied to it."""

    images: np.ndarray  # uint8 [steps, size, size, 3]
    states: np.ndarray  # float32 [steps, state dims], robot units
    actions: np.ndarray  # float32 [steps, action dims], robot units
    rewards: np.ndarray  # float32 [steps], after the step
    instruction: str
    solved: bool  # whether the task is done at the end


def write_once(out: Path, recipe: dict, parts: tuple[str, ...], make: Callable[[Path], None]) -> bool:
    """Lets `make` fill a directory with `parts`, which becomes `out`. False where `out` holds the same recipe already.

    A recording of another recipe is replaced. Raises FileExistsError where `out` holds anything else.
    """
    if (out / RECIPE).is_file() and kinds.read(out / RECIPE, kinds.anything) == recipe:
        return False
    if foreign := sorted({p.name for p in out.glob("*")} - {*parts, RECIPE}):
        raise FileExistsError(f"{out} holds {foreign[0]!r}, which is no such recording: choose another directory")
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(8)}")
    partial.mkdir(parents=True)
    try:
        make(partial)
        (partial / RECIPE).write_text(json.dumps(recipe) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return True


def parallel(make: Callable, jobs: list[tuple], workers: int, what: str, progress: Progress,
             own_process: bool = False) -> Iterator:
    """Yields the results of (steps, result) = make(*job) in the order of the jobs, however many processes work.

    own_process: a single worker is a process of its own too.
    """
    # Spawned, not forked: the caller may hold the threads of TensorFlow and JAX.
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn) if own_process or workers > 1 else None
    try:
        total = 0
        for done, (steps, result) in enumerate((pool.map if pool else map)(make, *zip(*jobs))):
            yield result
            total += steps
            progress(what, done + 1, len(jobs), total)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def rlds_steps(recording: Recording) -> list[dict]:
    """The RLDS steps of a recording, with pictures as PNG."""
    last = len(recording.images) - 1
    return [{"observation": {"image": png(image), "state": state}, "action": action, "reward": reward,
             "discount": float(not (recording.solved and t == last)),
             "is_first": t == 0, "is_last": t == last, "is_terminal": recording.solved and t == last,
             "language_instruction": recording.instruction}
            for t, (image, state, action, reward) in enumerate(zip(*recording[:4], strict=True))]


def write_rlds(out: Path, name: str, image_size: int, dims: tuple[int, int], episodes: Iterable[list[dict]]) -> None:
    """Writes a TFDS dataset directory with split "train" from the steps of each episode; dims: the numbers in a state
    and in an action."""
    import tensorflow_datasets as tfds

    write_tfds(out, name, {"steps": tfds.features.Dataset({
        "observation": {
            "image": tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="png"),
            "state": tfds.features.Tensor(shape=dims[:1], dtype=np.float32)},
        "action": tfds.features.Tensor(shape=dims[1:], dtype=np.float32),
        "reward": np.float32, "discount": np.float32,
        "is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_,
        "language_instruction": tfds.features.Text()})}, ({"steps": steps} for steps in episodes))


def write_tfds(out: Path, name: str, features: dict, episodes: Iterable[dict]) -> None:
    """Writes a TFDS dataset directory with split "train" in array_record files. features: what TFDS calls an episode's;
    episodes: values of them."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # It would look in a bucket for a dataset of this name, and leave an empty folder behind in the system's temporary.
    with mock.patch.object(tfds.core.DatasetInfo, "initialize_from_bucket"):
        written = tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", features=tfds.features.FeaturesDict(features), file_format="array_record",
            disable_shuffling=True, split_datasets={"train": enumerate(episodes)}, data_dir=out.with_name("tfds"))
    shutil.move(written.data_dir, out)  # TFDS nests name and version; the reader wants the dataset itself
    shutil.rmtree(out.with_name("tfds"))


def png(image: np.ndarray) -> bytes:
    """Encodes a picture uint8 [H, W, 3] as PNG."""
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def jpeg(image: np.ndarray) -> bytes:
    """Encodes a picture uint8 [H, W, 3] as JPEG."""
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def mp4(images: np.ndarray, rate: float) -> bytes:
    """Encodes frames uint8 [steps, H, W, 3] as H.264 in an mp4 container, `rate` frames per second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=int(rate), options=_X264)
        (stream.height, stream.width), stream.pix_fmt = images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
