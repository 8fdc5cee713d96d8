"""Readers on files cut short and with bits flipped: no hang, no crash, no other error than a named one, and no sample
that is silently another: what comes back has the shape of the whole one and, of numbers, is what was written."""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_readers import READERS
from data_pipelines.cache.format import CacheError, record_fields
from data_pipelines.cache.reader import LatentCache
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.episode import BadEpisode
from data_pipelines.sources import make_source
from data_pipelines.sources.records import Records
from data_pipelines.statistics.stored import save_statistics
from tests.lerobot_files import FIELDS, FIXTURES
from tests.test_rlds_schemas import folders  # noqa: F401  a fixture
from world_model.batch import Layout, encoded_batch_spec

FUZZ = functools.partial(settings, derandomize=True, deadline=None, database=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def damage(draw) -> tuple:
    """(share of the file that is left, places of flipped bits as shares of it)."""
    keep = draw(st.one_of(st.just(1.0), st.floats(0, 0.999)))
    flips = draw(st.lists(st.tuples(st.floats(0, 0.999999), st.integers(0, 7)), min_size=keep == 1.0, max_size=6))
    return keep, flips


def damaged(data: bytes, how: tuple) -> bytes:
    keep, flips = how
    out = bytearray(data[:int(len(data) * keep)])
    for place, bit in flips:
        if out:
            out[int(place * len(out))] ^= 1 << bit
    return bytes(out)


def lerobot(folder: Path, episode: int = 3):
    """Episode 3 has nine frames."""
    return make_source("lerobot", "discs", path=str(folder), **FIELDS)[episode]


@functools.cache
def whole():
    episode = lerobot(FIXTURES / "lerobot_v21")
    return episode.state, episode.action, episode.instruction


@FUZZ(max_examples=40)
@given(damage())
def test_tables_with_checksums(how):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "v21"
        shutil.copytree(FIXTURES / "lerobot_v21/meta", folder / "meta")
        file = folder / "data/chunk-000/episode_000003.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pq.read_table(FIXTURES / "lerobot_v21/data/chunk-000/episode_000003.parquet"), file,
                       write_page_checksum=True)
        file.write_bytes(damaged(file.read_bytes(), how))
        try:
            episode = lerobot(folder)
        except BadEpisode as error:
            assert "episode_000003.parquet" in str(error)
            return
        for found, known in zip((episode.state, episode.action, episode.instruction), whole()):
            np.testing.assert_array_equal(found, known)


@FUZZ(max_examples=25)
@given(damage(), st.sampled_from(["front", "wrist"]))
def test_videos(how, camera):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "v21"
        shutil.copytree(FIXTURES / "lerobot_v21", folder)
        file = folder / f"videos/chunk-000/observation.images.{camera}/episode_000003.mp4"
        file.write_bytes(damaged(file.read_bytes(), how))
        try:
            frames = lerobot(folder).read_frames(np.array([0, 4, 8]))
            assert all(views.shape == (3, 48, 64, 3) for views in frames.values())
        except BadEpisode as error:
            assert str(file) in str(error)


@FUZZ(max_examples=40)
@given(damage(), st.sampled_from(["droid", "rt_1"]))
def test_records(folders, how, schema):  # noqa: F811
    """array_record (droid) and tfrecord (rt_1)."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "rlds"
        shutil.copytree(folders[schema], folder, ignore=shutil.ignore_patterns("lengths*"))
        shard = next(file for file in folder.iterdir() if "-of-" in file.name)
        shard.write_bytes(damaged(shard.read_bytes(), how))
        source, known = (make_source("rlds", "r", path=str(path), schema=schema) for path in (folder, folders[schema]))
        for i in range(3):
            try:
                episode = source[i]
                episode.read_frames(np.arange(episode.length))
            except BadEpisode as error:
                assert f"episode {i}" in str(error)
                continue
            np.testing.assert_array_equal(episode.action, known[i].action)


STATISTICS = {"d": {"embodiment": "pusht", "actions_per_block": 4}}
SPEC = encoded_batch_spec(Layout(5, 8, 8, 1, 4, 1), action_dim=3, state_dim=2, text=(4, 6), latent=(2, 2, 3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Three shards of two windows, of three episodes with a prompt each; (its folder, what it holds)."""
    folder, rng = str(tmp_path_factory.mktemp("cache")), np.random.default_rng(0)
    writer = CacheWriter(folder, {"identity": {"a": 1}, "encoders": ""}, SPEC, 2)
    rows = [{name: rng.normal(size=shape).astype(dtype) for name, (shape, dtype) in record_fields(SPEC).items()}
            for _ in range(6)]
    for shard in range(3):
        writer.write_shard("d", shard, iter(rows[2 * shard:2 * shard + 2]))
    texts = [rng.normal(size=(3, 6)) for _ in range(3)]
    writer.write_texts([str(i) for i in range(len(texts))], lambda i: texts[int(i)])
    writer.write_index("d", lengths=np.arange(3), rates=np.ones(3), kept=np.zeros((3, 3), np.int64), text=np.arange(3))
    save_encoders(folder, {"video.mean": np.ones(2, np.float32)})
    save_statistics(STATISTICS, f"{folder}/statistics.json")
    assert writer.finish({"d": 6})
    known = LatentCache(folder, {"a": 1}, SPEC)
    return folder, [known.read("d", i, i // 2) for i in range(6)]


CACHE_FILES = ("d/shard-00001.array_record", "texts.array_record", "d/index.safetensors", "statistics.json",
               "encoders.safetensors", "manifest.json", "_SUCCESS")


@FUZZ(max_examples=120)
@given(damage(), st.sampled_from(CACHE_FILES), st.booleans())
def test_latent_caches(cache, how, name, same_size):
    """same_size: a file whose length was written down after it was cut, so that its reader meets what is left."""
    folder, rows = cache
    with tempfile.TemporaryDirectory() as temporary:
        copied, success = Path(temporary) / "cache", Path(temporary) / "cache/_SUCCESS"
        shutil.copytree(folder, copied)
        (copied / name).write_bytes(damaged((copied / name).read_bytes(), how))
        if same_size and name.endswith("array_record"):
            whole = (Path(folder) / name).stat().st_size
            success.write_text(success.read_text().replace(f'"bytes": {whole}', f'"bytes": {(copied / name).stat().st_size}'))
        try:
            found = LatentCache(copied, {"a": 1}, SPEC)
            assert found.statistics() == STATISTICS and found.encoders(["video"])["video"]["mean"].tolist() == [1, 1]
            index = found.source("d", None)
        except CacheError as error:
            assert str(copied) in str(error)
            return
        assert index.lengths().tolist() == [0, 1, 2]
        for i, row in enumerate(rows):
            try:
                again = found.read("d", i, i // 2)
            except BadEpisode as error:
                assert str(copied / "d/shard-") in str(error)
                continue
            for field in row:
                np.testing.assert_array_equal(again[field], row[field])


@pytest.mark.parametrize("name", READERS)
def test_some_cases_of_every_reader(name, tmp_path):
    """`python -m benchmarks.fuzz` runs the same and more."""
    reader = READERS[name]
    reader.make(tmp_path)
    reader.read(tmp_path)
    outcomes = [fuzz.run_case(reader, tmp_path, 0, number) for number in range(40)]
    assert 5 < outcomes.count("refused") < 40 or name == "rlds"
    reader.read(tmp_path)  # every damaged file was put back


def test_records_outside_a_shard_are_errors():
    assert len(Records([], [], "tfrecord")) == 0
