"""LingBot-VLA's properties: who influences whom, what is trained on, mixtures of experts, bad sizes and tokenizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from configs import lingbot_vla_4b, lingbot_vla_v2_6b
from configs.recipes import robotwin_lingbot_vla
from data_pipelines.robots.embodiments import get_embodiment
from launch.serving.engine import Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests import tiny_policy
from world_model import functional
from world_model.encoders.token_ids import TokenIds
from world_model.families.lingbot_vla.inputs import Example, hold_last_action
from world_model.families.lingbot_vla.loss import TIMES
from world_model.families.lingbot_vla.moe import MixtureOfExperts
from world_model.families.lingbot_vla.sampler import times
from world_model.functional import bind
from world_model.parallel.sharding import make_mesh, shardings

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIGS = {"v1": lingbot_vla_4b, "v2": lingbot_vla_v2_6b}
BATCH = 2


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def experiment(request):
    return Experiment(CONFIGS[request.param].get_config("debug"))


@pytest.fixture(scope="module")
def params(experiment):
    """Random everywhere: AdaNorms, heads and the routers' bias too."""
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(0, 0.05 if x.ndim > 1 else 0.2, x.shape) + (name.endswith("scale")),
                              jnp.float32) for name, x in experiment.model.shapes.items()}


@pytest.fixture(scope="module")
def example(experiment):
    spec, rng = experiment.model.spec, np.random.default_rng(1)
    n, a = spec.layout.actions_per_block, spec.action_dim
    mask = np.arange(a) < 7
    mask = np.broadcast_to(mask, (BATCH, n, a)) & (np.arange(n) < np.array([n, 5])[:, None])[..., None]
    return Example(
        patches=rng.normal(size=(BATCH, spec.views, spec.patches, spec.patch_values)).astype(np.float32),
        view_mask=np.array([[True, True], [True, False]]), text_ids=rng.integers(0, 256, (BATCH, spec.text_length)),
        text_length=np.array([spec.text_length, 3]), state=rng.normal(size=(BATCH, spec.state_dim)).astype(np.float32),
        actions=np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32), action_mask=mask,
        sample_index=np.arange(BATCH))


@functools.partial(jax.jit, static_argnums=0)
def velocity(experiment, params, example):
    model = bind(experiment.model.module, params)
    prefix = model.encode_prefix(example.patches, example.view_mask, example.text_ids, example.text_length)
    return model.velocity(prefix, example.state, example.actions, jnp.array([0.3, 0.7]))[0]


def changed(example, rows, **fields):
    """The example with random numbers in the second sample's rows of each field."""
    rng = np.random.default_rng(5)
    new = {}
    for name in fields:
        x = np.array(getattr(example, name))
        part = x[1, rows]
        x[1, rows] = rng.integers(0, 256, part.shape) if x.dtype.kind == "i" else rng.normal(size=part.shape)
        new[name] = x
    return example._replace(**new)


def test_what_is_masked_has_no_influence_and_the_rest_has(experiment, params, example):
    expected = velocity(experiment, params, example)
    for rows, name, matters in ((1, "patches", False), (0, "patches", True), (slice(3, None), "text_ids", False),
                                (slice(0, 3), "text_ids", True), (slice(None), "state", True)):
        found = velocity(experiment, params, changed(example, rows, **{name: True}))
        np.testing.assert_array_equal(found[0], expected[0])
        assert bool(np.abs(found[1] - expected[1]).max() > 1e-5) == matters, (name, rows)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_view_may_be_missing_anywhere(experiment, params, example, missing):
    """The first one too, which the released loader cannot."""
    mask = np.ones((BATCH, 2), bool)
    mask[:, missing] = False
    example = example._replace(view_mask=mask)
    expected = velocity(experiment, params, example)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(velocity(experiment, params, changed(example, missing, patches=True)), expected)


def test_steps_past_the_end_are_trained_on_by_name_alone(experiment, params, example):
    batch = {"action_mask": jnp.asarray(example.action_mask), "view_mask": jnp.asarray(example.view_mask)}

    def gradient(loss):
        sampled = jnp.array([0.3, 0.7]), jnp.ones(example.actions.shape)

        def of_target(actions):
            return loss.loss_at(params, example._replace(actions=actions), sampled, loss.count(batch))[0]

        return jax.jit(jax.grad(of_target))(jnp.asarray(example.actions))[1, 5:, :7]

    # A padded action is still seen by the others, as a token; what is predicted there counts by name alone.
    loss = dataclasses.replace(experiment.loss, past_end="trained")
    assert loss.count(batch)["actions"] == 2 * 7 * 8 and experiment.loss.count(batch)["actions"] == 7 * (8 + 5)
    assert np.abs(gradient(loss)).min() > np.abs(gradient(experiment.loss)).max()


def test_actions_hold_their_last_real_value():
    mask = np.arange(4)[None, :, None] < np.array([[[2, 0]]])
    found = hold_last_action(jnp.array([[[1.0, 9], [2, 9], [0, 9], [0, 9]]]), mask)
    np.testing.assert_array_equal(found, [[[1, 0], [2, 0], [2, 0], [2, 0]]])


