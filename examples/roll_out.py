"""Lets a trained model imagine held-out windows from their first frames, and writes a picture.

    python examples/roll_out.py runs/example [picture.png]

Each window is two rows of frames: what happened, and below it what the model imagined. On the way it predicts the
actions as well, in normalised units.
"""

import sys

import jax
import numpy as np
from PIL import Image

from launch.setup.restore import restore

WINDOWS = 4


def main(workdir: str, picture: str = "imagined.png") -> None:
    """Samples with the newest checkpoint's own settings, but four denoising steps."""
    restored = restore(workdir)
    experiment, frozen = restored.experiment, restored.frozen
    batch = next(restored.data.heldout_batches(WINDOWS, windows=WINDOWS))

    # Encode the windows, and keep of them what a sampler may know: first frame, text, states.
    example = experiment.inputs.encode(frozen, batch)
    conditions = experiment.inputs.conditions(frozen, example)
    sampler = experiment.sampler(solver_steps=4)
    prediction = sampler(restored.compute_params, conditions, jax.random.split(jax.random.key(0), WINDOWS))

    error = np.square(prediction.actions - batch["actions"])[batch["action_mask"]].mean()
    print(f"step {restored.step}: actions {prediction.actions.shape}, mean square error {error:.3f}")
    pixels = experiment.encoders["video"].decode(frozen["video"], prediction.latents)
    imagined = np.uint8(np.clip(np.round((np.asarray(pixels) + 1) * 127.5), 0, 255))
    rows = [np.concatenate(list(frames), axis=1) for pair in zip(batch["video"], imagined) for frames in pair]
    Image.fromarray(np.concatenate(rows)).save(picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
