"""Published RLDS datasets by their schemas, on small ones written by tensorflow-datasets in the same layout: as
array_record and tfrecord, from a folder and from an object store."""

import json
import os
import shutil
import struct

import fsspec
import numpy as np
import pytest

from data_pipelines.dataset import Dataset, index_windows
from data_pipelines.episode import BadEpisode
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.samples import check_episode
from data_pipelines.sources import make_source
from data_pipelines.sources.records import Records, _masked_crc
from data_pipelines.storage import files
from tests.test_sources import png
from world_model.batch import Layout

STEPS = (7, 9, 5)
IMAGE, TEXT = (24, 32, 3), "move the disc"


def tensor(*shape, dtype=np.float32):
    import tensorflow_datasets as tfds

    return tfds.features.Tensor(shape=shape, dtype=dtype)


def image():
    import tensorflow_datasets as tfds

    return tfds.features.Image(shape=IMAGE, encoding_format="png")


def layouts() -> dict[str, tuple[dict, dict]]:
    """schema -> (features of a step, features of an episode), of what is read and a little of what is not."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return {
        "droid": ({"observation": {"exterior_image_1_left": image(), "exterior_image_2_left": image(),
                                   "wrist_image_left": image(), "joint_position": tensor(7, dtype=np.float64),
                                   "gripper_position": tensor(1, dtype=np.float64), "cartesian_position": tensor(6)},
                   "action": tensor(7), "action_dict": {"joint_position": tensor(7), "gripper_position": tensor(1)},
                   "language_instruction": text(), "is_first": np.bool_},
                  {"episode_metadata": {"file_path": text(), "recording_folderpath": text()}}),
        "bridge_v2": ({"observation": {"image_0": image(), "state": tensor(7)}, "action": tensor(7),
                       "language_instruction": text(), "is_first": np.bool_},
                      {"episode_metadata": {"has_language": np.bool_, "episode_id": np.int32}}),
        "rt_1": ({"observation": {"image": image(), "base_pose_tool_reached": tensor(7), "gripper_closed": tensor(1),
                                  "natural_language_instruction": text()},
                  "action": {"world_vector": tensor(3), "rotation_delta": tensor(3),
                             "gripper_closedness_action": tensor(1), "terminate_episode": tensor(3, dtype=np.int32)},
                  "is_first": np.bool_}, {"aspects": {"success": np.bool_}}),
        "generic": ({"observation": {"image": image(), "state": tensor(2)}, "action": tensor(2),
                     "language_instruction": text(), "is_first": np.bool_}, {}),
    }


def filled(features: dict, episode: int, step: int):
    """Numbers that say where they are: 100 episode + step + index / 100."""
    import tensorflow_datasets as tfds

    made = {}
    for name, feature in features.items():
        if isinstance(feature, dict):
            made[name] = filled(feature, episode, step)
        elif isinstance(feature, tfds.features.Image):
            made[name] = png(*IMAGE[:2])
        elif isinstance(feature, tfds.features.Text):
            made[name] = "" if episode == 1 else TEXT
        elif feature is np.bool_:
            made[name] = step == 0
        else:
            made[name] = (100 * episode + step + np.arange(feature.shape[0]) / 100).astype(feature.np_dtype)
    return made


METADATA = {"droid": lambda e: {"episode_metadata": {"file_path": f"lab/{'failure' if e == 2 else 'success'}/{e}",
                                                     "recording_folderpath": f"folder/{e}"}},
            "bridge_v2": lambda e: {"episode_metadata": {"has_language": e != 1, "episode_id": e}},
            "rt_1": lambda e: {"aspects": {"success": e != 2}}, "generic": lambda e: {}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """schema -> dataset of three episodes; the second without instruction, the third a failure."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    out = {}
    for schema, (step, episode) in layouts().items():
        kind = "tfrecord" if schema == "rt_1" else "array_record"
        examples = [(i, {"steps": [filled(step, i, t) for t in range(length)], **METADATA[schema](i)})
                    for i, length in enumerate(STEPS)]
        written = tfds.dataset_builders.store_as_tfds_dataset(
            name=schema, version="1.0.0", file_format=kind, disable_shuffling=True,
            features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), **episode}),
            split_datasets={"train": iter(examples)}, data_dir=tmp_path_factory.mktemp("tfds"))
        out[schema] = str(written.data_dir)
    return out


