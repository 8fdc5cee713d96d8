"""Writes simulated episodes as an RLDS dataset (TFDS, array_record) and as action-free mp4 clips.

Everything goes into a temporary directory that is renamed when whole; DIR/recipe.json tells what it was made of,
and the same recipe is not recorded twice.
"""

import concurrent.futures
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.pusht.recording import Recording, random_palette, record
from data_pipelines.pusht.simulator import RATE, Palette

EPISODES_DIR, CLIPS_DIR, RECIPE = "pusht_rlds", "pusht_clips", "recipe.json"
_FORMAT = 1  # raise it when recordings of the same recipe change
_CLIP_SEED = 1  # clips come from other seeds than episodes (0)

Progress = Callable[[str, int, int], None]  # (what, done, of)


def write(out: Path, *, episodes: int, clips: int, seed: int, image_size: int, workers: int = 2,
          progress: Progress = lambda *_: None) -> bool:
    """Makes OUT/pusht_rlds and OUT/pusht_clips. False where OUT holds the same recipe already."""
    recipe = {"format": _FORMAT, "episodes": episodes, "clips": clips, "seed": seed, "image_size": image_size}
    if (out / RECIPE).is_file() and json.loads((out / RECIPE).read_text()) == recipe:
        return False
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    seeds = [(seed, 0, i) for i in range(episodes)]
    _write_rlds(partial / EPISODES_DIR, image_size, _record_all(seeds, image_size, workers, "episodes", progress))
    seeds = [(seed, _CLIP_SEED, i) for i in range(clips)]
    _write_clips(partial / CLIPS_DIR, _record_all(seeds, image_size, workers, "clips", progress))
    (partial / RECIPE).write_text(json.dumps(recipe) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return True


def _record_all(seeds, image_size: int, workers: int, what: str, progress: Progress) -> Iterator[Recording]:
    """Recordings in the order of their seeds, however many processes make them."""
    jobs = [(seed, image_size) for seed in seeds]
    if workers < 2:
        for done, job in enumerate(jobs):
            yield _record_one(job)
            progress(what, done + 1, len(jobs))
        return
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        for done, recording in enumerate(pool.map(_record_one, jobs)):
            yield recording
            progress(what, done + 1, len(jobs))


def _record_one(job: tuple) -> Recording:
    seed, image_size = job
    clip = seed[1] == _CLIP_SEED
    return record(seed, image_size, random_palette(np.random.default_rng((*seed, 0))) if clip else Palette())


def _write_rlds(out: Path, image_size: int, recordings: Iterator[Recording]) -> None:
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
        split_datasets={"train": ((i, {"steps": _steps(r)}) for i, r in enumerate(recordings))},
        data_dir=out.with_name("tfds"))
    shutil.move(written.data_dir, out)  # TFDS nests name and version; the reader wants the dataset itself
    shutil.rmtree(out.with_name("tfds"))


def _steps(recording: Recording) -> list[dict]:
    last = len(recording.images) - 1
    return [{"observation": {"image": image, "state": state}, "action": action, "reward": reward, "discount": 1.0,
             "is_first": t == 0, "is_last": t == last, "is_terminal": False,
             "language_instruction": recording.instruction}
            for t, (image, state, action, reward) in enumerate(zip(*recording[:4], strict=True))]


def _write_clips(out: Path, recordings: Iterator[Recording]) -> None:
    out.mkdir()
    captions = []
    for i, recording in enumerate(recordings):
        _write_mp4(out / f"clip_{i:04d}.mp4", recording.images)
        captions.append(json.dumps({"file": f"clip_{i:04d}.mp4", "caption": "a disc pushes a T shaped block"}))
    (out / "captions.jsonl").write_text("".join(line + "\n" for line in captions))


def _write_mp4(file: Path, images: np.ndarray) -> None:
    """H.264, one key frame every ten frames, so that a window is a short seek away."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=int(RATE), options={"crf": "12", "g": "10", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
