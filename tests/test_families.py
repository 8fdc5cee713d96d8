"""The contract of a family: the same tests for each built-in one and for the toy, which is known by its entry point
alone (docs/add_a_family.md)."""

import contextlib
import dataclasses
import functools
import importlib
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, lingbot_vla_4b
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.statistics import statistics_hash
from launch import export
from launch.exporting.exported import open_export
from launch.serving.engine import Engine, Request, choose_robot
from launch.setup import training
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests import tiny_policy
from world_model import families
from world_model.analysis.program import Program
from world_model.batch import check_batch
from world_model.families import FamilyError, all_families, get_family, make_model
from world_model.families.base.family import Family, MissingPart
from world_model.parallel import sharding
from world_model.parallel.axes import axes_of
from world_model.training.checkpoint import CheckpointError, make_meta
from world_model.training.checkpoint_writer import Checkpoints
from world_model.weights.safetensors_io import Weights

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tests/toy_family/src"
PAGE = ROOT / "docs/add_a_family.md"
BATCH = 2


def look_again() -> None:
    """Forgets which plug-ins there are."""
    importlib.invalidate_caches()
    families._plug_ins.cache_clear()
    families.get_family.cache_clear()


@contextlib.contextmanager
def search_path(change):
    """The plug-ins of another sys.path, change(sys.path)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", change(sys.path))
        look_again()
        yield
    look_again()


def installed(directory: Path):
    return search_path(lambda path: [str(directory), *path])


def without_toy():
    return search_path(lambda path: [each for each in path if each != str(TOY)])


@pytest.fixture(scope="module", autouse=True)
def toy_installed():
    jax.config.update("jax_disable_most_optimizations", True)
    with installed(TOY):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny(name: str):
    """A config of the family at a size at which compiling is what takes time."""
    if name == "toy":
        c = base.get_config(name)
        c.model.update(dim=32, ffn_dim=64, num_heads=4, kv_heads=2, num_layers=2, views=2, patch=8, text_length=32)
        c.layout.update(height=16, width=16, actions_per_block=4)
        c.train.update(remat="none", compute_dtype="float32")
    elif name == "lingbot_vla":
        c = lingbot_vla_4b.get_config("debug")
        c.train.compute_dtype = "float32"
    else:
        c = tiny_policy.config(arm="debug" if name == "dreamzero" else "lingbot_va_debug")
        with c.unlocked():
            c.model.family = name
            for section, keys in get_family(name).config.items():
                c[section].update({key: value for key, value in keys.items() if key not in c[section]})
    c.model.update({"action_stream_dim": 32, "action_ffn_dim": 64} if name == "lingbot_va_mot" else {})
    c.train.global_batch_size = BATCH
    c.optimizer.update(warmup_fraction=0.0, learning_rate=1e-2)  # the first step moves
    c.evaluate.update({key: 2 for key in ("solver_steps", "action_steps") if key in c.evaluate})
    return c


def random_batch(fields: dict) -> dict:
    """Rows of those fields; every step and dimension is real."""
    rng = np.random.default_rng(0)

    def values(shape, dtype):
        dtype, shape = np.dtype(dtype), (BATCH, *shape)
        if dtype.kind == "b":
            return np.ones(shape, dtype)
        return rng.integers(1, 8, shape).astype(dtype) if dtype.kind in "iu" else rng.normal(size=shape).astype(dtype)

    return {name: values(*field) for name, field in fields.items()} | {"sample_index": np.arange(BATCH, dtype=np.uint32)}


@dataclasses.dataclass
class Subject:
    """A family at a tiny size, with weights under which every output depends on every input."""

    experiment: Experiment
    directory: Path

    @property
    def family(self) -> Family:
        return self.experiment.family

    @functools.cached_property
    def params(self) -> dict:
        return tiny_policy._weights(self.experiment.model.shapes, np.random.default_rng(0))

    @functools.cached_property
    def kept(self) -> dict:
        layout = self.experiment.layout
        clips = np.random.default_rng(0).integers(0, 255, (8, layout.frames, layout.height, layout.width, 3), np.uint8)
        return self.experiment.fit_encoders(types.SimpleNamespace(cache=None, clips=lambda count: clips))

    @functools.cached_property
    def frozen(self) -> dict:
        return self.experiment.load_encoders(self.kept)

    @functools.cached_property
    def batch(self) -> dict:
        return random_batch(self.experiment.inputs.batch_fields())

    @functools.cached_property
    def restored(self):
        """What `launch.setup.restore` makes of a checkpoint."""
        config, robot, rng = self.experiment.config, get_embodiment("pusht"), np.random.default_rng(0)
        summaries = {part: tiny_policy._summary(rng.uniform(100, 400, (50, len(getattr(robot, part)))))
                     for part in ("state", "action")}
        statistics = {"some": {"dataset": "some", "embodiment": robot.name, "skipped": {}, "episodes": 1,
                               "actions_per_block": config.layout.actions_per_block, **summaries}}
        state = {"params": self.params, "step": jnp.int32(1)}
        meta = make_meta(state, self.kept, family=config.model.family, config=json.loads(config.to_json()),
                         statistics=statistics, statistics_hash=statistics_hash(statistics), code_version="")
        writer = Checkpoints(self.directory / "run/checkpoints", keep_last=1)
        writer.save(1, state, data={}, meta=meta, frozen=self.kept)
        writer.close()
        return restore(self.directory / "run")

    @functools.cached_property
    def exported(self) -> tuple[Path, dict]:
        """(directory, report) of launch.export."""
        return self.directory / "export", export.export(self.restored, self.directory / "export")


@pytest.fixture(scope="module", params=[*families.BUILT_IN, "toy"])
def subject(request, toy_installed, tmp_path_factory):
    return Subject(Experiment(tiny(request.param)), tmp_path_factory.mktemp(request.param))


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
    inputs, batch = subject.experiment.inputs, subject.batch
    check_batch(batch, inputs.batch_fields(), BATCH)
    stored = jax.eval_shape(inputs.store, subject.frozen, batch)
    for name, found in stored.items():
        assert (found.shape[1:], found.dtype) == inputs.stored_fields()[name]
    assert bool(stored) == bool(inputs.stored_from) == subject.family.imagines_video

    def shapes(rows: dict):
        return jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(inputs.encode, subject.frozen, rows))

    assert shapes(batch) == shapes(random_batch(inputs.stored_fields()))


def test_the_loss_does_the_work_that_is_counted(subject):
    """Products of the program as the compiler gets it; encoders have run before."""
    experiment, inputs = subject.experiment, subject.experiment.inputs
    frozen = {part: subject.frozen[part] for part in inputs.needs_when_stored()}
    rows = random_batch(inputs.stored_fields())

    def loss(params, rows):
        return experiment.loss_fn(params, rows, jax.random.key(0), experiment.loss.count(rows), frozen)

    text = jax.jit(loss).lower(experiment.model.shapes, rows).compiler_ir("hlo").as_hlo_text()
    counted = sum(flops for part in subject.family.forward_flops(experiment.model.spec).values() for flops, _ in part)
    assert Program(text).executed_flops() == pytest.approx(counted * BATCH, rel=0.15)


def test_a_step_trains_on_two_devices(subject):
    experiment, batch = subject.experiment, subject.batch
    mesh = training.make_mesh(experiment.config, jax.devices()[:2])
    with jax.set_mesh(mesh):
        make_state, target = training.make_target(experiment, mesh)
        frozen = [training.place(subject.frozen, mesh)] if subject.frozen else []
        state = training.start(experiment, make_state, target)
        placed = sharding.put_batch(batch, mesh)
        step = training.make_step(experiment, target, *frozen)
        before = jax.tree.map(np.array, state["params"])
        for _ in range(2):  # heads that begin at zero pass no gradient on in the first
            state, metrics = step(state, placed, *frozen)
    after, metrics = jax.device_get((state["params"], metrics))
    assert all(np.isfinite(x) for x in jax.tree.leaves((metrics["loss"], metrics["grad_norm"]))) and metrics["loss"] > 0
    assert all(np.isfinite(x).all() for x in after.values())
    assert sum((before[name] != after[name]).any() for name in after) > len(after) / 2
    assert any(not p.sharding.is_fully_replicated for p in target["params"].values())


def test_the_sampler_predicts_a_window(subject):
    experiment = subject.experiment
    example = experiment.inputs.encode(subject.frozen, subject.batch)
    sampler = experiment.sampler()
    found = sampler(subject.params, experiment.inputs.conditions(subject.frozen, example),
                    jax.random.split(jax.random.key(0), BATCH))
    assert found.actions.shape == subject.batch["actions"].shape and np.isfinite(found.actions).all()
    assert (found.latents is not None) == subject.family.imagines_video == ("video" in sampler.schedules())
    with pytest.raises(ValueError, match=f"sampler of family '{subject.family.name}' has no setting 'temperature'"):
        experiment.sampler(temperature=1.0)


def test_a_restored_policy_acts_on_what_it_sees(subject):
    robot = choose_robot(subject.restored, None, None)
    engine = Engine(subject.restored, robot, sessions=2, batch_sizes=(1,))
    state, rng = np.array([200.0, 300.0]), np.random.default_rng(0)

    def ask(block: int, *flight):
        frames = rng.integers(0, 255, (1 if block == 1 else engine.block_frames, 32, 32, 3), np.uint8)
        answer, = engine.step([Request(1, block, {"image": frames}, state, engine.tokenize("push the T"), (7, 1),
                                       np.array(flight).reshape(-1, 2))])
        assert answer.actions.shape == (robot.horizon, 2) and np.isfinite(answer.actions).all()
        assert (answer.latents is not None) == subject.family.imagines_video
        assert (answer.gap is not None) == (subject.family.imagines_video and block > 1)
        return answer.actions

    first, again, second = ask(1), ask(1), ask(2, [210, 290])
    assert np.abs(first - again).max() > 1e-3  # of other pictures
    np.testing.assert_allclose(second[0], [210, 290], atol=0.01)
    assert np.abs(second[1:] - [210, 290]).max() > 1


def test_an_export_is_what_was_trained(subject):
    out, report = subject.exported
    assert report["passed"] and report["compared_with"] == next(iter(subject.family.exports.values())).compared_with
    assert json.loads((out / "provenance.json").read_text())["family"] == subject.family.name
    with pytest.raises(ValueError, match=f"--format=gguf: a model of family {subject.family.name} can be written as"):
        export.format_of(subject.family, "gguf")


def test_an_export_without_a_pytorch_runtime_holds_the_same_bits_and_says_what_is_missing(subject):
    if subject.family.torch_policy:
        return  # tests/test_exported.py serves these
    out, _ = subject.exported
    written = Weights(out)
    assert written.keys() == subject.params.keys()
    for name, x in subject.restored.params.items():
        np.testing.assert_array_equal(written[name], x)
    with pytest.raises(MissingPart, match="family 'toy' has no torch policy, which launch.serve --export needs"):
        open_export(out).policy(1, np.ones(2, bool), (1,))


@pytest.mark.parametrize("part", ["torch_policy", "torch_step", "golden", "imports", "render_mask"])
def test_a_part_that_is_left_out_is_named_with_who_wants_it(part):
    with pytest.raises(MissingPart, match=f"family 'toy' has no {part.replace('_', ' ')}, which launch.x needs"):
        get_family("toy").part(part, "launch.x")


def test_an_unknown_family_is_answered_with_the_nearest():
    with pytest.raises(FamilyError, match=r"'dreamzer' is not installed; did you mean 'dreamzero'\? .*lingbot_va.*toy"):
        get_family("dreamzer")
    with pytest.raises(FamilyError, match="did you mean 'toy'"):
        base.get_config("tony")


def test_what_was_trained_by_a_family_that_is_no_longer_installed_says_so(tmp_path):
    toy = Subject(Experiment(tiny("toy")), tmp_path)
    assert toy.restored.step == 1
    with without_toy():
        with pytest.raises(CheckpointError, match=r"step 1: model.family = 'toy' is not installed; did you mean"):
            restore(tmp_path / "run")
        with pytest.raises(FamilyError, match="Installed: dreamzero, lingbot_va, lingbot_va_mot$"):
            _ = toy.experiment.family
        assert "toy" not in {family.name for family in all_families()}
    assert "toy" in {family.name for family in all_families()}


@pytest.mark.parametrize("source, problem", [
    ("import a_module_that_is_not_there", "cannot be imported: ModuleNotFoundError: No module named 'a_module_that"),
    ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    ("", "cannot be imported: AttributeError: .*FAMILY"),
    ("FAMILY = 3", "should be a Family of that name, found 'int'"),
    ("from toy_family import FAMILY", "should be a Family of that name, found 'toy'"),
])
def test_a_broken_plug_in_gives_its_own_error_and_the_others_go_on(tmp_path, monkeypatch, source, problem):
    monkeypatch.delitem(sys.modules, "broken_family", raising=False)
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wamax.families]\nbroken = broken_family:FAMILY\n")
    (tmp_path / "broken_family.py").write_text(source + "\n")
    with installed(tmp_path):
        with pytest.raises(FamilyError, match=rf"family 'broken'.*broken_family:FAMILY.*{problem}"):
            get_family("broken")
        with pytest.warns(UserWarning, match="family 'broken'"):
            found = [family.name for family in all_families()]
    assert found == [*families.BUILT_IN, "toy"]


def test_the_page_names_every_part_and_files_that_exist():
    text = PAGE.read_text()
    for field in dataclasses.fields(Family):
        assert f"`{field.name}`" in text, field.name
    tree = re.search(r"```text\n(.*?)```", text, re.S)[1]
    named = re.findall(r"([\w.-]+/)?([\w]+\.py|METADATA|entry_points\.txt)", tree)
    there = {path.name for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {name for _, name in named} == there
    assert (TOY / "toy_family-1.0.dist-info/entry_points.txt").read_text() in text


def test_the_toy_is_as_small_as_the_page_says():
    files = [path for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(len(path.read_text().splitlines()) for path in files) < 300
