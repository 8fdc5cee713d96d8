"""LingBot-VLA's released layouts: written, read back to the same bits, run in PyTorch; what does not fit is named."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml

from configs import lingbot_vla_4b, lingbot_vla_v2_6b
from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.robots.normalisation import make_scale
from launch import export, import_weights
from launch.exporting.exported import open_export
from launch.serving.engine import Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored
from tests import tiny_policy
from tests.test_import_weights import read_back
from world_model.diffusion.inpainting import Inpainting
from world_model.families import get_family
from world_model.families.base.export import Trained
from world_model.families.lingbot_vla.torch.network import load, make_network
from world_model.families.lingbot_vla.torch.sampler import LingBotVLATorchSampler
from world_model.families.lingbot_vla.weights import norm_stats, released_format
from world_model.families.lingbot_vla.weights.names import TABLES
from world_model.training import checkpoint
from world_model.weights import conversion, names, safetensors_io
from world_model.weights.safetensors_io import Weights, WeightsError

pytestmark = pytest.mark.usefixtures("quick_compiles")
SHAPES = Path(__file__).parent / "goldens/shapes"
FAMILY = get_family("lingbot_vla")
CASES = {"v1": (lingbot_vla_4b, {}), "v2": (lingbot_vla_v2_6b, {}),
         "v2_queries": (lingbot_vla_v2_6b, {"query_tokens": 2, "query_seeds": 4, "teacher_width": 6,
                                                  "actions_see_future": False})}
ARMS = {"v1": "robotwin_joints_75", "v2": "robotwin_joints_55"}  # left joints, gripper, right joints, gripper


def config_of(case: str, **model):
    base, sizes = CASES[case]
    config = base.get_config("debug")
    config.model.update(sizes | model)
    config.train.compute_dtype = "float32"
    config.evaluate.solver_steps = 3
    return config


@functools.cache
def model_of(case: str, **model):
    return Experiment(config_of(case, **model)).model


@functools.cache
def params_of(case: str, **model) -> dict:
    return tiny_policy._weights(model_of(case, **model).shapes, np.random.default_rng(0))


def statistics_of(robot: Embodiment, config) -> dict:
    rng = np.random.default_rng(0)
    return {"dataset": "some", "embodiment": robot.name, "skipped": {}, "episodes": 1,
            "actions_per_block": config.layout.actions_per_block,
            **{part: tiny_policy._summary(rng.uniform(100, 400, (50, len(getattr(robot, part)))))
               for part in ("state", "action")}}


def trained_of(case: str) -> Trained:
    model, robot = model_of(case), get_embodiment(ARMS[case[:2]])
    return Trained(model, params_of(case), {"steps": 3}, {"some": statistics_of(robot, config_of(case))},
                   {"some": robot}, "", step=12)


@pytest.fixture(scope="module", params=CASES)
def released(request, tmp_path_factory):
    """(case, directory, comparison of the export)."""
    case, out = request.param, tmp_path_factory.mktemp(request.param)
    trained = trained_of(case)
    return case, out, write_of(case).write_and_compare(out, trained, np.dtype("float32"), 50_000)


def name_of(case: str) -> str:
    return "lingbot_vla" if case == "v1" else "lingbot_vla_v2"


def write_of(case: str):
    return FAMILY.exports[name_of(case)]


def hf_ckpt(directory: Path) -> Path:
    return released_format.weights_folder(directory)


def published(case: str, **model) -> dict[str, np.ndarray]:
    """A model's tensors under their published names."""
    spec = model_of(case, **model).spec
    found = names.to_published(params_of(case, **model), spec.head_dim, TABLES[spec.vision])
    return {released_format.PREFIX + name: x for name, x in found}


def write(directory: Path, tensors: dict) -> Path:
    directory.mkdir(parents=True)
    safetensors_io.write(directory, tensors.items())
    return directory


@pytest.mark.parametrize("config,file,tensors,values", [
    (lingbot_vla_4b, "lingbot_vla_4b", 1555, 4_197_425_739),
    (lingbot_vla_v2_6b, "lingbot_vla_v2_6b", 1708, 6_375_907_511)])
def test_names_and_shapes_at_full_size_are_the_published_ones(config, file, tensors, values):
    model = Experiment(config.get_config()).model
    found = names.published_shapes(model.shapes, model.spec.head_dim, TABLES[model.spec.vision])
    known = {name.removeprefix(released_format.PREFIX): tuple(shape)
             for name, shape in json.loads((SHAPES / f"{file}.json").read_text()).items()}
    assert {name: x.shape for name, x in found.items()} == known
    assert (len(found), sum(x.size for x in found.values())) == (tensors, values)


