"""Solvers of the flow-matching ODE as pure functions of a step index, usable inside `lax.scan`.

    solver = make_solver("unipc", steps=16)
    carry = solver.init(noise)
    for i in range(steps):  # or lax.scan: i may be traced
        noise, carry = solver.step(i, model(noise, solver.timesteps[i]), noise, carry)

Every step of UniPC is linear in the sample and the last clean-data predictions, so its coefficients are tables, which
are worked out once in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from world_model.diffusion.flow_matching import shift_sigma


def inference_sigmas(steps: int, shift: float = 5.0, final_sigma: float = 0.0) -> np.ndarray:
    """Returns float64 [steps + 1], from the second-noisiest training level (index 1 of 1000) down to `final_sigma`.

    A final_sigma above 0 squeezes the whole range (the Flash variant of arXiv 2602.15922 leaves the video at 0.8 while
    actions go to 0).
    """
    sigmas = np.append(shift_sigma(np.linspace(0.999, 0, steps + 1)[:-1], shift), 0.0)
    return final_sigma + sigmas * (sigmas[0] - final_sigma) / sigmas[0]


@dataclasses.dataclass(frozen=True)
class Euler:
    """First-order steps along the predicted velocity."""

    sigmas: np.ndarray  # float64 [steps + 1]
    timesteps: np.ndarray  # int32 [steps]: what the model is told, 1000 sigma truncated

    def init(self, sample: jax.Array) -> tuple:
        """Returns an empty carry: there is nothing to remember."""
        return ()

    def step(self, i, velocity: jax.Array, sample: jax.Array, carry: tuple) -> tuple[jax.Array, tuple]:
        """Moves the sample at sigmas[i] along its velocity to sigmas[i + 1]."""
        return sample + jnp.asarray(np.diff(self.sigmas), jnp.float32)[i] * velocity, carry


@dataclasses.dataclass(frozen=True)
class UniPC:
    """UniPC (arXiv 2302.04867) of order 2 with B2(h) and clean-data prediction; first and last step are of order 1."""

    sigmas: np.ndarray  # float64 [steps + 1]
    timesteps: np.ndarray  # int32 [steps]: what the model is told, 1000 sigma truncated
    predictor: np.ndarray  # float64 [steps, 3]: weights of the sample, x0 of this step, x0 one step back
    corrector: np.ndarray  # float64 [steps, 4]: weights of the last sample, x0 one and two steps back, x0 now

    def init(self, sample: jax.Array) -> tuple:
        """Returns (sample of the last step, its x0, the x0 before). The zeros have weight 0 in the first steps."""
        return sample, jnp.zeros_like(sample), jnp.zeros_like(sample)

    def step(self, i, velocity: jax.Array, sample: jax.Array, carry: tuple) -> tuple[jax.Array, tuple]:
        """Corrects the sample at sigmas[i] with its own velocity, then predicts the one at sigmas[i + 1]."""
        last, x0_1, x0_2 = carry
        sigma = jnp.asarray(self.sigmas, jnp.float32)[i]
        p, c = (jnp.asarray(table, jnp.float32)[i] for table in (self.predictor, self.corrector))
        x0 = sample - sigma * velocity
        corrected = c[0] * last + c[1] * x0_1 + c[2] * x0_2 + c[3] * x0
        return p[0] * corrected + p[1] * x0 + p[2] * x0_1, (corrected, x0, x0_1)


def make_solver(name: str, steps: int, shift: float = 5.0, final_sigma: float = 0.0) -> Euler | UniPC:
    """Makes a solver by name. Raises ValueError on an unknown name, no steps, or a final_sigma outside [0, 1)."""
    if steps < 1:
        raise ValueError(f"solver_steps = {steps}: at least 1 is needed")
    if not 0 <= final_sigma < 1:
        raise ValueError(f"final_sigma = {final_sigma}: expected 0 <= final_sigma < 1")
    sigmas = inference_sigmas(steps, shift, final_sigma)
    timesteps = (1000 * sigmas[:-1]).astype(np.int32)
    if name == "euler":
        return Euler(sigmas, timesteps)
    if name == "unipc":
        return UniPC(sigmas, timesteps, *_unipc_tables(sigmas))
    raise ValueError(f"solver {name!r}: expected unipc or euler")


def _unipc_tables(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the predictor [steps, 3] and of the corrector [steps, 4]."""
    steps = len(sigmas) - 1
    predictor, corrector = np.zeros((steps, 3)), np.zeros((steps, 4))
    corrector[0, 0] = 1  # the first sample stays, because there is nothing to correct it with
    for i in range(steps):
        order = 1 if i in (0, steps - 1) else 2
        predictor[i] = _predict(sigmas, i, order)
        if i + 1 < steps:
            corrector[i + 1] = _correct(sigmas, i, order)
    return predictor, corrector


def _interval(sigmas: np.ndarray, i: int) -> tuple[float, float, float, float]:
    """Returns (sigma ratio, weight k of the clean data, h, r) of the step i -> i + 1.

    h is the step in log signal-to-noise, and r is the step before divided by it (negative). With alpha = 1 - sigma,
    k = alpha (1 - exp(-h)) = 1 - ratio, which stays finite on the last step to sigma = 0.
    """
    def log_snr(sigma):
        with np.errstate(divide="ignore"):
            return np.log(1 - sigma) - np.log(sigma)

    ratio = sigmas[i + 1] / sigmas[i]
    h = log_snr(sigmas[i + 1]) - log_snr(sigmas[i])
    r = (log_snr(sigmas[i - 1]) - log_snr(sigmas[i])) / h if i else 0.0
    return ratio, 1 - ratio, h, r


def _predict(sigmas: np.ndarray, i: int, order: int) -> tuple[float, float, float]:
    """Weighs (x_i, x0_i, x0_(i-1)) in x_(i+1): x0 is held, plus half its slope over the step (UniP, B2)."""
    ratio, k, _, r = _interval(sigmas, i)
    slope = 0.5 * k / r if order == 2 else 0.0
    return ratio, k - slope, slope


def _correct(sigmas: np.ndarray, i: int, order: int) -> tuple[float, float, float, float]:
    """Weighs (x_i, x0_i, x0_(i-1), x0_(i+1)) in the corrected x_(i+1) (UniC, B2)."""
    ratio, k, h, r = _interval(sigmas, i)
    if order == 1:
        return ratio, 0.5 * k, 0.0, 0.5 * k
    phi_1 = np.expm1(-h)
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 0.5
    old, new = np.linalg.solve([[1, 1], [r, 1]], [phi_2 / phi_1, 2 * phi_3 / phi_1])
    old *= k / r  # the older slope is (x0_(i-1) - x0_i) / r
    return ratio, k - old - k * new, old, k * new
