"""Which steps run, and that a sampler with skipped steps is the one that reuses its predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import goldens_io
from world_model import functional
from world_model.diffusion.solvers import make_solver
from world_model.diffusion.step_skipping import STATIC, Adaptive, make_skipping
from world_model.families.dreamzero import cached
from world_model.families.dreamzero.model import DreamZero
from world_model.families.dreamzero.sampler import DreamZeroSampler

GOLDEN = np.load(goldens_io.__file__.replace("goldens_io.py", "goldens/dreamzero_i2v_tiny.npz"), allow_pickle=False)


def test_the_released_table_of_eight():
    np.testing.assert_array_equal(make_skipping("8", 16).runs, GOLDEN["sched/mask8"])
    assert all(len(runs) == count and runs[0] == 0 for count, runs in STATIC.items())


@pytest.mark.parametrize("name,steps,sentence", [("9", 16, "expected none, adaptive or one of 5, 6, 7, 8"),
                                                 ("8", 4, "table of 16 solver steps, found 4")])
def test_what_there_is_not(name, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_skipping(name, steps)


@pytest.mark.parametrize("thresholds", [(), ((0.9, 1), (0.95, 3)), ((0.9, -1),)])
def test_thresholds_must_fall(thresholds):
    with pytest.raises(ValueError, match="highest cosine first"):
        make_skipping("adaptive", 16, thresholds)


def ran(angles: list[float], steps: int) -> list[int]:
    """Steps that run where the k-th prediction points to angles[k] (radians)."""
    skipping = Adaptive()
    memory, found = skipping.init(jnp.zeros((1, 2))), []
    decide = jax.jit(skipping.decide)
    for i in range(steps):
        run, memory = decide(i, memory)
        if run:
            memory = skipping.note(memory, jnp.array([[np.cos(angles[len(found)]), np.sin(angles[len(found)])]]))
            found.append(i)
    return found


@pytest.mark.parametrize("turn,expected", [
    (1.0, list(range(10))),  # cosine 0.54: nothing is skipped
    (0.36, [0, 1, 4, 7]),  # 0.936: this step and one more, then a run
    (0.1, [0, 1, 6])])  # 0.995: this step and three more, then a run
def test_adaptive_follows_the_cosine(turn, expected):
    assert ran([turn * k for k in range(20)], 10) == expected


def test_adaptive_waits_for_the_least_similar_of_a_batch():
    skipping, one = Adaptive(), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    memory = skipping.note(skipping.note(skipping.init(one), one), jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    assert bool(skipping.decide(2, memory)[0])
    assert not bool(skipping.decide(2, skipping.note(memory, memory.last))[0])


@pytest.fixture(scope="module")
def block():
    """(the model, arguments of DreamZeroSampler.denoise) for the first block of a golden's model."""
    z, spec, params = goldens_io.load("i2v")
    inputs = goldens_io.inputs(z)
    module = functional.abstract(DreamZero, spec)
    sampler = DreamZeroSampler(module)
    context = sampler.context(params, inputs.text, inputs.image)
    cache = sampler.prefill(params, cached.empty_cache(spec, len(inputs.text)), context, inputs.clean_latents[:, :1],
                            inputs.condition[:, :1], 0)
    noise = sampler.noise(jax.random.split(jax.random.key(0), len(inputs.text)), 1)
    return module, (params, cache, context, *noise, inputs.state[:, :1], inputs.condition[:, 1:3], 1)


def test_a_static_table_reuses_the_last_velocity(block):
    """Oracle: a plain loop over the steps of the table."""
    module, (params, cache, context, latents, actions, state, condition, index) = block
    found = DreamZeroSampler(module, skipping="6").denoise(*block[1])
    solver = make_solver("unipc", 16)

    @jax.jit
    def velocity(x, a, time):
        noisy = cached.Noisy(x, jnp.full(x.shape[:2], time), a, jnp.full(a.shape[:2], time), state)
        return cached.denoise(functional.bind(module, params), cache, context, noisy, condition, index)

    video_carry, action_carry = solver.init(latents), solver.init(actions)
    for i, time in enumerate(np.float32(solver.timesteps)):
        if i in STATIC[6]:
            v = velocity(latents, actions, time)
        latents, video_carry = solver.step(i, v.video, latents, video_carry)
        actions, action_carry = solver.step(i, v.action, actions, action_carry)
    np.testing.assert_allclose(found[0], latents, atol=1e-4)
    np.testing.assert_allclose(found[1], actions, atol=1e-4)
    assert int(found[2]) == 6


def test_adaptive_thresholds_decide_how_much_is_run(block):
    """Between every step and the least there can be; nothing skipped is the plain sampler to the bit."""
    module, arguments = block
    plain = DreamZeroSampler(module).denoise(*arguments)
    adaptive = DreamZeroSampler(module, skipping="adaptive").denoise(*arguments)
    assert int(plain[2]) == 16 and 4 <= int(adaptive[2]) <= 16
    difference = float(np.abs(adaptive[0] - plain[0]).max())
    assert (difference == 0) == (int(adaptive[2]) == 16)
