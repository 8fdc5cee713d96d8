"""Robots as entries: slots, masks, views, relative actions; adding one touches nothing else."""

import ast
import dataclasses
import graphlib
import hashlib
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.cache import format as cache_format
from data_pipelines.dataset import Dataset, index_windows
from data_pipelines.episode import Episode
from data_pipelines.loader import Loader
from data_pipelines.mixture import describe_mixture
from data_pipelines.robots import embodiments
from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.robots.embodiments import get_embodiment, name_in_files, register
from data_pipelines.robots.normalisation import to_absolute, to_relative, to_robot_units
from data_pipelines.robots.slots import ACTION_SLOTS, DUAL_ARM_SLOTS, STATE_SLOTS, scatter, slot_mask
from data_pipelines.robots.views import VIEW_LAYOUTS, resize
from data_pipelines.statistics.compute import compute_statistics
from data_pipelines.statistics.stored import statistics_hash
from tests.fake_source import LAYOUT, FakeSource, tokenize
from world_model.batch import batch_spec
from world_model.families.dreamzero.weights import experiment as reference_experiment


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(embodiments, "EMBODIMENTS", {})


def droid() -> Embodiment:
    """A two-camera arm in the published order: 7 joints relative to the state, then an absolute gripper."""
    joints = [Dimension(f"joint_{i}", STATE_SLOTS["left_arm"][i]) for i in range(7)]
    moves = [Dimension(f"joint_{i}", ACTION_SLOTS["left_arm"][i], relative_to=f"joint_{i}") for i in range(7)]
    return Embodiment(
        name="droid", id=17, views=("wrist", "outside"), view_layout="side_by_side", rate=15.0,
        state=(*joints, Dimension("gripper", STATE_SLOTS["left_gripper"][0])),
        action=(*moves, Dimension("gripper", ACTION_SLOTS["left_gripper"][0])),
        prompt="Two views. {instruction}")


class DroidSource(FakeSource):
    """Random walks; two cameras of different sizes."""

    def __getitem__(self, index: int) -> Episode:
        rng, length = np.random.default_rng(index), self.lengths_[index]
        state = rng.normal(size=(length, 8)).cumsum(0).astype(np.float32)
        action = state + rng.normal(size=(length, 8)).astype(np.float32)

        def read_frames(steps: np.ndarray) -> dict[str, np.ndarray]:
            return {"outside": np.full((len(steps), 12, 16, 3), 200, np.uint8),
                    "wrist": np.full((len(steps), 6, 4, 3), 100, np.uint8)}

        return Episode("droid", index, length, 15.0, "go", state, action, read_frames)


def long_tokenize(prompt: str) -> tuple[np.ndarray, int]:
    return np.pad(np.array(list(prompt.encode()), np.int32), (0, 32 - len(prompt))), len(prompt)


def test_one_entry_adds_a_robot(registry):
    robot = register(droid())
    dataset = Dataset("droid", DroidSource([60, 70], rate=15.0), get_embodiment("droid"))
    dataset = dataclasses.replace(dataset, statistics=compute_statistics(dataset, LAYOUT))
    fields = batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=32)
    with Loader([dataset], LAYOUT, long_tokenize, fields=fields, seed=0, global_batch_size=4) as loader:
        batch = next(loader)
    assert batch["action_mask"][..., :8].all() and not batch["action_mask"][..., 8:].any()
    assert batch["state"][..., :8].any() and not batch["state"][..., 8:].any()
    assert (batch["embodiment_id"] == 17).all()
    assert bytes(batch["text_ids"][0, :batch["text_length"][0]].astype(np.uint8)) == b"Two views. go"
    # wrist left, outside right, as the embodiment orders them
    assert (batch["video"][..., :4, :] == 100).all() and (batch["video"][..., 4:, :] == 200).all()
    # back to the robot, block by block (what was clipped at q01 and q99 stays clipped)
    index, start = int(batch["episode_index"][0]), int(batch["start"][0])
    episode = dataset.source[index]
    units = to_robot_units(batch["actions"][0, 16:], episode.state[start + 16], robot, dataset.statistics)
    inside = np.abs(batch["actions"][0, 16:, :8]) < 1
    expected = episode.action[start + 16:start + 32]
    assert inside.mean() > 0.9
    np.testing.assert_allclose(units[inside], expected[inside], atol=1e-5)