def test_pytorch_computes_the_actions_of_the_jax_model(released):
    _, _, found = released
    assert found.parity.keys() == {"all_views/actions", "a_view_missing/actions", "half_given/actions"}
    assert max(d.size for d in found.parity.values()) < 2e-5
    assert 1e-4 < max(d.size for d in found.bfloat16.values()) < 0.5


def test_what_is_written_is_read_back_to_the_same_bits(released):
    case, out, _ = released
    assert len(list(hf_ckpt(out).glob("model-*.safetensors"))) > 1
    params, spec = params_of(case), model_of(case).spec
    for source in (out, hf_ckpt(out), hf_ckpt(out).parent):
        found = conversion.read(FAMILY.imports[name_of(case)].open(source), params, spec)
        assert found.keys() == params.keys()
        for name, x in params.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_what_stands_beside_the_weights(released):
    """Slots: the arms' twelve joints, room for two, the grippers (facts of the released RoboTwin run)."""
    case, out, _ = released
    arguments = yaml.safe_load((out / "lingbotvla_cli.yaml").read_text())
    assert hf_ckpt(out) == out / "checkpoints/global_step_12/hf_ckpt"
    joints = ["{'arm.position': 14}", "{'end.position': 14}", "{'effector.position': 2}"]
    assert arguments["data"]["joints"][:3] == joints[:1] + joints[1 if case != "v1" else 2:]
    assert arguments["data"]["norm_type"] == "bounds_99_woclip" or case != "v1"
    assert arguments["train"]["max_action_dim"] == 32 and arguments["train"]["vlm_causal"] == (case != "v1")
    stats = json.loads((out / arguments["data"]["norm_stats_file"]).read_text())
    statistics = trained_of(case).statistics["some"]
    assert stats["count"] == 50
    assert stats["norm_stats"]["action.effector.position"]["q01"] == [statistics["action"]["q01"][i] for i in (6, 13)]
    assert len(stats["norm_stats"]["observation.state.arm.position"]["mean"]) == 12


def test_bfloat16_files_hold_rounded_weights_and_run(tmp_path):
    found = write_of("v2").write_and_compare(tmp_path, trained_of("v2"), np.dtype("bfloat16"), 10**9)
    assert max(d.size for d in found.parity.values()) < 2e-5 and found.cast
    weights = Weights(hf_ckpt(tmp_path))
    assert {dtype for _, dtype in weights.headers.values()} == {"BF16"}


def test_each_version_is_written_in_its_own_layout_alone(tmp_path):
    for case, other in (("v1", "v2"), ("v2", "v1")):
        with pytest.raises(ValueError, match=rf"--format={name_of(other)}: the model is of LingBot-VLA version "
                                             rf"{case[1]} .*; say --format={name_of(case)}$"):
            write_of(other).write_and_compare(tmp_path, trained_of(case), np.dtype("float32"), 10**9)
    adapted = trained_of("v1")
    adapted = adapted._replace(model=model_of("v1", lora_rank=2))
    with pytest.raises(ValueError, match="this layout has no adapters; say --merge_lora"):
        write_of("v1").write_and_compare(tmp_path, adapted, np.dtype("float32"), 10**9)


def test_each_version_is_refused_by_the_other(tmp_path):
    sources = {case: write(tmp_path / case, published(case)) for case in ("v1", "v2")}
    for case, other in (("v1", "v2"), ("v2", "v1")):
        with pytest.raises(WeightsError, match=rf"is of LingBot-VLA version {other[1]}; take a config of that version "
                                               rf"and say --format={name_of(other)}"):
            import_weights.import_weights(config_of(case), name_of(case), sources[other], None)
        with pytest.raises(WeightsError, match=rf"this format is of LingBot-VLA version {other[1]}.*the config is of "
                                               rf"version {case[1]}"):
            import_weights.import_weights(config_of(case), name_of(other), sources[other], None)
        with pytest.raises(WeightsError, match=r"is of a LingBot-VLA with its expert; say --format="):
            import_weights.import_weights(config_of(case), "qwen2_5_vl" if case == "v1" else "qwen3_vl", sources[case],
                                          None)