ROBOTS = {"droid": "droid", "bridge_v2": "widowx", "rt_1": "google_robot"}


@pytest.mark.parametrize("schema", ROBOTS)
def test_a_schema_gives_what_its_robot_needs(folders, schema):
    source = make_source("rlds", "robots", path=folders[schema], schema=schema)
    robot = get_embodiment(ROBOTS[schema])
    assert source.lengths().tolist() == list(STEPS) and set(source.rates()) == {robot.rate}
    for i, length in enumerate(STEPS):
        episode = source[i]
        check_episode(episode, robot)
        assert episode.instruction == ("" if i == 1 else TEXT)
        frames = episode.read_frames(np.array([length - 1]))
        assert set(frames) >= set(robot.views) and frames[robot.views[0]].shape == (1, *IMAGE)
        np.testing.assert_allclose(episode.state[:, 0], 100 * i + np.arange(length))
        np.testing.assert_allclose(episode.action[-1, :3], 100 * i + length - 1 + np.arange(3) / 100, rtol=1e-6)
    layout = Layout(frames=5, height=24, width=32, frames_per_block=1, actions_per_block=4, states_per_block=1)
    assert len(index_windows(Dataset("robots", source, robot), layout)) == (7 - 4) + (9 - 4) + (5 - 4)


def test_the_generic_schema_needs_a_rate_and_may_be_changed(folders):
    with pytest.raises(ValueError, match="'robots': rate is missing"):
        make_source("rlds", "robots", path=folders["generic"], schema="generic")
    with pytest.raises(ValueError, match=r"schema = 'droids' is unknown; there are \['bridge_v2', 'droid'"):
        make_source("rlds", "robots", path=folders["generic"], schema="droids")
    source = make_source("rlds", "robots", path=folders["generic"], schema="generic", rate=5, state="")
    assert source[0].state is None and source[0].action.shape == (7, 2)


@pytest.mark.parametrize("schema, filters, expected", [
    ("droid", {"successful": True}, [0, 1]), ("rt_1", {"successful": True}, [0, 1]),
    ("droid", {"described": True}, [0, 2]), ("rt_1", {"described": True}, [0, 2]),
    ("droid", {"successful": True, "described": True}, [0]),
    ("bridge_v2", {"where": {"episode_metadata/has_language": True}}, [0, 2]),
    ("droid", {"where": {"episode_metadata/recording_folderpath": "folder/[12]"}}, [1, 2])])
def test_filters_choose_episodes(folders, schema, filters, expected):
    source = make_source("rlds", "robots", path=folders[schema], schema=schema, **filters)
    assert source.stretches().tolist() == [[i, 0, STEPS[i]] for i in expected] and len(source) == 3
    again = make_source("rlds", "robots", path=folders[schema], schema=schema, **filters)
    again._example = lambda index: pytest.fail("read the records again")
    np.testing.assert_array_equal(again.stretches(), source.stretches())


def test_keep_ranges_name_episodes_as_droid_does(folders, tmp_path):
    keep = tmp_path / "keep_ranges.json"
    keep.write_text(json.dumps({"folder/0--lab/success/0": [[0, 2], [4, 7]], "folder/2--lab/failure/2": [[1, 5]]}))
    options = {"path": folders["droid"], "schema": "droid", "keep": str(keep)}
    assert make_source("rlds", "d", **options).stretches().tolist() == [[0, 0, 2], [0, 4, 7], [2, 1, 5]]
    assert make_source("rlds", "d", **options, successful=True).stretches().tolist() == [[0, 0, 2], [0, 4, 7]]
    keep.write_text(json.dumps({"1": [[0, 9]]}))
    options = {"path": folders["bridge_v2"], "schema": "bridge_v2", "keep": str(keep)}
    assert make_source("rlds", "b", **options).stretches().tolist() == [[1, 0, 9]]