def test_published_droid_order_is_slots_0_to_7():
    for robot in (droid(), get_embodiment("droid")):
        np.testing.assert_array_equal(robot.action_slots, np.arange(8))
        np.testing.assert_array_equal(robot.state_slots, np.arange(8))
        assert [d.relative_to is not None for d in robot.action] == [True] * 7 + [False]


@pytest.mark.parametrize("name, keys", [
    ("agibot_g1", ("left_arm_joint_position", "right_arm_joint_position", "left_effector_position",
                   "right_effector_position", "head_position", "waist_position", "robot_velocity")),
    ("yam", ("left_joint_pos", "left_gripper_pos", "right_joint_pos", "right_gripper_pos"))])
def test_released_weights_have_a_robots_numbers_one_after_another(name, keys):
    """Under the released configs' names, in their order, from slot 0 on; beside it the robot in the shared slots."""
    released, shared = (reference_experiment.robot_of(get_embodiment(n)) for n in (f"{name}_packed", name))
    assert tuple(released.keys["action"]) == keys and tuple(released.keys["state"]) == keys[:len(released.keys["state"])]
    for slots in (released.embodiment.action_slots, released.embodiment.state_slots):
        np.testing.assert_array_equal(slots, np.arange(len(slots)))
    assert shared.keys == released.keys and (shared.tag, shared.id) == (released.tag, released.id)
    assert shared.embodiment.action_slots[len(slots) - 1] > len(slots)


@pytest.mark.parametrize("name, state, action, relative", [
    ("agibot_g1", 20, 22, 20), ("agibot_g1_packed", 20, 22, 20), ("yam", 14, 14, 14), ("aloha", 14, 14, 12), ("widowx", 7, 7, 0),
    ("google_robot", 8, 7, 0), ("so101", 6, 6, 5), ("metaworld", 4, 4, 0), ("pusht", 2, 2, 0),
    ("agibot_world", 20, 22, 18), ("libero", 8, 7, 0), ("robotwin_joints", 14, 14, 0), ("robomind_franka", 8, 8, 7),
    ("robomind_agilex", 14, 14, 12), ("robomind_ur", 7, 7, 6), ("robocoin", 14, 14, 0), ("interndata_a1", 16, 16, 0),
    ("interndata_a1_single", 8, 8, 0), ("galaxea_r1_lite", 14, 14, 12), ("gr1", 29, 29, 0), ("google_robot_absolute", 8, 7, 0),
    ("egodex", 0, 0, 0)])
def test_entries_have_the_dimensions_of_their_datasets(name, state, action, relative):
    robot = get_embodiment(name)
    assert (len(robot.state), len(robot.action)) == (state, action)
    assert sum(d.relative_to is not None for d in robot.action) == relative
    views = [np.full((2, 12, 16, 3), 40 * i + 40, np.uint8) for i in range(len(robot.views))]
    canvas = VIEW_LAYOUTS[robot.view_layout](views, 36, 48)
    assert canvas.shape == (2, 36, 48, 3) and {40 * i + 40 for i in range(len(views))} <= set(canvas.ravel().tolist())


def test_a_gripper_whose_action_has_another_unit_is_neither_relative_nor_a_target():
    robot = get_embodiment("agibot_world")
    grippers = [d for d in robot.action if "closing" in d.name]
    assert [(d.target_of, d.low, d.high) for d in grippers] == [(None, 0, 1)] * 2
    by_name = {d.name: d for d in robot.action}
    assert (by_name["right_arm_1"].low, by_name["right_arm_1"].high, by_name["waist_1"].max_speed) == (-1.48, 2.09, 0.1)


