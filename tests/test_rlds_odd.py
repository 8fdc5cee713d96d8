"""RLDS datasets with features of every kind that TFDS writes, and with metadata that claim what is not so."""

import json
import shutil
import sys
import zlib

import numpy as np
import pytest

from data_pipelines.episode import BadEpisode
from data_pipelines.sources import make_source
from data_pipelines.sources.examples import check_classes
from data_pipelines.video import pictures

LENGTHS = (6, 0, 7)
PICTURE = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)


def steps(tfds) -> dict:
    tensor, sequence = tfds.features.Tensor, tfds.features.Sequence
    return {
        "action": tensor(shape=(2,), dtype=np.float32), "pose": tensor(shape=(4, 4), dtype=np.float64),
        "forces": sequence(tensor(shape=(6,), dtype=np.float32), length=5),
        "loose": sequence(tensor(shape=(2,), dtype=np.float32)), "ragged": sequence(tfds.features.Scalar(np.float32)),
        "nested": sequence(sequence(tfds.features.Scalar(np.float32), length=2), length=3),
        "raw": tensor(shape=PICTURE.shape, dtype=np.uint8), "grey": tensor(shape=(8, 10, 1), dtype=np.uint8),
        "image": tfds.features.Image(shape=PICTURE.shape), "letters": tensor(shape=(16,), dtype=np.int32),
        "late": tfds.features.Text(), "text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["a", "b"]),
        "flag": np.bool_, "texts": sequence(tfds.features.Text()), "depth": tensor(shape=(8, 10, 1), dtype=np.float32)}


def step(t: int) -> dict:
    letters = np.zeros(16, np.int32)
    letters[:4 if t < 3 else 3] = list(b"push" if t < 3 else b"lay")
    return {
        "action": np.full(2, t, np.float32), "pose": np.arange(16.0).reshape(4, 4) + t,
        "forces": [np.full(6, t + i / 8, np.float32) for i in range(5)], "loose": [np.full(2, t, np.float32)] * 3,
        "ragged": [float(t)] * (1 + t % 2), "nested": [[t, t + 0.5]] * 3, "raw": PICTURE + np.uint8(t),
        "grey": PICTURE[..., :1] + np.uint8(t), "image": PICTURE + np.uint8(t), "letters": letters,
        "late": "" if t < 2 else "said late", "text": f"part {t // 3}", "label": t % 2, "flag": t == 0,
        "texts": ["a", "b"], "depth": np.ones((8, 10, 1), np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps(tfds)),
                                           "tags": tfds.features.Sequence(tfds.features.Text())})
    examples = [(i, {"steps": [step(t) for t in range(length)], "tags": [f"lab {i}", "all"]})
                for i, length in enumerate(LENGTHS)]
    return str(tfds.dataset_builders.store_as_tfds_dataset(
        name="odd", version="1.0.0", file_format="array_record", disable_shuffling=True, features=features,
        split_datasets={"train": iter(examples)}, data_dir=tmp_path_factory.mktemp("tfds")).data_dir)


def opened(folder, **options):
    return make_source("rlds", "odd", path=str(folder), **{"rate": 10.0, "images": {}, "action": "action",
                                                           "instruction": "", **options})


@pytest.mark.parametrize("field, row", [
    ("pose", [*range(3, 19)]), ("forces", [3.0] * 6 + [3.125] * 6 + [3.25] * 6 + [3.375] * 6 + [3.5] * 6),
    ("loose", [3] * 6), ("nested", [3, 3.5] * 3), ("label", [1]), ("flag", [0]), (("flag", "pose"), [0, *range(3, 19)])])
def test_features_of_every_kind_are_rows_of_numbers(folder, field, row):
    state = opened(folder, state=field)[2].state
    assert state.dtype == np.float32 and state.shape == (7, len(row)) and state[3].tolist() == row


def test_rows_that_are_not_alike_or_no_numbers_are_named(folder):
    with pytest.raises(BadEpisode, match=r"odd/1.0.0 split train episode 2: .*'steps/ragged' have \[1, 2\] values"):
        opened(folder, state="ragged")[2]
    with pytest.raises(BadEpisode, match="episode 2: text does not hold numbers"):
        opened(folder, state="text")[2]


def test_an_empty_episode_is_left_out(folder, tmp_path):
    here = shutil.copytree(folder, tmp_path / "here", ignore=shutil.ignore_patterns("lengths*"))
    source = opened(here)
    assert source.lengths().tolist() == list(LENGTHS) and source.stretches().tolist() == [[0, 0, 6], [2, 0, 7]]
    assert json.loads((here / "lengths-train.json").read_text())["episodes"]["length"] == list(LENGTHS)
    with pytest.raises(BadEpisode, match="episode 1 has no steps"):
        source[1]


