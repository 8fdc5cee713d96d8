"""The latent cache: the same stream and the same training as from video; what is unfinished or does not fit is named.

The model sees image features too, of a small CLIP with random weights.
"""

import functools
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.cache.format import CacheError
from data_pipelines.episode import BadEpisode
from data_pipelines.robots.embodiment import Embodiment
from launch import precompute, precompute_beam, train
from launch.setup import cache
from launch.setup.experiment import Experiment
from tests import lerobot_config
from tests.lerobot_files import change_column, table_of
from world_model import encoders
from world_model.batch import check_batch
from world_model.encoders import names as encoder_names
from world_model.encoders.clip_vit import ClipImage, ClipSpec
from world_model.training import checkpoint_reader

CLIP = ClipSpec(size=28, patch=14, dim=32, heads=2, layers=2)

IDS = ("dataset_id", "episode_index", "start", "sample_index", "embodiment_id", "frame_mask", "state", "actions",
       "action_mask")


def start(config, out: Path, worker: int = 0, workers: int = 1) -> precompute.Precompute:
    """Eight windows a shard."""
    return precompute.Precompute(config, str(out), shard_bytes=8 * 14_000, batch=4, worker=worker, workers=workers)


def silent(line: str) -> None:
    """For `run`."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file, rng, tables = tmp_path_factory.mktemp("clip") / "clip.safetensors", np.random.default_rng(0), encoder_names.clip(2)
    ours = {name: 0.3 * rng.normal(size=x.shape).astype(np.float32) for name, x in ClipImage(CLIP).shapes().items()}
    save_file(dict(encoder_names.to_published(tables["wan"], ours)), file)
    config = lerobot_config.get_config()
    config.encoders.update(image="clip", image_weights=str(file), dtype="float32")
    config.model.update(image_dim=CLIP.dim, image_tokens=CLIP.tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "ClipImage", functools.partial(ClipImage, CLIP))
        yield config


@pytest.fixture(scope="module")
def out(config, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("cache") / "latents", []
    job = start(config, folder)
    assert "98 windows of 14 KiB" in job.estimate() and "98 windows are still to be made" in job.estimate()
    assert job.run(lines.append) and len(lines) == 4 + 9
    return folder


@pytest.fixture
def copied(out, tmp_path):
    shutil.copytree(out, tmp_path / "copied")
    return tmp_path / "copied"


def with_cache(config, folder, **changes):
    config = config.copy_and_resolve_references()
    config.data.cache = str(folder)
    config.update_from_flattened_dict(changes)
    return config


def open_cache(config):
    return cache.open_cache(Experiment(config))


def encoders_in(config) -> dict:
    """What the cache keeps of its encoders."""
    experiment = Experiment(config)
    return cache.open_cache(experiment).encoders(experiment.inputs.encoders)


def take(config, workdir, steps: int = 6) -> list[dict]:
    with Experiment(config).data().loader() as loader:
        return [next(loader) for _ in range(steps)]


def test_batches_are_the_encoded_ones_of_the_video_pipeline(config, out, tmp_path):
    video, cached = take(config, tmp_path), take(with_cache(config, out), tmp_path)
    experiment = Experiment(config)
    codec, text, image = (experiment.encoders[part] for part in ("video", "text", "image"))
    spec, frozen = experiment.inputs.stored_fields(), encoders_in(with_cache(config, out))
    pictures = experiment.load_encoders(frozen)["image"]
    for a, b in zip(video, cached):
        check_batch(b, spec, 8)
        for name in IDS:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        pixels = jnp.asarray(a["video"], jnp.float32) / 127.5 - 1
        for name, expected in (("latents", codec.encode(frozen["video"], pixels)),
                               ("first_latents", codec.encode_first(frozen["video"], pixels[:, :1], 9)),
                               ("image_features", image.encode(pictures, pixels[:, 0])),
                               ("text_features", text.encode(frozen["text"], a["text_ids"], a["text_length"]))):
            np.testing.assert_allclose(b[name].astype(np.float32), expected, rtol=2**-8, atol=1e-3, err_msg=name)


def test_worker_processes_read_the_same(config, out, tmp_path):
    alone, others = (take(with_cache(config, out, **{"data.workers": n}), tmp_path, 3) for n in (0, 1))
    for a, b in zip(alone, others):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_the_loss_from_the_cache_equals_that_from_video(config, out, tmp_path):
    cached = with_cache(config, out)
    experiment = Experiment(config)
    params, arrays = experiment.model.init_params(jax.random.key(0)), experiment.training_arrays(encoders_in(cached))

    def loss(params, batch):
        return experiment.loss_fn(params, batch, jax.random.key(1), experiment.loss.count(batch), arrays)[0]

    value = jax.jit(jax.value_and_grad(loss))
    for a, b in zip(take(config, tmp_path, 2), take(cached, tmp_path, 2)):
        (expected, gradient), (found, other) = value(params, a), value(params, b)
        np.testing.assert_allclose(found, expected, rtol=2e-3)  # bfloat16 keeps 4e-3 of each latent
        def whole(tree):
            return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])
        apart = np.linalg.norm(whole(other) - whole(gradient)) / np.linalg.norm(whole(gradient))
        assert apart < 0.02


def test_a_run_on_video_goes_on_from_the_cache(config, out, tmp_path):
    with Experiment(config).data().loader() as video:
        next(video)
        saved = json.loads(json.dumps(video.state()))
    with Experiment(with_cache(config, out)).data().loader(start_step=1) as cached:
        cached.check_resume(saved)


def test_the_training_command_reads_the_cache(config, out, tmp_path):
    cached = with_cache(config, out, **{"train.steps": 2, "data.datasets.discs.path": "gone"})
    train.train(Experiment(cached), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and np.isfinite(lines[-1]["loss"])
    stored = encoders_in(cached)["video"]
    kept = checkpoint_reader.read_frozen(tmp_path / "run/checkpoints", 2)["video"]
    np.testing.assert_array_equal(kept["first_encoder"], stored["first_encoder"])


def test_an_interrupted_job_goes_on_with_what_is_missing(config, copied):
    before = {file: file.stat().st_mtime_ns for file in copied.rglob("shard-*.json")}
    lost = [copied / "discs/shard-00003.json", copied / "clips/shard-00000.json"]
    for file in (*lost, copied / "_SUCCESS"):
        file.unlink()
    with pytest.raises(CacheError, match="unfinished; run launch.precompute again"):
        open_cache(with_cache(config, copied))
    job = start(config, copied)
    assert "16 windows are still to be made" in job.estimate()
    assert job.run(silent)
    after = {file: file.stat().st_mtime_ns for file in copied.rglob("shard-*.json")}
    assert {file for file in before if before[file] != after[file]} == set(lost)
    assert list(open_cache(with_cache(config, copied)).verify()) == []
    assert not list(copied.rglob("*partial*"))


def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(config, small_disk):
    with pytest.raises(OSError, match=r"shard-0000\d.array_record cannot be written: .*No space left"):
        start(config, small_disk / "latents").run(silent)
    shards = list(small_disk.rglob("shard-*"))
    assert shards and {path.suffix for path in shards} == {".array_record", ".json"}
    assert len(shards) % 2 == 0 and all(path.stat().st_size for path in shards)


def test_a_worker_that_is_none_of_the_workers(config, tmp_path):
    with pytest.raises(ValueError, match="--worker=2 of --workers=2: they are counted from 0"):
        start(config, tmp_path, 2, 2)


def test_prompts_that_changed_since_an_earlier_start_are_encoded_again(config, tmp_path, monkeypatch):
    """The index numbers the prompts of today: features of yesterday's would be another's."""
    def texts(folder: str) -> bytes:
        start(config, tmp_path / folder).prepare()
        return (tmp_path / folder / "texts.array_record").read_bytes()

    before = texts("begun")
    assert texts("begun") == before
    monkeypatch.setattr(Embodiment, "format_prompt", lambda self, instruction: f"now {len(instruction)}")
    assert texts("begun") == texts("fresh") != before


def test_two_workers_make_one_cache(config, out, tmp_path):
    jobs = [start(config, tmp_path / "shared", i, 2) for i in (0, 1)]
    assert [job.run(silent) for job in jobs] == [False, True]
    assert (tmp_path / "shared/_SUCCESS").read_text() == (out / "_SUCCESS").read_text()


def test_shards_made_by_a_pipeline_are_the_same(config, out, tmp_path):
    """What Beam calls, without Beam: shards in any order, one of them twice, as it starts lost work again."""
    arguments = (config.to_json(), str(tmp_path / "beam"), 8 * 14_000, 4)
    job = precompute_beam.job_of(*arguments)
    job.prepare()
    missing = job.missing()
    made = [precompute_beam.make_shard(work, *arguments) for work in (*missing[::-1], missing[0])]
    assert job.finish() and {(about["dataset"], about["shard"]) for about in made} == set(missing)
    assert (tmp_path / "beam/_SUCCESS").read_text() == (out / "_SUCCESS").read_text()
    assert (tmp_path / "beam/manifest.json").read_text() == (out / "manifest.json").read_text()


def test_a_cache_holds_one_picture_of_each_window(config, out, tmp_path):
    with pytest.raises(CacheError, match="data.augment must be off, or data.cache empty"):
        Experiment(with_cache(config, out, **{"data.augment.hue": 0.1})).data()
    with pytest.raises(CacheError, match="crop is 1.0 in the cache, 0.9 in this run"):
        Experiment(with_cache(config, out, **{"data.crop": 0.9})).data()


def test_another_keep_file_is_another_cache(config, tmp_path):
    kept = config.copy_and_resolve_references()
    file = tmp_path / "keep.json"
    file.write_text('{"0": [[0, 9]]}')
    with kept.unlocked():
        kept.data.datasets.discs.keep = str(file)
    before = cache.identity(Experiment(kept))
    file.write_text('{"0": [[0, 8]]}')
    assert cache.identity(Experiment(kept)) != before


@pytest.mark.parametrize("changes, named", [
    ({"layout.actions_per_block": 24}, "layout.actions_per_block is 12 in the cache, 24 in this run"),
    ({"data.holdout": 0.3}, "holdout is 0.0 in the cache, 0.3 in this run"),
    ({"data.datasets.discs.embodiment": "video_only"}, "datasets.discs.embodiment is droid in the cache, video_only in this run"),
    ({"data.datasets.clips.images.image": "observation.images.wrist"}, "datasets.clips.images.image"),
    ({"encoders.video": "wan21_latents"}, "encoders.video is patch_pca in the cache, wan21_latents in this run"),
    ({"model.text_length": 16}, r"row.text_features is \[\[32, 64\], 'bfloat16'\] in the cache, \[\[16, 64\], 'bfloat16'\] in this run"),
])
def test_a_cache_of_another_config_is_refused(config, out, tmp_path, changes, named):
    with pytest.raises(CacheError, match=f"was made for another config: .*({named})"):
        Experiment(with_cache(config, out, **changes)).data()


def test_weights_and_places_may_change(config, out, tmp_path):
    changed = with_cache(config, out, **{"data.datasets.discs.weight": 1.0, "data.datasets.discs.path": "gone"})
    assert len(take(changed, tmp_path, 2)) == 2  # and the recordings need not be there


def test_other_contents_are_refused(config, out, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CONTENTS", 2)
    with pytest.raises(CacheError, match="another config: code is 1 in the cache, 2 in this run"):
        Experiment(with_cache(config, out)).data()


@pytest.mark.parametrize("code,read", [("8ebc1564bd8ff3cb", True), ("0123456789abcdef", False)])
def test_a_manifest_with_a_hash_of_source_files(config, out, tmp_path, code, read):
    """Of the code before the hash became a number, the hash of its last state is known."""
    old = tmp_path / "old"
    shutil.copytree(out, old)
    text = (old / "manifest.json").read_text().replace('"code": 1', f'"code": "{code}"')
    (old / "manifest.json").write_text(text)
    written = json.loads((old / "_SUCCESS").read_text())
    written["files"]["manifest.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (old / "_SUCCESS").write_text(json.dumps(written))
    if read:
        assert open_cache(with_cache(config, old)).manifest["identity"]["code"] == 1
        assert start(config, old).run(silent)  # and goes on
    else:
        with pytest.raises(CacheError, match=f"another config: code is {code} in the cache, 1 in this run"):
            open_cache(with_cache(config, old))


def test_a_model_that_sees_pictures_needs_their_encoder(config, tmp_path):
    blind = config.copy_and_resolve_references()
    blind.encoders.image = "none"
    with pytest.raises(ValueError, match="model.image_dim = 32, but no encoder gives image features"):
        start(blind, tmp_path / "latents")


def test_an_object_store(config, out, tmp_path, monkeypatch):
    """Written and read by address, shards through copies in TMPDIR; the same bytes, batches and checks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    address, memory = "memory://bucket/latents", fsspec.filesystem("memory")
    assert start(config, address).run(silent)
    assert memory.cat("/bucket/latents/_SUCCESS") == (out / "_SUCCESS").read_bytes()
    assert memory.cat("/bucket/latents/contact_sheet.png").startswith(b"\x89PNG")
    for a, b in zip(take(with_cache(config, out), tmp_path, 3), take(with_cache(config, address), tmp_path, 3)):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert list((tmp_path / f"wamax-copies-{os.getuid()}").glob("*shard*")) and not list(tmp_path.rglob("*partial*"))
    made = open_cache(with_cache(config, address))
    assert list(made.verify()) == []
    (tmp_path / f"wamax-copies-{os.getuid()}").rename(tmp_path / "gone")  # at once: threads of the closed loaders may still write there
    assert list(pickle.loads(pickle.dumps(made)).verify()) == []  # copies that had to go are made anew
    with pytest.raises(CacheError, match="another config: holdout"):
        open_cache(with_cache(config, address, **{"data.holdout": 0.3}))
    shard = "/bucket/latents/discs/shard-00001.array_record"
    memory.pipe(shard, memory.cat(shard)[:-1])
    with pytest.raises(CacheError, match=r"memory://bucket/latents/discs/shard-00001.array_record: \d+ bytes were written"):
        open_cache(with_cache(config, address))
    memory.rm("/bucket/latents/_SUCCESS")
    with pytest.raises(CacheError, match="memory://bucket/latents: unfinished; run launch.precompute again"):
        open_cache(with_cache(config, address))