def test_layouts_of_three_views():
    views = [np.full((1, 4, 6, 3), i, np.uint8) for i in (1, 2, 3)]
    grid = VIEW_LAYOUTS["grid_2x2"](views, 8, 12)[0, ..., 0]
    assert (grid[:4, :6] == 1).all() and (grid[4:, :6] == 2).all() and (grid[:4, 6:] == 3).all() and not grid[4:, 6:].any()
    wide = VIEW_LAYOUTS["wide_top"](views, 8, 12)[0, ..., 0]
    assert (wide[:4] == 3).all() and (wide[4:, :6] == 1).all() and (wide[4:, 6:] == 2).all()
    tee = VIEW_LAYOUTS["t_shape"](views, 12, 12)[0, ..., 0]
    assert (tee[4:] == 1).all() and (tee[:4, :6] == 2).all() and (tee[:4, 6:] == 3).all()
    stripes = np.arange(6, dtype=np.uint8)[None, None, :, None].repeat(4, 1).repeat(3, 3)
    np.testing.assert_array_equal(VIEW_LAYOUTS["wide_top"]([*views[:2], stripes], 8, 12)[0, 0, :, 0], np.arange(12) // 2)


@pytest.mark.parametrize("name, count, size, named", [
    ("grid_2x2", 2, (8, 12), "takes 3 or 4 views, found 2"), ("wide_top", 4, (8, 12), "takes 3 views, found 4"),
    ("grid_2x2", 3, (7, 12), "layout.height = 7 and layout.width = 12 must be even"),
    ("t_shape", 3, (8, 12), "a height of 3k and a width of 2k")])
def test_layouts_name_what_does_not_fit(name, count, size, named):
    with pytest.raises(ValueError, match=named):
        VIEW_LAYOUTS[name]([np.zeros((1, 4, 6, 3), np.uint8)] * count, *size)


@pytest.mark.parametrize("slots, size", [(ACTION_SLOTS, 32), (STATE_SLOTS, 64)])
def test_slots_cover_the_shared_layout_once(slots, size):
    assert [i for part in slots.values() for i in part] == list(range(size))


def test_scatter_and_mask():
    slots = np.array([3, 0])
    out = scatter(np.array([[1.0, 2.0], [3.0, 4.0]]), slots, 5)
    np.testing.assert_array_equal(out, [[2, 0, 0, 1, 0], [4, 0, 0, 3, 0]])
    np.testing.assert_array_equal(slot_mask(slots, 5), [True, False, False, True, False])


def test_relative_action_round_trip():
    rng = np.random.default_rng(0)
    action, state = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    relative = to_relative(action, state, droid())
    np.testing.assert_allclose(relative[:, :7], action[:, :7] - state[:, :7])
    np.testing.assert_array_equal(relative[:, 7], action[:, 7])  # the gripper stays absolute
    np.testing.assert_allclose(to_absolute(relative, state, droid()), action)


@pytest.mark.parametrize("size, out", [
    ((12, 16), (6, 8)), ((96, 96), (64, 64)), ((5, 7), (9, 11)), ((8, 8), (8, 4)),
])
def test_resize_equals_jax_image(size, out):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    expected = jax.image.resize(frames.astype(np.float32), (2, *out, 3), "linear", antialias=True)
    np.testing.assert_allclose(resize(frames, *out), expected, atol=0.51)


def test_views_do_not_fit_the_layout():
    frame = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="takes 1 view, found 2"):
        VIEW_LAYOUTS["single"]([frame, frame], 4, 4)
    with pytest.raises(ValueError, match=r"layout\.width = 5 does not divide by 2 views"):
        VIEW_LAYOUTS["side_by_side"]([frame, frame], 4, 5)