def test_what_a_dataset_does_not_say_is_named(folders):
    with pytest.raises(ValueError, match="schema 'bridge_v2' does not say which episodes succeeded"):
        make_source("rlds", "b", path=folders["bridge_v2"], schema="bridge_v2", successful=True)
    with pytest.raises(ValueError, match=r"no field 'success'; an episode has \['aspects/success'\]"):
        make_source("rlds", "b", path=folders["rt_1"], schema="rt_1", where={"success": True}).stretches()


@pytest.mark.parametrize("schema", ["droid", "rt_1"])
def test_object_stores(folders, schema, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(folders[schema], f"/rlds_{schema}", recursive=True)
    memory.pipe("/filters/keep.jsonl", b'{"episode_index": "1", "step_indices": [0]}\n')
    local = make_source("rlds", "robots", path=folders[schema], schema=schema)
    remote = make_source("rlds", "robots", path=f"memory://rlds_{schema}", schema=schema, described=True)
    assert remote.lengths().tolist() == list(STEPS) and remote.stretches()[:, 0].tolist() == [0, 2]
    np.testing.assert_array_equal(remote[2].action, local[2].action)
    for view, frames in remote[2].read_frames(np.array([1, 3])).items():
        np.testing.assert_array_equal(frames, local[2].read_frames(np.array([1, 3]))[view])
    assert bool(list((tmp_path / f"wamax-copies-{os.getuid()}").glob("*"))) == (schema == "droid")  # array_record reads paths alone
    with pytest.raises(FileNotFoundError, match="no TFDS dataset in memory://nothing"):
        make_source("rlds", "robots", path="memory://nothing", schema=schema)


def test_tfrecord_shards_that_are_damaged_are_named(folders, tmp_path):
    for name, spoil, bad in (("cut", lambda data: data[:-100], [2]), ("flipped", lambda data: bytes([data[0] ^ 1]) + data[1:],
                                                                   [0, 1, 2])):
        shutil.copytree(folders["rt_1"], tmp_path / name, ignore=shutil.ignore_patterns("lengths*"))
        shard = next((tmp_path / name).glob("*tfrecord*"))
        shard.write_bytes(spoil(shard.read_bytes()))
        source = make_source("rlds", "robots", path=str(tmp_path / name), schema="rt_1")
        assert source.lengths().tolist() == [1 if i in bad else n for i, n in enumerate(STEPS)]
        for i in bad:
            with pytest.raises(BadEpisode, match=f"episode {i}: the record cannot be read: {shard}"):
                source[i]


def test_an_instruction_that_is_not_utf8_is_named(folders, tmp_path):
    shutil.copytree(folders["rt_1"], tmp_path / "text", ignore=shutil.ignore_patterns("lengths*"))
    shard = next((tmp_path / "text").glob("*tfrecord*"))
    kept = Records([str(shard)], [3], "tfrecord")
    spoiled = [kept[i].replace(TEXT.encode(), b"\xff" + TEXT.encode()[1:]) for i in range(3)]

    def checked(data: bytes) -> bytes:
        return data + struct.pack("<I", _masked_crc(data))

    shard.write_bytes(b"".join(checked(struct.pack("<Q", len(data))) + checked(data) for data in spoiled))
    with pytest.raises(BadEpisode, match="episode 0: the instruction is not UTF-8"):
        make_source("rlds", "robots", path=str(tmp_path / "text"), schema="rt_1")[0]


def test_a_template_that_leads_out_of_the_dataset_stays_inside(folders, tmp_path):
    """TFDS takes the last part of a shard's name alone."""
    shutil.copytree(folders["rt_1"], tmp_path / "away")
    shutil.move(next((tmp_path / "away").glob("*tfrecord*")), tmp_path)
    info = tmp_path / "away/dataset_info.json"
    value = json.loads(info.read_text())
    value["splits"][0]["filepathTemplate"] = "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info.write_text(json.dumps(value))
    with pytest.raises(BadEpisode, match=f"No such file or directory: '{tmp_path}/away/rt_1-train"):
        make_source("rlds", "robots", path=str(tmp_path / "away"), schema="rt_1")[0]