def test_dimensions_that_are_not_the_robots_get_no_gradient(experiment, params, example):
    counts = experiment.loss.count(example._asdict())
    grads = jax.jit(jax.grad(lambda p: experiment.loss(p, example, jax.random.key(0), counts)[0]))(params)
    assert not np.any(grads["action_head.kernel"][:, 7:]) and np.any(grads["action_head.kernel"][:, :7])
    # of the last language layer keys and values alone are read
    unread = [name for name in grads if name.startswith("language_final_block.") and not np.any(grads[name])]
    assert {name.split(".", 1)[1] for name in unread} >= {
        "self_attn.q.kernel", "self_attn.o.kernel", "mlp.fc1.kernel", "mlp.fc2.kernel", "norm2.scale"}
    others = [name for name in grads if not np.any(grads[name])]
    assert {name for name in others if not name.startswith(("language_final_block.", "language_norm."))} <= {
        "expert_blocks.mlp.router_bias"}


def test_a_mixture_of_experts_does_what_each_expert_would():
    spec = Experiment(lingbot_vla_v2_6b.get_config("debug")).model.spec
    with jax.default_matmul_precision("highest"):
        layer = MixtureOfExperts(spec, lambda rngs: (lambda x: 0 * x), rngs=nnx.Rngs(0))
        layer.router_bias[...] = jnp.array([0.0, 0.5, 0.0, -0.5])
        x = jax.random.normal(jax.random.key(0), (BATCH, 9, spec.expert_dim))
        found, routing = layer(x)
        scores = jax.nn.sigmoid(routing.logits)
        expected = jnp.zeros_like(x)
        for e in range(spec.experts):
            out = (jax.nn.silu(x @ layer.experts_gate[e]) * (x @ layer.experts_fc1[e])) @ layer.experts_fc2[e]
            chosen = (routing.chosen == e).any(-1)
            total = jnp.take_along_axis(scores, routing.chosen, axis=-1).sum(-1)
            expected += jnp.where(chosen, scores[..., e] / total * spec.routed_scale, 0)[..., None] * out
    np.testing.assert_allclose(found, expected, atol=1e-6)
    highest = np.argsort(-np.asarray(scores + layer.router_bias[...]), axis=-1)[..., :spec.experts_per_token]
    np.testing.assert_array_equal(np.sort(routing.chosen), np.sort(highest))


def test_nan_in_a_router_reaches_the_loss():
    """Where the run stops: training refuses to go on from a loss that is not finite."""
    experiment = Experiment(lingbot_vla_v2_6b.get_config("debug"))
    params = experiment.model.init_params(jax.random.key(0))
    params["expert_blocks.mlp.router"] = params["expert_blocks.mlp.router"].at[1].set(jnp.nan)
    fields = experiment.inputs.batch_fields()
    batch = {name: jnp.ones((BATCH, *shape), dtype) for name, (shape, dtype) in fields.items()}
    loss, metrics = jax.jit(experiment.loss_fn)(params, batch, jax.random.key(0), experiment.loss.count(batch))
    assert np.isnan(loss) and np.isnan(metrics["router_z"])


def test_times_are_those_that_are_named():
    u, v = np.random.default_rng(0).uniform(size=(2, 200_000))
    quantiles = {"pseudo_beta": [0.2, 0.422, 0.545, 0.706, 0.923], "beta": [0.136, 0.397, 0.630, 0.826, 0.966],
                 "uniform": [0.05, 0.25, 0.5, 0.75, 0.95]}
    for name, expected in quantiles.items():
        np.testing.assert_allclose(np.quantile(TIMES[name](u, v), [0.05, 0.25, 0.5, 0.75, 0.95]), expected, atol=5e-3)
    np.testing.assert_allclose(times(10)[:-1], np.arange(10, 0, -1) / 10, atol=1e-6)
    with pytest.raises(ValueError, match="solver_steps = 0"):
        times(0)


@pytest.mark.parametrize("key, value, message", [
    ("model.kv_heads", 3, "kv_heads = 3 does not divide model.num_heads = 4"),
    ("model.experts_per_token", 5, "experts_per_token = 5: expected 1 to model.experts = 4"),
    ("model.rope_sections", (4, 2, 1), "add up to 7, half of model.head_width is 8"),
    ("model.vision", "siglip", "expected qwen2_5 or qwen3"),
    ("model.prompt", "do", "expected one {}"),
    ("model.prefix", "both", "expected joint"),
    ("model.lora_stacks", ("head",), "there are vision, language and expert"),
    ("model.attention", "flash", "masks here differ between samples"),
    ("layout.height", 40, r"layout.height = 40 does not divide into tokens of 16 pixels .*nearest: 32"),
    ("loss.error", "huber", "loss.error = 'huber': expected l1 or squared"),
    ("noise.times", "normal", "noise.times = 'normal': expected pseudo_beta or beta or uniform"),
])
def test_sizes_that_do_not_fit_are_refused(key, value, message):
    c = lingbot_vla_v2_6b.get_config("debug")
    section, name = key.split(".")
    with c.ignore_type():
        c[section][name] = value
    with pytest.raises(ValueError, match=message):
        _ = Experiment(c).loss