def test_other_encoders_are_refused(config, out, tmp_path):
    frozen = encoders_in(with_cache(config, out))
    frozen["video"]["latent_mean"] = frozen["video"]["latent_mean"] + 1
    with pytest.raises(CacheError, match="a checkpoint of other encoders cannot go on from this cache"):
        Experiment(with_cache(config, out)).training_arrays(frozen)


def test_shards_that_changed_are_named(config, copied, tmp_path):
    file = copied / "discs/shard-00002.array_record"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    made = open_cache(with_cache(config, copied))
    [problem] = made.verify()
    assert str(file) in problem
    found = with_cache(config, copied, **{"data.max_bad_fraction": 1.0})
    with Experiment(found).data().loader() as loader:
        for _ in range(40):
            next(loader)
        bad = loader.state()["bad"]
    assert any("shard-00002.array_record record" in entry["reason"] for entry in bad.values())
    made.read("discs", 0, 0)
    (copied / "discs/shard-00000.array_record").write_bytes((copied / "discs/shard-00001.array_record").read_bytes())
    with pytest.raises(BadEpisode, match="shard-00000.array_record: changed under the running job"):
        made.read("discs", 0, 0)
    file.write_bytes(data[:-1])
    with pytest.raises(CacheError, match=f"{file}: {len(data)} bytes were written, found {len(data) - 1}"):
        open_cache(found)


