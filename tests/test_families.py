"""The contract of a family: the same tests for each built-in one and for the toy, which is known by its entry point
alone (docs/add_a_family.md). A family is trained once, on recordings of a robot with three cameras."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs import base
from launch import checkpoint as checkpoint_command
from launch import evaluate, export, import_weights, plan, train
from launch.exporting import lerobot
from launch.exporting.exported import open_export, read_encoders
from launch.serving.engine import Engine, Request
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests.family_subject import BATCH, TOY, Subject, engine_of, installed, parameters, random_batch, tiny, uninstalled
from tests.serving import client, serving
from world_model import families
from world_model.analysis.chips import CHIPS
from world_model.batch import check_batch
from world_model.families import FamilyError, all_families, make_model
from world_model.families.base.family import MissingPart
from world_model.parallel.axes import axes_of
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError

AT_REST = np.float32([0, -0.5, 0, -2, 0, 1.5, 0.7, 0.5])  # joints of a Franka, and its gripper


@pytest.fixture(scope="module", autouse=True)
def toy_installed(quick_compiles):
    with installed(TOY):
        yield


@pytest.fixture(scope="module", params=[*families.BUILT_IN, "toy"])
def subject(request, toy_installed, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def test_the_full_size_has_all_its_keys_and_every_large_parameter_a_sharding_rule(subject):
    family = subject.family
    config = base.get_config(family.name)
    for section, keys in family.config.items():
        assert keys.keys() <= set(config[section])
    model = Experiment(config).model
    assert model.axes().keys() == model.shapes.keys() and model.flops_per_sample > 1e9
    assert sum(p.size for p in model.shapes.values()) > 1e8
    with pytest.raises(ValueError, match=r"is named by no sharding rule.*param_axes"):
        axes_of(model.shapes, ())


def test_sizes_of_another_family_are_refused(subject):
    with pytest.raises(ValueError, match=rf"model\.depth means nothing to family '{subject.family.name}'; it has"):
        make_model(subject.family.name, depth=3)


def test_rows_with_and_without_encoders_give_the_loss_the_same(subject):
    inputs, frozen = subject.restored.experiment.inputs, subject.restored.frozen
    batch = random_batch(inputs.batch_fields())
    check_batch(batch, inputs.batch_fields(), BATCH)
    stored = jax.eval_shape(inputs.store, frozen, batch)
    for name, found in stored.items():
        assert (found.shape[1:], found.dtype) == inputs.stored_fields()[name]
    assert bool(stored) == bool(inputs.stored_from) == subject.family.imagines_video

    def shapes(rows: dict):
        return jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(inputs.encode, frozen, rows))

    assert shapes(batch) == shapes(random_batch(inputs.stored_fields()))


def test_it_trains_from_its_latent_cache_on_eight_devices(subject):
    before, after = (parameters(subject.run, step) for step in (1, 2))  # heads that begin at zero have moved in step 1
    assert subject.experiment.config.data.cache and all(np.isfinite(x).all() for x in after.values())
    trained = [name for name in after if re.search(subject.experiment.config.optimizer.trainable, name)]
    assert sum((before[name] != after[name]).any() for name in trained) > 0.9 * len(trained) > 0.7 * len(after)
    records = [json.loads(line) for line in (subject.run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 for record in records)
    *_, whole, each = (subject.run / "arrays.txt").read_text().splitlines()[-1].split()
    assert float(each) < float(whole) / 2


def test_killed_between_two_checkpoints_it_goes_on_to_the_same_bits(subject):
    """What a kill leaves behind: a checkpoint, and records of steps after it."""
    killed = subject.directory / "killed"
    shutil.copytree(subject.run, killed)
    shutil.rmtree(killed / "checkpoints/2")
    train.train(subject.experiment, killed)
    assert checkpoint.steps(killed / "checkpoints") == [1, 2]
    assert checkpoint_command.diff(killed, subject.run) == []


def test_a_student_of_it_is_trained_by_the_same_loop(subject):
    """From its weights, with a curve of its own; it is restored like any run."""
    config = subject.experiment.config.copy_and_resolve_references()
    with config.unlocked():
        base.student(config)
    config.train.update(init_from=str(subject.run), steps=1)
    train.train(Experiment(config), subject.directory / "student")
    record = json.loads((subject.directory / "student/metrics.jsonl").read_text())
    assert record["consistency_loss"] == record["loss"] > 0 and record["grad_norm"] > 0
    student = restore(subject.directory / "student")
    assert len(student.config.distill.teacher) == 64 and student.config.train.init_from == str(subject.run)
    before, after = parameters(subject.run, 2), parameters(subject.directory / "student", 1)
    assert sum((before[name] != after[name]).any() for name in after) > 0.6 * len(after)


def test_a_plan_finds_the_work_that_is_counted_in_the_compiled_step(subject, monkeypatch):
    monkeypatch.setattr(plan, "describe_topology", lambda *_: (CHIPS["v5p"], jax.devices()))
    planned = plan.plan(subject.experiment.config, "v5p:2x2x2")
    assert planned["chips"] == planned["mesh"]["fsdp"] == 8
    assert planned["parameters"] == sum(x.size for x in subject.restored.params.values())
    assert planned["executed_flops_per_sample"] == pytest.approx(planned["model_flops_per_sample"], rel=0.1)


def test_it_is_evaluated_on_what_was_held_out(subject):
    evaluation, arrays = evaluate.evaluate(subject.restored, say=str)
    assert evaluation["windows"] == 2 and evaluation["action"]["model_mse"] > 0
    assert arrays["predicted_actions"].shape == arrays["actions"].shape
    assert all(np.isfinite(x).all() for x in arrays.values())
    assert evaluation["loss"]["action_loss"] > 0
    imagined = ("video" in evaluation, "frames_predicted" in arrays, evaluate.describe(evaluation).startswith("video"))
    assert set(imagined) == {subject.family.imagines_video}


def test_a_setting_that_its_sampler_lacks_is_refused(subject):
    experiment = Experiment(tiny(subject.name))
    assert ("video" in experiment.sampler().schedules()) == subject.family.imagines_video
    with pytest.raises(ValueError, match=f"sampler of family '{subject.name}' has no setting 'temperature'"):
        experiment.sampler(temperature=1.0)


def test_a_restored_policy_acts_on_what_it_sees(subject):
    engine = subject.engine
    robot, state, rng = engine.robot, AT_REST, np.random.default_rng(0)
    under_way = state[None] + np.float32(0.05)

    def ask(block: int, in_flight):
        frames = rng.integers(0, 255, (1 if block == 1 else engine.block_frames, 32, 32, 3), np.uint8)
        answer, = engine.step([Request(1, block, dict.fromkeys(robot.embodiment.views, frames), state,
                                       engine.tokenize("push the T"), (7, 1), in_flight)])
        assert answer.actions.shape == (robot.horizon, 8) and np.isfinite(answer.actions).all()
        assert (answer.latents is not None) == subject.family.imagines_video
        assert (answer.gap is not None) == (subject.family.imagines_video and block > 1)
        return answer.actions

    first, again, second = ask(1, under_way[:0]), ask(1, under_way[:0]), ask(2, under_way)
    assert np.abs(first - again).max() > 1e-4  # of other pictures
    np.testing.assert_allclose(second[:1], under_way, atol=1e-5)
    assert np.abs(second[1:] - under_way).max() > 1e-2


def over_the_wire(engine: Engine) -> list[np.ndarray]:
    """What a public client is answered at the first frame and after each of two blocks."""
    rng = np.random.default_rng(0)
    with serving(engine) as (port, _):
        policy = client(port)
        said = policy.get_server_metadata()

        def observation(frames: int) -> dict:
            pictures = {name: rng.integers(0, 255, (frames, *about["shape"]), np.uint8)
                        for name, about in said["observation"].items() if about["dtype"] == "uint8"}
            return pictures | {"observation/state": AT_REST}

        counts = [said["frames"]["start"], *[said["frames"]["continue"]] * 2]
        return [policy.infer(observation(count) | {"session_id": "same noise"})["actions"] for count in counts]


@pytest.mark.filterwarnings("ignore:evaluate")
def test_it_is_served_over_the_wire_in_jax_and_in_pytorch(subject):
    answers = over_the_wire(subject.engine)
    assert {x.shape for x in answers} == {(subject.engine.robot.horizon, 8)}
    assert np.abs(np.diff(answers, axis=0)).max(axis=(1, 2)).min() > 1e-4
    model = open_export(subject.exported[0])
    if subject.family.torch_policy:
        np.testing.assert_allclose(over_the_wire(engine_of(model)), answers, atol=1e-4)
    else:
        with pytest.raises(MissingPart, match="family 'toy' has no torch policy, which launch.serve --export needs"):
            engine_of(model)


def test_an_export_is_what_was_trained_and_comes_back_with_the_same_bits(subject, tmp_path):
    out, report = subject.exported
    own, written = next(iter(subject.family.exports.items()))
    assert report["passed"] and report["compared_with"] == written.compared_with
    assert json.loads((out / "provenance.json").read_text())["family"] == subject.name
    found = import_weights.import_weights(subject.experiment.config, own, out, tmp_path / "imported")
    assert found["parameters_loaded"] == len(subject.restored.params)
    for name, x in parameters(tmp_path / "imported", 0).items():
        np.testing.assert_array_equal(x, subject.restored.params[name], err_msg=name)
    with pytest.raises(ValueError, match=f"--format=gguf: a model of family {subject.name} can be written as"):
        export.format_of(subject.family, "gguf")


def test_in_lerobots_layout_an_export_stands_once_and_opens_as_it_was(subject, tmp_path):
    out, _ = subject.exported
    shutil.copytree(out, tmp_path / lerobot.INSIDE)
    lerobot.pack(tmp_path, subject.restored, subject.engine.robot, None)
    assert (tmp_path / "model.safetensors").exists() and read_encoders(lerobot.inside(tmp_path)).keys() \
        == read_encoders(out).keys()
    with lerobot.plain_export(tmp_path) as found:
        files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert files == {path.relative_to(found): path.read_bytes() for path in found.rglob("*") if path.is_file()}


def test_an_export_in_bfloat16_says_what_that_changes(subject, tmp_path):
    report = export.export(subject.restored, tmp_path / "half", dtype="bfloat16")
    assert report["passed"] and max(report["cast"].values()) > 1e-4
    assert (tmp_path / "half/experiment_cfg").exists() == (subject.name == "dreamzero")


def test_what_was_trained_by_a_family_that_is_no_longer_installed_says_so(subject):
    name = subject.name
    assert subject.restored.step == 2
    with uninstalled(name):
        with pytest.raises(CheckpointError, match=rf"step 2: model.family = '{name}' is not installed; did you mean"):
            restore(subject.run)
        with pytest.raises(FamilyError, match=f"Installed: {', '.join(families.BUILT_IN)}$"):
            _ = subject.experiment.family
        assert name not in {family.name for family in all_families()}
    assert name in {family.name for family in all_families()}