def test_experts_whose_width_does_not_divide_over_the_mesh_are_refused():
    c = lingbot_vla_v2_6b.get_config("debug")
    c.model.routed_ffn_dim = 15
    model, mesh = Experiment(c).model, make_mesh(1, 4, 2, 1)
    with pytest.raises(ValueError, match=r"expert_blocks.mlp.experts_.*: its axis 'mlp' of 15 does not divide by 2 = "
                                         r"mesh axes tensor"):
        shardings(model.axes(), {name: x.shape for name, x in model.shapes.items()}, mesh)


def test_prompts_are_cut_by_the_models_own_tokenizer(tmp_path):
    file = tmp_path / "tokenizer.json"
    vocabulary = {"<unk>": 0} | {word: i for i, word in enumerate(("push", "the", "T"), 1)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(file))
    ids, count = TokenIds(6, 10, str(file)).tokenize("push the T")
    assert ids.tolist() == [1, 2, 3, 0, 0, 0] and count == 3
    with pytest.raises(ValueError, match="has 3 tokens, model.text_length = 2"):
        TokenIds(2, 10, str(file)).tokenize("push the T")
    with pytest.raises(ValueError, match="a vocabulary of 4 tokens, .*151936 rows: it is another model's tokenizer"):
        TokenIds(6, 151_936, str(file)).tokenize("push")
    for missing in ("", str(tmp_path / "none.json")):
        with pytest.raises(ValueError, match=f"encoders.tokenizer = '{missing}': give a local tokenizer.json"):
            TokenIds(6, 10, missing).tokenize("push")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(ValueError, match="bad.json: not a tokenizer"):
        TokenIds(6, 10, str(tmp_path / "bad.json")).tokenize("push")
    with pytest.raises(ValueError, match="encoders.tokens = 'bytes' wants model.vocab_size = 256 or more, found 200"):
        TokenIds(4, 200)
    assert TokenIds(4, 256).tokenize("aé")[0].tolist() == [97, 195, 169, 0]


def test_adapters_stand_where_they_are_asked_for():
    c = lingbot_vla_4b.get_config("debug")
    c.model.update(lora_rank=2, lora_stacks=("vision", "expert"), lora_pattern=r"self_attn\.o$")
    shapes = Experiment(c).model.shapes
    assert {name.rsplit(".lora", 1)[0] for name in shapes if ".lora" in name} == {
        "vision.blocks.self_attn.o", "expert_blocks.self_attn.o"}


def test_full_sizes_are_the_published_ones():
    for module, count in ((lingbot_vla_4b, 4_197_425_739), (lingbot_vla_v2_6b, 6_375_907_511)):
        model = Experiment(module.get_config()).model
        assert sum(p.size for p in model.shapes.values()) == count
        assert functional.parameters(model.module).keys() == model.axes().keys()


@pytest.mark.parametrize("name, gripper, size", [("robotwin_joints_75", 14, 75), ("robotwin_joints_55", 28, 55)])
def test_robotwins_joints_lie_in_the_published_slots(name, gripper, size):
    """Both arms from slot 0 on, six joints each, and the grippers apart; recorded as left arm, gripper, right arm."""
    robot = get_embodiment(name)
    expected = [*range(6), gripper, *range(6, 12), gripper + 1]
    assert robot.action_slots.tolist() == robot.state_slots.tolist() == expected
    c = robotwin_lingbot_vla.get_config("v2" if size == 55 else "")
    assert c.data.datasets.robotwin.embodiment == name and c.model.action_dim == size


@pytest.mark.parametrize("arm, robot", [("debug", "robotwin_joints_75"), ("v2_debug", "robotwin_joints_55")])
def test_a_session_is_answered_in_a_batch_as_alone(tmp_path, arm, robot):
    c = robotwin_lingbot_vla.get_config(arm)
    c.evaluate.solver_steps = 2
    restored = restore(tiny_policy.write_config(tmp_path, c, robot))
    rng = np.random.default_rng(0)
    pictures = {view: rng.integers(0, 255, (3, 1, 32, 32, 3), np.uint8) for view in get_embodiment(robot).views}

    def ask(batch_size: int) -> list[np.ndarray]:
        engine = Engine(restored, choose_robot(restored, None, None), sessions=3, batch_sizes=(batch_size,))
        requests = [Request(i, 1, {view: x[i] for view, x in pictures.items()}, np.full(14, 200.0 + i),
                            engine.tokenize("lift the pot"), (7, i), np.zeros((0, 14))) for i in range(3)]
        batches = [requests] if batch_size > 1 else [[request] for request in requests]
        return [answer.actions for batch in batches for answer in engine.step(batch)]

    together, alone = ask(4), ask(1)
    np.testing.assert_allclose(together, alone, atol=0.01)  # in robot units, of a range of 300
    assert min(np.abs(alone[0] - other).max() for other in alone[1:]) > 0.1