def test_too_many_unreadable_windows_make_no_cache(config, tmp_path):
    wrist = "videos/chunk-000/observation.images.wrist/episode_000000.mp4"
    shutil.copytree(lerobot_config.FIXTURE.replace("v30", "v21"), tmp_path / "v21")
    (tmp_path / "v21" / wrist).write_bytes(b"")
    spoiled = config.copy_and_resolve_references()
    for entry in spoiled.data.datasets.values():
        entry.path = str(tmp_path / "v21")
    with pytest.raises(ValueError, match=r"\d+ windows are unreadable.*\n.*episode_000000.mp4: the file is empty"):
        start(spoiled, tmp_path / "latents").run(silent)
    with pytest.raises(ValueError, match=r"\d+ windows are unreadable"):  # a second start does not pass it over
        start(spoiled, tmp_path / "latents").run(silent)
    shutil.copy(Path(lerobot_config.FIXTURE.replace("v30", "v21")) / wrist, tmp_path / "v21" / wrist)
    assert start(spoiled, tmp_path / "latents").run(silent)
    assert '"bad": {}' in (tmp_path / "latents/discs/shard-00000.json").read_text()


def test_odd_windows_are_as_from_video(config, tmp_path):
    """Unreadable ones below the limit are replaced, and a task that changes on the way holds from there on."""
    shutil.copytree(lerobot_config.FIXTURE.replace("v30", "v21"), tmp_path / "v21")
    (tmp_path / "v21/videos/chunk-000/observation.images.wrist/episode_000000.mp4").write_bytes(b"")
    change_column(table_of(tmp_path / "v21", 1), "task_index", lambda v: [*v[:20], *[3] * 10, *[0] * 31])
    spoiled = config.copy_and_resolve_references()
    spoiled.data.max_bad_fraction = 1.0
    for entry in spoiled.data.datasets.values():
        entry.path = str(tmp_path / "v21")
    assert start(spoiled, tmp_path / "latents").run(silent)
    video, cached = take(spoiled, tmp_path, 12), take(with_cache(spoiled, tmp_path / "latents"), tmp_path, 12)
    encoder, frozen = Experiment(spoiled).encoders["text"], encoders_in(with_cache(spoiled, tmp_path / "latents"))["text"]
    said = set()
    for a, b in zip(video, cached):
        for name in IDS:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        features = encoder.encode(frozen, a["text_ids"], a["text_length"])
        np.testing.assert_allclose(b["text_features"].astype(np.float32), features, rtol=2**-8, atol=1e-3)
        said |= {tuple(ids) for ids, episode in zip(a["text_ids"].tolist(), a["episode_index"]) if episode == 1}
    assert len(said) > 3  # two robots, three texts


def test_a_cache_travels_to_worker_processes(config, out):
    made = open_cache(with_cache(config, out))
    row = made.read("discs", 5, 0)
    again = pickle.loads(pickle.dumps(made)).read("discs", 5, 0)
    for name in row:
        np.testing.assert_array_equal(row[name], again[name])
