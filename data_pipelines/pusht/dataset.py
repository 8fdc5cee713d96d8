"""Writes simulated episodes as an RLDS dataset (TFDS, array_record) and as action-free mp4 clips.

Everything goes into a temporary directory that is renamed when whole; DIR/recipe.json tells what it was made of,
and the same recipe is not recorded twice.
"""

import concurrent.futures
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.pusht.recording import Recording, random_palette, record
from data_pipelines.pusht.simulator import RATE, Palette

EPISODES_DIR, CLIPS_DIR, RECIPE = "pusht_rlds", "pusht_clips", "recipe.json"
_FORMAT = 3  # raise it when recordings of the same recipe change
# A key frame every ten frames, so that a window is a short seek away. Constant quantiser: the look-ahead of constant
# quality (mbtree) makes another file of the same frames now and then.
_X264 = {"qp": "12", "g": "10", "threads": "1"}
_EPISODE_SEED, _CLIP_SEED = 0, 1  # clips come from other seeds than episodes

Progress = Callable[[str, int, int, int], None]  # (what, done, of, steps so far)


def write(out: Path, *, episodes: int, clips: int, seed: int, image_size: int, workers: int = 2,
          progress: Progress = lambda *_: None) -> bool:
    """Makes OUT/pusht_rlds and OUT/pusht_clips. False where OUT holds the same recipe already.

    A recording of another recipe is replaced. Raises FileExistsError where OUT holds anything else, ValueError where
    image_size is odd (H.264 halves the colours).
    """
    if image_size % 2:
        raise ValueError(f"image_size = {image_size}: video files need an even number of pixels")
    recipe = {"format": _FORMAT, "episodes": episodes, "clips": clips, "seed": seed, "image_size": image_size}
    if (out / RECIPE).is_file() and json.loads((out / RECIPE).read_text()) == recipe:
        return False
    if foreign := sorted({p.name for p in out.glob("*")} - {EPISODES_DIR, CLIPS_DIR, RECIPE}):
        raise FileExistsError(f"{out} holds {foreign[0]!r}, which is no PushT recording: choose another directory")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    jobs = [((seed, _EPISODE_SEED, i), image_size) for i in range(episodes)]
    write_rlds(partial / EPISODES_DIR, image_size, _map(episode_steps, jobs, workers, "episodes", progress))
    jobs = [((seed, _CLIP_SEED, i), image_size) for i in range(clips)]
    _write_clips(partial / CLIPS_DIR, _map(_clip, jobs, workers, "clips", progress))
    (partial / RECIPE).write_text(json.dumps(recipe) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return True


def _map(make: Callable, jobs: list[tuple], workers: int, what: str, progress: Progress) -> Iterator:
    """Results of (steps, result) = make(seed, image_size) in the order of the jobs, however many processes work."""
    # Spawned, not forked: the caller may hold the threads of TensorFlow and JAX.
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn) if workers > 1 else None
    try:
        total = 0
        for done, (steps, result) in enumerate((pool.map if pool else map)(make, *zip(*jobs))):
            yield result
            total += steps
            progress(what, done + 1, len(jobs), total)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def episode_steps(seed: tuple[int, ...], image_size: int) -> tuple[int, list[dict]]:
    """(steps, RLDS steps with pictures as PNG) of one episode."""
    recording = record(seed, image_size, Palette())
    return len(recording.images), _steps(recording)


def _steps(recording: Recording) -> list[dict]:
    last = len(recording.images) - 1
    return [{"observation": {"image": _png(image), "state": state}, "action": action, "reward": reward,
             "discount": float(not (recording.solved and t == last)),
             "is_first": t == 0, "is_last": t == last, "is_terminal": recording.solved and t == last,
             "language_instruction": recording.instruction}
            for t, (image, state, action, reward) in enumerate(zip(*recording[:4], strict=True))]


def _png(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def write_rlds(out: Path, image_size: int, episodes: Iterable[list[dict]]) -> None:
    """A TFDS dataset directory with split "train", from the steps of each episode."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({
        "observation": {
            "image": tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="png"),
            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
        "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "reward": np.float32, "discount": np.float32,
        "is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_,
        "language_instruction": tfds.features.Text()})})
    written = tfds.dataset_builders.store_as_tfds_dataset(
        name="pusht", version="1.0.0", features=features, file_format="array_record", disable_shuffling=True,
        split_datasets={"train": ((i, {"steps": steps}) for i, steps in enumerate(episodes))},
        data_dir=out.with_name("tfds"))
    shutil.move(written.data_dir, out)  # TFDS nests name and version; the reader wants the dataset itself
    shutil.rmtree(out.with_name("tfds"))


def _clip(seed: tuple[int, ...], image_size: int) -> tuple[int, tuple[bytes, str]]:
    """(frames, (mp4, caption)) of one clip."""
    palette, caption = random_palette(np.random.default_rng((*seed, 0)))
    images = record(seed, image_size, palette).images
    return len(images), (mp4(images), caption)


def mp4(images: np.ndarray) -> bytes:
    """uint8 [steps, H, W, 3] as H.264 in an mp4 container, at the simulator's rate."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=int(RATE), options=_X264)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _write_clips(out: Path, clips: Iterable[tuple[bytes, str]]) -> None:
    out.mkdir()
    captions = []
    for i, (mp4, caption) in enumerate(clips):
        (out / f"clip_{i:04d}.mp4").write_bytes(mp4)
        captions.append(json.dumps({"file": f"clip_{i:04d}.mp4", "caption": caption}))
    (out / "captions.jsonl").write_text("".join(line + "\n" for line in captions))
