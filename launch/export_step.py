"""Makes one file of a denoising step that PyTorch runs without this package, from an export in dreamzero's layout.

    python -m launch.export_step --export=DIR --out=step.pt2 [--block=1] [--dtype=bfloat16] [--batch=2]

The file holds the weights, and for autoregressive block `--block` the mask and positions as constants; a rollout needs
one per block. A batch of 2 is both branches of guidance. Arguments: world_model/families/dreamzero/torch/step.py.
"""

import sys

from absl import flags

from launch.setup import flags as launch_flags
from world_model.families.dreamzero.model import MASK_CHANNELS
from world_model.weights.safetensors_io import WeightsError


def example(runtime, batch: int, block: int, latent_size: tuple[int, int], text_length: int, image_tokens: int):
    """(session that stands before `block`, parts of that block), zeros of the export's sizes and dtype."""
    import torch  # extra: torch

    model, layout, dtype = runtime.model, runtime.layout, runtime.model.head.head.weight.dtype
    zeros = lambda *shape: torch.zeros(batch, *shape, dtype=dtype)
    channels, joined = model.out_dim, model.patch_embedding.in_channels != model.out_dim
    condition = lambda frames: zeros(frames, *latent_size, MASK_CHANNELS + channels) if joined else None
    image = zeros(image_tokens, model.img_emb["proj"][1].in_features) if hasattr(model, "img_emb") else None
    session = runtime.start(zeros(text_length, model.text_embedding[0].in_features), image)
    frames, actions = layout.frames_per_block, layout.actions_per_block
    for count in (1, *[frames] * (block - 1)):
        session.prefill(zeros(count, *latent_size, channels), condition(count))
    times = lambda count: torch.full((batch, count), 500.0)
    return session, {
        "noisy_latents": zeros(frames, *latent_size, channels), "video_timestep": times(frames),
        "condition": condition(frames), "noisy_actions": zeros(actions, model.action_encoder.W1.W.shape[1]),
        "action_timestep": times(actions),
        "state": zeros(layout.states_per_block, model.state_encoder.layer1.W.shape[1])}


def main(_) -> None:
    """The command."""
    import torch  # extra: torch

    from world_model.families.dreamzero.torch import runtime as torch_runtime
    from world_model.families.dreamzero.torch import step as torch_step

    args = flags.FLAGS
    try:
        runtime, _ = torch_runtime.load(args.export, dtype=getattr(torch, args.dtype))
        sizes = torch_runtime.read_config(args.export)["inputs"]
        if not 1 <= args.block <= runtime.layout.num_blocks:
            raise ValueError(f"--block={args.block}: the model has blocks 1 to {runtime.layout.num_blocks}")
        with torch.no_grad():
            session, parts = example(runtime, args.batch, args.block, **sizes)
            torch_step.save(session, args.out, **parts)
    except (WeightsError, ValueError, OSError) as error:
        sys.exit(f"export_step: {error}")
    shapes = {name: None if x is None else tuple(x.shape) for name, x in parts.items()}
    cached = session.cache.keys_values[0][0].shape[1]
    print(f"written: {args.out}, block {args.block} after {cached} cached tokens; {shapes}")


if __name__ == "__main__":
    flags.DEFINE_string("export", None, "directory of launch.export --format=dreamzero")
    flags.DEFINE_string("out", None, "file to write")
    flags.DEFINE_integer("block", 1, "autoregressive block, from 1")
    flags.DEFINE_integer("batch", 1, "samples at once")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "to compute in")
    flags.mark_flags_as_required(["export", "out"])
    launch_flags.run(main)
