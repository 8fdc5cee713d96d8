"""Solvers against the reference's trajectories, and convergence on an ODE with a known solution."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model.diffusion.solvers import make_solver

GOLDEN = np.load(Path(__file__).parent / "goldens" / "dreamzero_i2v_tiny.npz", allow_pickle=False)
CASES = {"unipc16": (16, 0.0), "unipc4": (4, 0.0), "unipc16_dec08": (16, 0.8)}


def golden_velocity(x, timestep):
    s = timestep / 1000
    return 0.7 * x + 0.3 * jnp.sin(3 * x + 2 * s) - 0.1 * s


def trajectory(solver, sample, velocity, run=None):
    """All samples of a scan; where `run` is False the last velocity is reused."""
    run = np.ones(len(solver.timesteps), bool) if run is None else run

    def body(state, xs):
        sample, last, carry = state
        i, timestep, fresh = xs
        v = jnp.where(fresh, velocity(sample, timestep), last)
        sample, carry = solver.step(i, v, sample, carry)
        return (sample, v, carry), sample

    sample = jnp.asarray(sample)
    start = (sample, jnp.zeros_like(sample), solver.init(sample))
    xs = (jnp.arange(len(solver.timesteps)), solver.timesteps.astype(np.float32), run)
    _, samples = jax.jit(lambda start, xs: jax.lax.scan(body, start, xs))(start, xs)
    return np.concatenate([sample[None], samples])


@pytest.mark.parametrize("name", CASES)
def test_levels_equal_goldens(name):
    solver = make_solver("unipc", CASES[name][0], final_sigma=CASES[name][1])
    np.testing.assert_array_equal(solver.timesteps, GOLDEN[f"sched/{name}_timesteps"])
    np.testing.assert_allclose(solver.sigmas, GOLDEN[f"sched/{name}_sigmas"], atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_trajectories_equal_goldens(name):
    steps, final_sigma = CASES[name]
    expected = GOLDEN[f"sched/{name}_traj"]
    found = trajectory(make_solver("unipc", steps, final_sigma=final_sigma), expected[0], golden_velocity)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_trajectory_with_skipped_steps_equals_golden():
    expected = GOLDEN["sched/unipc16_mask8_traj"]
    found = trajectory(make_solver("unipc", 16), expected[0], golden_velocity, GOLDEN["sched/mask8"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_constant_velocity_is_exact(name, steps):
    """Straight paths are solved in any number of steps: x moves by (sigma_end - sigma_start) v."""
    solver = make_solver(name, steps, final_sigma=0.25)
    sample, v = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    end = trajectory(solver, sample, lambda x, t: v)[-1]
    np.testing.assert_allclose(end, sample + (0.25 - solver.sigmas[0]) * v, atol=1e-5)


@pytest.mark.parametrize("name, order", [("euler", 1), ("unipc", 2)])
def test_order_of_convergence(name, order):
    """dx/dsigma = x: the error at the end falls at least as 1 / steps^order."""
    def error(steps):
        solver = make_solver(name, steps, shift=1.0, final_sigma=0.5)
        x = jnp.float32(1.0)
        carry = solver.init(x)
        for i in range(steps):
            x, carry = solver.step(i, x, x, carry)
        return abs(float(x) - np.exp(0.5 - solver.sigmas[0]))

    assert error(16) < 1.2 * error(4) / 4**order


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="'heun': expected unipc or euler"):
        make_solver("heun", 4)
    with pytest.raises(ValueError, match="solver_steps = 0"):
        make_solver("unipc", 0)
    with pytest.raises(ValueError, match=r"final_sigma = 1.5"):
        make_solver("unipc", 4, final_sigma=1.5)