@pytest.mark.parametrize("changes, named", [
    (dict(view_layout="singel"), "view_layout = 'singel' is unknown; did you mean 'single'"),
    (dict(normalisation="z"), "normalisation = 'z' is unknown"),
    (dict(rate=0.0), "needs rate > 0"),
    (dict(prompt="no place"), "a prompt with '{instruction}'"),
    (dict(state=(Dimension("a", 0), Dimension("b", 0)), action=()), r"state slot used twice: \[0\]"),
    (dict(action=(Dimension("a", 0, relative_to="nowhere"),)), "relative_to = 'nowhere' is unknown"),
])
def test_entries_that_make_no_sense(changes, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(droid(), **changes)


def test_names_and_ids_are_unique(registry):
    register(droid())
    with pytest.raises(ValueError, match=r"'other' \(id 17\) collides with 'droid'"):
        register(dataclasses.replace(droid(), name="other"))
    with pytest.raises(ValueError, match="'drod' is unknown; did you mean 'droid'"):
        get_embodiment("drod")


def test_tokenizer_of_the_fakes_refuses_long_prompts():
    with pytest.raises(ValueError, match="9 tokens, text length is 8"):
        tokenize("123456789")


def test_the_dual_arm_layout_is_the_published_one():
    """arXiv 2601.21998, code at 58c2ae5: the 16 external numbers land in [0..6, 28, 7..13, 29] of 30."""
    robot = get_embodiment("robotwin_dual_arm")
    np.testing.assert_array_equal(robot.action_slots, [*range(7), 28, *range(7, 14), 29])
    assert sorted(slot for part in DUAL_ARM_SLOTS.values() for slot in part) == list(range(30))
    head, left, right = (np.full((2, size, size, 3), i, np.uint8) for i, size in ((1, 8), (2, 8), (3, 8)))
    tiled = VIEW_LAYOUTS[robot.view_layout]([head, left, right], 12, 8)
    assert tiled.shape == (2, 12, 8, 3)
    assert (tiled[:, :4, :4] == 2).all() and (tiled[:, :4, 4:] == 3).all() and (tiled[:, 4:] == 1).all()
    with pytest.raises(ValueError, match="'t_shape' takes 3 views"):
        VIEW_LAYOUTS[robot.view_layout]([head, left], 12, 8)


def test_a_robots_repr_is_that_of_the_latent_caches_there_are():
    """Manifests hold it: one that changes makes every cache of that robot another run's."""
    assert repr(get_embodiment("pusht")) == (
        "Embodiment(name='pusht', id=1, views=('image',), view_layout='single', rate=10.0, horizon=None, "
        "state=(Dimension(name='agent_x', slot=0, relative_to=None, constant=False, low=None, high=None, "
        "max_speed=None, moves=None), Dimension(name='agent_y', slot=1, relative_to=None, constant=False, low=None, "
        "high=None, max_speed=None, moves=None)), action=(Dimension(name='target_x', slot=0, relative_to=None, "
        "constant=False, low=0, high=512, max_speed=None, moves='agent_x'), Dimension(name='target_y', slot=1, "
        "relative_to=None, constant=False, low=0, high=512, max_speed=None, moves='agent_y')), "
        "normalisation='quantile', prompt='{instruction}', instruction='push the T onto the green target')")
    assert repr(Dimension("joint", 0, sine_slot=3)).endswith("moves=None, sine_slot=3)")


RENAMED = [("agibot_g1_dreamzero", "agibot_g1_packed", 126), ("yam_dreamzero", "yam_packed", 132)]


@pytest.mark.parametrize("old, new, number", RENAMED)
def test_a_renamed_robot_is_found_under_its_old_name(old, new, number, caplog):
    with caplog.at_level(logging.WARNING):
        assert get_embodiment(old) is get_embodiment(new) and get_embodiment(new).id == number
    assert [record.getMessage() for record in caplog.records] == [f"embodiment {old!r} is now called {new!r}"]
    assert name_in_files(new) == name_in_files(old) == old and name_in_files("yam") == "yam"


def test_a_registered_robot_keeps_a_name_that_another_once_had(registry):
    mine = register(dataclasses.replace(droid(), name="yam_dreamzero"))
    assert get_embodiment("yam_dreamzero") is mine


@pytest.mark.parametrize("old, new, number", RENAMED)
def test_files_of_earlier_runs_hold_for_a_renamed_robot(old, new, number):
    """Checkpoints compare the mixture and a hash of statistics, latent caches the robot's name and repr."""
    robot = get_embodiment(new)
    dataset = Dataset("arms", FakeSource([40], rate=30.0), robot)
    assert describe_mixture([dataset], [index_windows(dataset, LAYOUT)])["arms"]["embodiment"] == old
    statistics = {"embodiment": old, "state": {"q01": [0.5]}}
    assert statistics_hash({"arms": statistics}) == statistics_hash({"arms": statistics | {"embodiment": new}})
    assert statistics_hash(statistics) == statistics_hash(statistics | {"embodiment": new})
    assert statistics_hash(statistics) != statistics_hash(statistics | {"embodiment": "yam"})
    plain = hashlib.sha256(json.dumps(statistics, sort_keys=True).encode()).hexdigest()  # as it was before the renaming
    assert statistics_hash(statistics) == plain[:16]
    text = repr(robot)
    before, now = ({"datasets": {"arms": {"embodiment": name, "robot": text.replace(f"name={new!r}", f"name={name!r}")}}}
                   for name in (old, new))
    configured = {"datasets": {"arms": {"embodiment": old, "robot": text}}}  # an old config, read by this code
    written = json.dumps({"identity": before, "windows_per_shard": 4}).encode()
    assert cache_format.parse_manifest(written, "manifest.json")["identity"] == cache_format.comparable(now) == cache_format.comparable(configured)
    other = {"datasets": {"arms": {"embodiment": "yam", "robot": repr(get_embodiment("yam"))}}}
    assert cache_format.comparable(other)["datasets"]["arms"]["embodiment"] == "yam" and cache_format.comparable(other) != cache_format.comparable(now)


def test_what_a_robot_may_be_sent_is_no_matter_for_latent_caches():
    """Caches of DROID were written before it had limits; another slot is still another robot."""
    robot = get_embodiment("droid")
    bare = dataclasses.replace(robot, action=tuple(dataclasses.replace(d, low=None, high=None, max_speed=None, moves=None)
                                                   for d in robot.action))
    moved = dataclasses.replace(robot, action=(dataclasses.replace(robot.action[0], slot=31), *robot.action[1:]))

    def identity(robot):
        return cache_format.comparable({"datasets": {"a": {"embodiment": "droid", "robot": repr(robot)}}})

    assert robot != bare and identity(robot) == identity(bare) != identity(moved)


@pytest.mark.parametrize("limits, sentence", [
    (dict(low=float("nan")), "low = nan: expected a finite number, or None"),
    (dict(high=float("inf")), "high = inf: expected a finite number, or None"),
    (dict(low=1, high=-1), "low = 1 is above high = -1"),
    (dict(max_speed=0), "max_speed = 0: expected more than 0 units per second"),
    (dict(max_speed=float("nan")), "max_speed = nan: expected a finite number, or None"),
])
def test_limits_that_are_none_are_refused_at_registration(limits, sentence):
    robot = get_embodiment("droid")
    with pytest.raises(ValueError, match=f"embodiment 'droid': action 'gripper': {sentence}"):
        dataclasses.replace(robot, action=(*robot.action[:7], dataclasses.replace(
            robot.action[7], **{"low": None, "high": None} | limits)))


def test_the_pipelines_modules_import_in_no_circle():
    """Types of annotations included."""
    root = Path(embodiments.__file__).parents[2]
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in (root / "data_pipelines").rglob("*.py")}
    graph = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                graph[name] |= {module for module in found if module in paths} - {name}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("data_pipelines.robots.embodiment") < order.index("data_pipelines.robots.normalisation")
