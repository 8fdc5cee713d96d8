"""Cost of skipping solver steps, on held-out windows of a trained checkpoint; prints one JSON line.

    python -m benchmarks.step_skipping --workdir=runs/quickstart [--windows=32 --guidance=1]

Every block is predicted from the frames that really came before it, by 16 steps of UniPC: once with every step, then
with each way of skipping, from the same noise. For each: model calls per block, root mean square difference of the
normalised actions and of the latents from those of every step, and the actions' mean square error against the truth.
"""

import argparse
import json

import jax
import numpy as np

from launch.setup.restore import Restored, restore
from world_model.diffusion.step_skipping import STATIC, THRESHOLDS

COSINES = (0.999, 0.99, 0.97)  # for "adaptive", beside the released 0.95; the second threshold lies 0.02 lower
WAYS = {"none": {"skipping": "none"}} | {str(n): {"skipping": str(n)} for n in sorted(STATIC, reverse=True)} | {
    f"adaptive {pairs[0][0]}": {"skipping": "adaptive", "skip_thresholds": pairs}
    for pairs in (*(((cosine, 3), (cosine - 0.02, 1)) for cosine in COSINES), THRESHOLDS)}


def measure(restored: Restored, windows: int, guidance: float) -> dict:
    """Measures every way of skipping: {way: its numbers}."""
    experiment = restored.experiment
    inputs = experiment.inputs
    batch = next(restored.data.heldout_batches(windows, windows))
    example = jax.jit(inputs.encode)(restored.frozen, batch)
    given = jax.jit(inputs.conditions)(restored.frozen, example)
    keys = jax.random.split(jax.random.key(0), windows)
    found, plain = {}, None
    for way, skipping in WAYS.items():
        sampler = experiment.sampler(solver_steps=16, solver="unipc", guidance=guidance, **skipping)
        predicted = jax.device_get(sampler(restored.params, given, keys, history=example.latents))
        plain = plain or predicted
        mask = batch["action_mask"]
        found[way] = {"model_calls": float(predicted.model_calls.mean()),
                      "action_difference": rms((predicted.actions - plain.actions)[mask]),
                      "latent_difference": rms((predicted.latents - plain.latents)[:, 1:]),
                      "action_mse": float(np.square(predicted.actions - batch["actions"])[mask].mean())}
    return found


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(x).mean()))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    restored = restore(args.workdir)
    print(json.dumps({"step": restored.step, "windows": args.windows, "guidance": args.guidance,
                      "ways": measure(restored, args.windows, args.guidance)}))


if __name__ == "__main__":
    main()