def test_no_projection_begins_anew_in_silence(tmp_path):
    """14 instead of 75 dimensions: the released loader initialised them afresh (lingbot-vla, issue 43)."""
    source, smaller = write(tmp_path / "released", published("v1")), config_of("v1", action_dim=14)
    with pytest.raises(WeightsError, match=r"model\.action_in_proj\.weight \(ours: action_embedding\.kernel\): expected "
                                           r"shape \(32, 14\), found \(32, 32\).*--fit='PATTERN=slice\|pad_zero\|fresh"):
        import_weights.import_weights(smaller, "lingbot_vla", source, None)
    report = import_weights.import_weights(smaller, "lingbot_vla", source, tmp_path / "out",
                                           {"action_(embedding|head)": "slice"})
    found = read_back(tmp_path / "out")["action_head.kernel"]
    np.testing.assert_array_equal(found, params_of("v1")["action_head.kernel"][:, :14])
    assert report["fitted"] == dict.fromkeys(
        ["action_embedding.kernel", "action_head.kernel", "action_head.bias"], "slice") and not report["fresh"]


def test_query_tokens_that_are_not_wanted_stay_in_the_source(tmp_path):
    tensors = published("v2_queries")
    source, what = write(tmp_path / "source", tensors), "query tokens and teachers' heads"
    report = import_weights.import_weights(config_of("v2"), "lingbot_vla_v2", source, tmp_path / "out")
    assert report["left_in_source"] == {what: 84} and not report["fresh"]
    assert f"left in the source: 84 tensors of the {what}" in import_weights.describe(report)
    report = import_weights.import_weights(config_of("v2_queries"), "lingbot_vla_v2", source, tmp_path / "with")
    assert not report["left_in_source"] and not report["fresh"]
    np.testing.assert_array_equal(read_back(tmp_path / "with")["queries.future_video_seeds"],
                                  tensors["model.future_video_align_embs"])
    plain = write(tmp_path / "plain", published("v2"))
    with pytest.raises(WeightsError, match=r"84 missing \(current_shared_task_proj\.bias"):
        import_weights.import_weights(config_of("v2_queries"), "lingbot_vla_v2", plain, None)
    deep = write(tmp_path / "depth", published("v1") | {
        "model.depth_align_head.projector.proj_in1.weight": np.ones((2, 2), np.float32)})
    report = import_weights.import_weights(config_of("v1"), "lingbot_vla", deep, None)
    assert report["left_in_source"] == {"head of a teacher of depth, which training alone reads": 1}


@pytest.mark.parametrize("case,name", [("v1", "qwen2_5_vl"), ("v2_queries", "qwen3_vl")])
def test_a_vision_language_model_alone_gets_a_fresh_expert_which_is_printed(tmp_path, monkeypatch, case, name):
    monkeypatch.setattr(import_weights, "fresh_values",
                        lambda model, seed, names: lambda name: np.full(model.shapes[name].shape, 7, np.float32))
    vlm = "model.qwenvl_with_expert.qwenvl."
    tensors = {key.removeprefix(vlm): x for key, x in published(case).items() if key.startswith(vlm)}
    source = write(tmp_path / "qwen", tensors | {"lm_head.weight": np.ones((4, 4), np.float32)})
    report = import_weights.import_weights(config_of(case), name, source, tmp_path / "out")
    params, fresh, found = params_of(case), set(report["fresh"]), read_back(tmp_path / "out")
    beginnings = ("expert_", "state_", "action_", "time_", "queries.")
    assert fresh == {key for key in params if key.startswith(beginnings)}
    assert report["left_in_source"] == {"head of the next word": 1}
    assert "fresh: action_head.kernel (a vision-language model has no actions)" in import_weights.describe(report)
    for key, x in found.items():
        np.testing.assert_array_equal(x, np.full_like(x, 7) if key in fresh else params[key], err_msg=key)


def test_weights_of_several_steps_or_of_other_arguments_are_refused(tmp_path):
    for step in (1, 2):
        write(tmp_path / f"run/checkpoints/global_step_{step}/hf_ckpt", published("v1"))
    with pytest.raises(WeightsError, match=r"holds the weights of 2 steps, .*step_1.*step_2.*; give the directory of one"):
        import_weights.import_weights(config_of("v1"), "lingbot_vla", tmp_path / "run", None)
    one = tmp_path / "run/checkpoints/global_step_2/hf_ckpt"
    (tmp_path / "run/lingbotvla_cli.yaml").write_text("train: {vlm_causal: true}\n")
    with pytest.raises(WeightsError, match=r"lingbotvla_cli\.yaml: train\.vlm_causal: expected False .*found True"):
        import_weights.import_weights(config_of("v1"), "lingbot_vla", one, None)
    two = write(tmp_path / "two", published("v2_queries"))
    for content, message in (("{token_top_k: 1}", "train.token_top_k: expected 2 .*found 1"),
                             ("{align_params: {num_task_tokens: 2}}",
                              "expected num_task_tokens = 2 .* = True .*, found 2 and False")):
        (two / "lingbotvla_cli.yaml").write_text(f"train: {content}\n")
        with pytest.raises(WeightsError, match=message):
            import_weights.import_weights(config_of("v2_queries"), "lingbot_vla_v2", two, None)