@pytest.mark.parametrize("field, channels", [("raw", 3), ("image", 3), ("grey", 1)])
def test_pictures_may_be_pixels(folder, field, channels):
    frames = opened(folder, images={"view": field})[2].read_frames(np.array([5, 0, 5]))["view"]
    expected = np.stack([PICTURE[..., :channels] + np.uint8(t) for t in (5, 0, 5)])
    np.testing.assert_array_equal(frames, np.broadcast_to(expected, (3, 8, 10, 3)))
    with pytest.raises(BadEpisode, match=r"step 0 depth: float32 \[8, 10, 1\] is no picture"):
        opened(folder, images={"view": "depth"})[2].read_frames(np.array([0]))


def test_texts_step_by_step(folder):
    assert opened(folder, instruction="letters")[2].instructions == ((0, "push"), (3, "lay"))
    assert opened(folder, instruction="text")[2].instructions == ((0, "part 0"), (3, "part 1"), (6, "part 2"))
    assert opened(folder, instruction="late")[2].instructions == ((0, "said late"),)
    assert opened(folder, instruction="late", described=True).stretches()[:, 0].tolist() == [0, 2]
    with pytest.raises(BadEpisode, match=r"episode 2: the instruction is no text: \[b'a', b'b'\]"):
        opened(folder, instruction="texts")[2]
    with pytest.raises(BadEpisode, match="episode 2: the instruction is no text: 0"):
        opened(folder, instruction="label")[2]


def test_one_of_several_values_of_an_episode_may_be_asked_for(folder):
    assert opened(folder, where={"tags": "lab [12]"}).stretches()[:, 0].tolist() == [2]
    assert opened(folder, where={"tags": "all"}).stretches()[:, 0].tolist() == [0, 2]
    assert opened(folder, where={"tags": ["lab 0", "none"]}).stretches()[:, 0].tolist() == [0]


@pytest.mark.parametrize("name", ["set [v2]", "runs::1", "10:30", "a*b"])
def test_a_folders_name_means_nothing(folder, tmp_path, name):
    source = opened(shutil.copytree(folder, tmp_path / name / "1.0.0"), images={"view": "image"}, instruction="text")
    assert source.lengths().tolist() == list(LENGTHS) and source[2].instruction == "part 0"
    assert source[2].read_frames(np.array([1]))["view"].shape == (1, 8, 10, 3)
    with pytest.raises(FileNotFoundError, match="there is one in .*1.0.0"):
        opened(tmp_path)


def test_an_unknown_split_is_a_sentence(folder):
    with pytest.raises(ValueError, match=r"no split 'valid'; there are \['train'\]"):
        opened(folder, split="valid").stretches()


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_no_class_but_tfdss_own_is_imported(folder, tmp_path, monkeypatch, key):
    here = shutil.copytree(folder, tmp_path / "here")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = json.loads((here / "features.json").read_text())
    text["featuresDict"]["features"]["steps"][key] = "evil.Feature"
    (here / "features.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="features.json names the class 'evil.Feature', which is none of the features"):
        opened(here).lengths()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["os.path", "tensorflow_datasets.core.features.evil.Feature", "evil",
                                  "tensorflow_datasets.testing.Feature"])
def test_names_of_classes(name):
    with pytest.raises(ValueError, match=f"names the class '{name}'"):
        check_classes(json.dumps([{"a": {"type": name}}]), "features.json")
    check_classes('{"type": "tensorflow_datasets.core.features.text_feature.Text"}', "features.json")


@pytest.mark.parametrize("lengths", [["1000000000000000"], ["-1"]])
def test_shards_that_claim_too_many_records_are_refused(folder, tmp_path, lengths):
    here = shutil.copytree(folder, tmp_path / "here", ignore=shutil.ignore_patterns("lengths*"))
    info = json.loads((here / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = lengths
    (here / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=f"array_record-00000-of-00001 cannot hold {lengths[0]} records"):
        opened(here).lengths()


@pytest.mark.parametrize("template, named", [
    ("{DATASET}-{NOBODY}", "makes no sense to tensorflow_datasets"), (3, "makes no sense to tensorflow_datasets")])
def test_names_of_shards_that_make_no_sense_are_named(folder, tmp_path, template, named):
    here = shutil.copytree(folder, tmp_path / "here", ignore=shutil.ignore_patterns("lengths*"))
    info = json.loads((here / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = template
    (here / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=named) as error:
        opened(here).lengths()
    assert str(here) in str(error.value)


def test_pictures_larger_than_any_cameras_are_refused():
    """Before they are decoded: a few kilobytes can stand for hundreds of megabytes."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    start = (9000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    with pytest.raises(BadEpisode, match="a step: the picture has 9000 x 9000 pixels: more than a camera"):
        pictures.decode(bomb, "a step")
