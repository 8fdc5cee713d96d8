"""Speed of encoding video by a Wan VAE, ours beside diffusers' on the same device in turn; prints one JSON line.

    python -m benchmarks.vae [--codec=wan21] [--frames=33 --height=352 --width=640] [--dtype=float32] [--repeats=3]

Both sides have the full widths and the same random weights. Needs torch and diffusers (extra: dev). processor_seconds
are those of all threads on the host: on a shared CPU they say more than the clock.
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from diffusers import AutoencoderKLWan

from world_model import encoders
from world_model.encoders import names as encoder_names

CODEC = flags.DEFINE_enum("codec", "wan21", ["wan21", "wan22"], "which VAE")
FRAMES = flags.DEFINE_integer("frames", 33, "4k + 1")
HEIGHT = flags.DEFINE_integer("height", 352, "pixels")
WIDTH = flags.DEFINE_integer("width", 640, "pixels")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic, on both sides")
CHUNK = flags.DEFINE_integer("chunk", 1, "latent frames at once of ours; diffusers takes one")
REPEATS = flags.DEFINE_integer("repeats", 3, "timed turns of each, after one that is not timed")


def make_models(spec, device: str) -> tuple[Callable, Callable, float]:
    """Makes both encoders with the same random weights: (ours, diffusers', seconds to compile ours).

    Each takes no argument and encodes the same random video to latents, float32 [1, F, h, w, C].
    """
    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=spec.encoder_dim, decoder_base_dim=spec.decoder_dim, z_dim=spec.latent_channels,
        is_residual=spec.shortcuts, patch_size=spec.patch if spec.patch > 1 else None, in_channels=3 * spec.patch**2,
        out_channels=3 * spec.patch**2, scale_factor_spatial=spec.spatial_stride).eval()
    tensors = {name: p.numpy() for name, p in model.state_dict().items()}
    params = {e.native: jnp.asarray(e.transform.to_native(tensors[e.published], 0), DTYPE.value)
              for e in encoder_names.vae(spec)["diffusers"].entries}
    model = model.to(device, getattr(torch, DTYPE.value))
    video = np.random.default_rng(0).uniform(-1, 1, (1, FRAMES.value, HEIGHT.value, WIDTH.value, 3)).astype(np.float32)
    pixels = torch.from_numpy(video).permute(0, 4, 1, 2, 3).to(device, getattr(torch, DTYPE.value))
    codec, began = encoders.WanVideo(spec, dtype=DTYPE.value, chunk=CHUNK.value), time.perf_counter()
    program = jax.jit(codec.encode).lower(params, video).compile()
    compile_seconds, video = time.perf_counter() - began, jax.device_put(video)  # as theirs, on the device before

    def run_ours():
        return np.asarray(program(params, video)) * np.array(spec.std) + np.array(spec.mean)

    @torch.no_grad()
    def run_diffusers():
        return model.encode(pixels).latent_dist.mode().float().cpu().permute(0, 2, 3, 4, 1).numpy()

    return run_ours, run_diffusers, compile_seconds


def time_in_turn(sides: dict[str, Callable], turns: int) -> tuple[dict, dict, dict]:
    """Runs the sides in turn: medians of (seconds, processor seconds) by side, and what each returned last."""
    seconds, processor, found = ({name: [] for name in sides}, {name: [] for name in sides}, {})
    for turn in range(1 + turns):
        for name, run in sides.items():
            began, used = time.perf_counter(), time.process_time()
            found[name] = run()
            if turn:  # the first turn is not timed
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
    medians = ({name: float(np.median(times)) for name, times in kind.items()} for kind in (seconds, processor))
    return *medians, found


def main(_) -> None:
    """Runs the command."""
    spec = {"wan21": encoders.WAN21, "wan22": encoders.WAN22}[CODEC.value]
    ours, diffusers, compile_seconds = make_models(spec, "cpu" if jax.default_backend() == "cpu" else "cuda")
    seconds, processor, found = time_in_turn({"ours": ours, "diffusers": diffusers}, REPEATS.value)
    largest = np.abs(found["ours"] - found["diffusers"]).max()
    print(json.dumps({
        "codec": CODEC.value, "frames": FRAMES.value, "height": HEIGHT.value, "width": WIDTH.value,
        "dtype": DTYPE.value, "device": jax.devices()[0].device_kind, "compile_seconds": round(compile_seconds, 1),
        **{f"{name}_seconds": round(value, 2) for name, value in seconds.items()},
        **{f"{name}_frames_per_second": round(FRAMES.value / value, 2) for name, value in seconds.items()},
        **{f"{name}_processor_seconds": round(value, 2) for name, value in processor.items()},
        "times_as_fast": round(seconds["diffusers"] / seconds["ours"], 2),
        "times_as_fast_by_processor": round(processor["diffusers"] / processor["ours"], 2),
        "relative_difference": float(largest / np.abs(found["diffusers"]).max())}))


if __name__ == "__main__":
    app.run(main)