def test_published_statistics_are_read_for_a_robot_with_their_slots(released, tmp_path):
    case, out, _ = released
    config, robot = config_of(case), ARMS[case[:2]]
    config.data.datasets.arms = {"embodiment": robot, "weight": 1.0}
    import_weights.import_weights(config, name_of(case), out, tmp_path / "out", statistics=out / "norm_stats/some.json")
    found = checkpoint.read_json(tmp_path / "out/checkpoints", 0, "meta")["statistics"]["arms"]
    known = statistics_of(get_embodiment(robot), config)
    assert found["embodiment"] == robot and found["actions_per_block"] == 8
    for part in ("state", "action"):
        assert all(found[part][key] == known[part][key] for key in ("mean", "std", "q01", "q99", "min", "max"))
    make_scale(found, get_embodiment(robot), "action")


def test_statistics_of_another_slot_table_are_refused(tmp_path):
    """Version 1 has grippers in slots 14 and 15, version 2 in 28 and 29."""
    robot, file = get_embodiment(ARMS["v1"]), tmp_path / "stats.json"
    content = norm_stats.published(robot, norm_stats.TABLES[1], statistics_of(robot, config_of("v1")))
    file.write_text(json.dumps(content))

    def read(joints, version, name):
        return norm_stats.read(file, joints, version, get_embodiment(name), 8)

    assert read(None, 1, ARMS["v1"])["action"] == read(["{'arm.position': 14}", {"effector.position": 2}], 2,
                                                       ARMS["v1"])["action"]
    with pytest.raises(WeightsError, match=r"statistics of another slot table: they go with \{'arm\.position': 14, "
                                           r"'effector\.position': 2\}, robot 'robotwin_joints_55' has its action in "
                                           r"slots .*28"):
        read(None, 1, ARMS["v2"])
    with pytest.raises(WeightsError, match=r"another slot table: .*'hand\.position': 12.*'yam' has its action in slots"):
        read(None, 2, "yam")
    with pytest.raises(WeightsError, match=r"statistics of another robot: expected \{'action\.arm\.position': 2, .* of "
                                           r"'pusht', found \{'action\.arm\.position': 12, "):
        read(None, 1, "pusht")
    for key in content["norm_stats"]["action.arm.position"]:
        content["norm_stats"]["action.arm.position"][key] = [[0.0] * 12] * 50
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"action\.arm\.position has statistics for each step of a chunk"):
        read(None, 1, ARMS["v1"])
    with pytest.raises(ValueError, match="this format has no file of statistics"):
        import_weights.read_statistics(FAMILY.imports["qwen3_vl"], file, tmp_path, config_of("v1"))
    with pytest.raises(ValueError, match=r"data\.datasets has no robot"):
        import_weights.read_statistics(FAMILY.imports["lingbot_vla"], file, tmp_path, config_of("v1"))


def test_a_robot_in_other_slots_has_groups_of_its_own():
    """YAM's right arm begins in slot 8, its grippers are in 7 and 15."""
    robot = get_embodiment("yam")
    table = norm_stats.table_of(robot, 1)
    assert table == {"joints_0": 7, "joints_7": 8, "joints_15": 1}
    assert norm_stats.groups(table, robot.action)["joints_7"] == list(range(6, 13))
    apart = dataclasses.replace(robot, state=(Dimension("x", 3),), action=(Dimension("x", 2), Dimension("y", 3)))
    assert norm_stats.table_of(apart, 1) is None
    turned = dataclasses.replace(robot, state=(dataclasses.replace(robot.state[0], sine_slot=20), *robot.state[1:]))
    assert norm_stats.table_of(turned, 2) is None  # sines stand where no action does
    assert norm_stats.deviations("some", apart, 1) == [
        "yam: its server wants state and action in the same slots; there are no statistics of dataset 'some' for it",
        "yam: its server has no quantile and normalises by bounds_99_woclip, the nearest, which does not clip"]


