"""Few-step students: the target of consistency, streams apart and together, and a student that is nearer to its teacher's
many steps than the teacher's own single one."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base, distill, quickstart
from launch import sweep
from launch.reporting import comparison
from launch.setup import initial, values
from launch.setup.experiment import Experiment
from tests import tiny_policy
from world_model.families.base.loss import Loss
from world_model.families.base.student import StudentLoss
from world_model.families.dreamzero.loss import DreamZeroLoss
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True)
class TwoStreams(Loss):
    """A stream's velocity is a parameter times the sum of both streams' levels; the data's is 3."""

    def predict(self, params, example, sampled):
        total = sampled["video"] + sampled["action"]
        return {name: params["w"] * total[:, None] for name in sampled}, None

    def targets(self, example, sampled):
        return {name: jnp.full((len(level), 2), 3.0) for name, level in sampled.items()}  # a column is left out

    def quieter(self, sampled, by, streams):
        lower = {name: level - by * (name in streams) for name, level in sampled.items()}
        return lower, {name: (lower[name] / sampled[name])[:, None] for name in sampled}

    def loss_of(self, predicted, targets, example, sampled, counts):
        loss = sum(jnp.square(predicted[0][name] - targets[name]).sum() for name in sampled)
        return loss, {"video_loss": loss}


@pytest.mark.parametrize("streams, other", [("together", 0.5 - 0.25), ("apart", 0.5)])
def test_what_is_asked_is_the_students_own_answer_at_a_lower_level(streams, other):
    """v = (1 - r / s) (eps - x0) + (r / s) v(x_r): of the video, from 1 to 3/4; the actions beside it go along or do
    not. No gradient goes through it."""
    own, params = TwoStreams(None), {"w": jnp.float32(2.0)}
    sampled = {"video": jnp.ones(3), "action": jnp.full(3, 0.5)}
    student = StudentLoss(None, own, streams, levels=4)
    found = student.consistent(params, None, sampled)
    np.testing.assert_allclose(found["video"], np.full((3, 1), 0.25 * 3 + 0.75 * 2 * (0.75 + other)), rtol=1e-6)
    (loss, metrics), slope = jax.value_and_grad(student.loss_at, has_aux=True)(params, None, sampled, {})
    assert metrics["consistency_loss"] == metrics["video_loss"] == loss
    fixed = jax.grad(lambda p: own.loss_of(own.predict(p, None, sampled), found, None, sampled, {})[0])(params)
    np.testing.assert_allclose(slope["w"], fixed["w"], rtol=1e-6)


def test_a_family_whose_loss_knows_no_lower_levels_has_no_students():
    with pytest.raises(ValueError, match="Loss says nothing of lower noise levels .*: its family has no students"):
        StudentLoss(None, Loss(None))


STREAMS, ROWS, WIDTH = ("action", "video"), 256, 96


def column(x):
    return x[:, None]


def velocity(params, x, levels):
    """{stream: velocity} of noisy points at their levels, by a network of three layers."""
    h = jnp.concatenate([*(x[name] for name in STREAMS), *(column(levels[name]) for name in STREAMS)], axis=1)
    for i in range(2):
        h = jax.nn.silu(h @ params[f"kernel_{i}"] + params[f"bias_{i}"])
    return dict(zip(STREAMS, jnp.split(h @ params["kernel_2"], 2, axis=1)))


@dataclasses.dataclass(frozen=True)
class TwoWays(Loss):
    """Points of a plane for video and actions: both lie at (1, 1), or both at (-1, -1). Each has its own level."""

    def sample(self, keys, example, key):
        del keys
        draws = jax.random.split(key, 4)
        levels = {name: jax.random.uniform(draw, (ROWS,), minval=0.01) for name, draw in zip(STREAMS, draws)}
        return levels, {name: jax.random.normal(draw, (ROWS, 2)) for name, draw in zip(STREAMS, draws[2:])}

    def predict(self, params, example, sampled):
        levels, noise = sampled
        noisy = {name: example + column(levels[name]) * (noise[name] - example) for name in STREAMS}
        return velocity(params, noisy, levels), None

    def targets(self, example, sampled):
        return {name: sampled[1][name] - example for name in STREAMS}

    def quieter(self, sampled, by, streams):
        levels, noise = sampled
        lower = {name: jnp.maximum(level - by * (name in streams), 0) for name, level in levels.items()}
        return (lower, noise), {name: column(lower[name] / levels[name]) for name in STREAMS}

    def loss_of(self, predicted, targets, example, sampled, counts):
        return sum(jnp.square(predicted[0][name] - targets[name]).mean() for name in STREAMS), {}


@functools.partial(jax.jit, static_argnums=(0, 2))
def trained(loss: Loss, params: dict, steps: int, rate: float) -> dict:
    """Adam on fresh samples, rate falling to nothing."""
    optimizer = optax.adam(lambda count: rate * (1 - count / steps))

    def step(carry, key):
        params, opt = carry
        example = jnp.sign(jax.random.normal(key, (ROWS, 1))) * jnp.ones(2)
        sampled = loss.sample(None, example, jax.random.fold_in(key, 1))
        grads, _ = jax.grad(loss.loss_at, has_aux=True)(params, example, sampled, {})
        updates, opt = optimizer.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), steps))[0][0]


