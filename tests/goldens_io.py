"""The tiny goldens as specs, parameters and inputs of ours."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from world_model import functional
from world_model.batch import Layout
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.model import DreamZero, ForwardInputs
from world_model.families.dreamzero.weights.names import DREAMZERO
from world_model.weights import names

FILES = {"i2v": "dreamzero_i2v_tiny.npz", "ti2v": "dreamzero_ti2v_tiny.npz"}


def channels_last(x):
    """[B, C, F, H, W] -> [B, F, H, W, C]."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def load(kind: str):
    """(npz, spec, parameters by our names)."""
    z = np.load(Path(__file__).parent / "goldens" / FILES[kind], allow_pickle=False)
    c = json.loads(str(z["cfg_json"]))
    m, frames = c["model"], 1 + c["nblk"] * c["model"]["num_frame_per_block"]
    layout = Layout(4 * frames - 3, 16 * c["hp"], 16 * c["wp"], m["num_frame_per_block"], m["num_action_per_block"],
                    m["num_state_per_block"])
    spec = DreamZeroSpec(
        layout=layout, latent_height=2 * c["hp"], latent_width=2 * c["wp"], dim=m["dim"], ffn_dim=m["ffn_dim"],
        num_heads=m["num_heads"], num_layers=m["num_layers"], freq_dim=m["freq_dim"], latent_channels=m["out_dim"],
        concat_first_frame=m.get("concat_first_frame_latent", True), text_dim=m["text_dim"], text_length=m["text_len"],
        image_dim=c["clip_dim"], image_tokens=257, action_dim=m["action_dim"], state_dim=m["max_state_dim"],
        action_hidden_dim=m["hidden_size"], window_blocks=m["max_chunk_size"])
    shapes = functional.parameters(functional.abstract(DreamZero, spec))
    tensors = {k[2:]: z[k] for k in z.files if k.startswith("w/")}
    params = names.from_published(tensors, shapes, spec.head_dim, DREAMZERO)
    return z, spec, {k: jnp.asarray(v) for k, v in params.items()}


def inputs(z) -> ForwardInputs:
    """The teacher-forced inputs of a golden file."""
    return ForwardInputs(
        noisy_latents=channels_last(z["in/noisy"]), video_timestep=jnp.asarray(z["in/timestep"]),
        text=jnp.asarray(z["in/context"]), clean_latents=channels_last(z["in/latents"]),
        condition=channels_last(z["in/y"]), image=jnp.asarray(z["in/clip"]),
        noisy_actions=jnp.asarray(z["in/noisy_action"]), action_timestep=jnp.asarray(z["in/timestep_action"]),
        state=jnp.asarray(z["in/state"]))