@pytest.mark.parametrize("kind,names", [  # of version 1, of version 2; * where that is the nearest that it has
    ("bounds_99", ("bounds_99_woclip*", "bounds_99")), ("bounds_99_unclipped", ("bounds_99_woclip", "bounds_99_woclip")),
    ("range", ("minmax*", "minmax")), ("range_unclipped", ("minmax", "minmax_woclip")),
    ("quantile", ("bounds_99_woclip*", "bounds_99_woclip*")), ("mean_std", ("meanstd", "meanstd"))])
def test_normalisation_is_called_as_each_versions_server_calls_it(kind, names):
    robot = dataclasses.replace(get_embodiment("robotwin_joints_75"), normalisation=kind)
    for version, name in enumerate(names, 1):
        found = norm_stats.arguments(robot, norm_stats.TABLES[1], version)["norm_type"]
        assert name.rstrip("*") in (found if version == 1 else found[0])
        assert len(norm_stats.deviations("some", robot, version)) == name.endswith("*")


def test_a_served_export_answers_as_the_checkpoint_does(tmp_path):
    """The first pictures, later ones, and actions that are on their way; the robot has one camera, the model two."""
    config, robot = config_of("v1"), get_embodiment("pusht")
    restored = Restored(Experiment(config), 1, {name: jnp.asarray(x) for name, x in params_of("v1").items()}, {},
                        {"some": statistics_of(robot, config)}, tmp_path)
    export.export(restored, tmp_path / "export")
    engines = [Engine(model, choose_robot(model, None, None), sessions=1, batch_sizes=(1,))
               for model in (restored, open_export(tmp_path / "export"))]
    rng, first = np.random.default_rng(0), engines[0]
    state, text = np.array([200.0, 300.0]), first.tokenize("push the T")
    for block, flight in ((1, []), (2, [[210, 290]])):
        frames = rng.integers(0, 255, (1 if block == 1 else first.block_frames, 32, 32, 3), np.uint8)
        request = Request(0, block, {"image": frames}, state, text, (7, block), np.array(flight).reshape(-1, 2))
        with jax.default_matmul_precision("highest"):
            ours, theirs = (engine.step([request])[0].actions for engine in engines)
        np.testing.assert_allclose(ours, theirs, atol=0.01)  # of 300
        assert np.ptp(ours, axis=0).max() > 1


@pytest.mark.parametrize("config,queries", [(lingbot_vla_4b, 0), (lingbot_vla_v2_6b, 8)])
def test_at_full_size_no_step_of_pytorch_waits_for_a_number(config, queries):
    """Tensors without values: whatever depended on one would raise an error."""
    config = config.get_config()
    config.model.query_tokens = queries
    spec = Experiment(config).model.spec
    runtime = LingBotVLATorchSampler(make_network(spec), spec, steps=2)

    def tensor(*shape, dtype):
        return torch.empty(2, *shape, dtype=dtype, device="meta")

    layout, views = spec.layout, spec.views
    shape = layout.actions_per_block, spec.action_dim
    seen = runtime.encode_prefix(tensor(views, layout.height, layout.width, 3, dtype=torch.uint8),
                       tensor(views, dtype=torch.bool), tensor(spec.text_length, dtype=torch.int32),
                       tensor(dtype=torch.int32))
    given = Inpainting(tensor(*shape, dtype=torch.float32), tensor(*shape, dtype=torch.bool))
    actions = runtime.denoise(seen, tensor(spec.state_dim, dtype=torch.float32), tensor(*shape, dtype=torch.float32),
                              given)
    assert actions.shape == (2, *shape) and actions.dtype == torch.float32
    assert len(seen.layers) == 36 and seen.mask.shape == (2, 51, spec.prefix_tokens + 51)


def test_an_export_that_is_damaged_is_named(released, tmp_path):
    case, out, _ = released
    with pytest.raises(WeightsError, match=r"wamax\.json: missing; .* is no export of a LingBot-VLA model"):
        load(tmp_path)
    settings = json.loads((out / "wamax.json").read_text())
    (tmp_path / "wamax.json").write_text(json.dumps(settings | {"spec": settings["spec"] | {"action_dim": 31}}))
    (tmp_path / "checkpoints").symlink_to(out / "checkpoints")
    with pytest.raises(WeightsError, match=r"model\.action_in_proj\.weight: expected F32 \(32, 31\), found F32 \(32, 32\)"):
        load(tmp_path)
    spec, rollout, dtype = released_format.read_settings(out)
    assert (spec, rollout, dtype) == (model_of(case).spec, {"steps": 3}, "float32")