def sampled_with(params: dict, steps: int) -> dict:
    """{stream: points} after Euler steps from the same noise, both streams at one level."""
    draws = jax.random.split(jax.random.key(7))
    x = {name: jax.random.normal(draw, (ROWS, 2)) for name, draw in zip(STREAMS, draws)}
    for level in np.linspace(1, 0, steps, endpoint=False):
        found = velocity(params, x, dict.fromkeys(STREAMS, jnp.full(ROWS, level)))
        x = {name: x[name] - found[name] / steps for name in STREAMS}
    return x


@pytest.fixture(scope="module")
def teacher():
    rng = np.random.default_rng(0)
    shapes = {"kernel_0": (6, WIDTH), "bias_0": (WIDTH,), "kernel_1": (WIDTH, WIDTH), "bias_1": (WIDTH,),
              "kernel_2": (WIDTH, 4)}
    params = {name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32) for name, shape in shapes.items()}
    return trained(TwoWays(None), params, 1500, 3e-3)


def apart(a: dict, b: dict) -> dict:
    return {name: float(jnp.sqrt(jnp.square(a[name] - b[name]).mean())) for name in STREAMS}


@pytest.mark.parametrize("streams", ["together", "apart"])
def test_a_students_single_step_is_nearer_to_the_teachers_many_than_the_teachers_own(teacher, streams):
    """In one step the teacher can but answer with the mean of both ways; of many it takes one."""
    many = sampled_with(teacher, 32)
    assert min(float(jnp.abs(x).mean()) for x in many.values()) > 0.9
    teachers = apart(sampled_with(teacher, 1), many)
    student = trained(StudentLoss(None, TwoWays(None), streams, 16), teacher, 1500, 1e-3)
    students = apart(sampled_with(student, 1), many)
    assert all(students[name] < 0.8 * teachers[name] for name in STREAMS)


def config_of(workdir, **keys):
    c = tiny_policy.config()
    base.student(c)
    c.train.init_from = str(workdir)
    c.distill.update(keys)
    return c


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny_policy.write(tmp_path_factory.mktemp("teacher"))


def test_a_student_names_its_teacher_by_the_hash_of_its_weights(workdir, tmp_path):
    fitted = Experiment(config_of(workdir)).fitted()
    named = fitted.config.distill.teacher
    assert len(named) == 64 and isinstance(fitted.loss, StudentLoss) and isinstance(fitted.loss.of, DreamZeroLoss)
    assert Experiment(config_of(workdir, teacher=named)).fitted().config.distill.teacher == named
    config = tiny_policy.config()
    config.model.dim = 64
    other = tiny_policy.write_config(tmp_path, config, "pusht")
    with pytest.raises(CheckpointError, match=f"is another teacher than before: .*, distill.teacher is {named}"):
        Experiment(config_of(other, teacher=named)).fitted()
    gone = config_of(tmp_path / "gone", teacher=named)  # a run that has begun goes on without it
    assert Experiment(gone).fitted().config.distill.teacher == named
    with pytest.raises(CheckpointError, match="is no directory of checkpoints"):
        initial.Initial.from_config(gone)


def test_a_sweep_takes_a_students_run_back_and_not_that_of_another_teacher(workdir, tmp_path):
    def runs():
        return sweep.runs_of({"apart": ("f.py", config_of(workdir))}, {"apart": {}},
                             {"apart": [comparison.OPEN_LOOP]}, [0], tmp_path)

    named = Experiment(config_of(workdir)).fitted().config.distill.teacher  # as training writes it
    path = runs()[0].workdir / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(runs()[0].config | {"distill": {"streams": "apart", "teacher": named}}))
    assert runs()[0].config["distill"]["teacher"] == named
    path.write_text(path.read_text().replace(named, "0" * 64))
    with pytest.raises(sweep.SweepError, match=f"distill.teacher = '{'0' * 64}', and this sweep's is '{named}'"):
        runs()


def test_a_teacher_of_another_family_is_refused(tmp_path):
    other = tiny_policy.write(tmp_path, arm="lingbot_va_debug")
    with pytest.raises(CheckpointError, match=f"train.init_from = {other} is of family 'lingbot_va', and the student of "
                                              "'dreamzero': a student is its teacher's network, trained on"):
        Experiment(config_of(other)).fitted()


def test_a_teacher_without_hashes_is_refused(workdir, monkeypatch):
    read = checkpoint.read_json
    monkeypatch.setattr(checkpoint, "read_json", lambda *at: {**read(*at), "hashes": {}})
    with pytest.raises(CheckpointError, match=r"holds no hashes \(checkpoint.hashes = False\)"):
        Experiment(config_of(workdir)).fitted()


@pytest.mark.parametrize("keys, sentence", [
    ({"streams": "both"}, "distill.streams = 'both': expected one of together, apart"),
    ({"levels": 1}, "distill.levels = 1: expected at least 2")])
def test_values_that_cannot_be_meant(keys, sentence):
    with pytest.raises(values.ConfigError, match=sentence):
        Experiment(config_of("somewhere", **keys))


def test_a_student_without_a_teacher_is_refused():
    with pytest.raises(values.ConfigError, match="let train.init_from name the teacher's workdir"):
        Experiment(config_of(""))


@pytest.mark.parametrize("arm", distill.ARMS)
def test_an_arm_is_a_student_of_the_quickstarts(arm):
    c, teacher = distill.get_config(arm), quickstart.get_config(arm.removeprefix("together").removeprefix("_"))
    assert c.distill.streams == ("together" if "together" in arm else "apart") and c.evaluate.solver_steps == 1
    assert c.model == teacher.model and c.data == teacher.data and c.train.steps < teacher.train.steps + 1
