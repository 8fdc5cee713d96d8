"""Runs an export in somebody's checkout of the original LingBot-VA, by that project's own interpreter.

    PYTHON original_run.py CHECKOUT EXPORT WORK

Needs that project's packages (flash-attn may be missing), and world_model/original_side.py. original_check.py asks for
passes of two chunks by its network over its own cache, and, where "config" says how its policy server is configured,
for two requests to that, with what was seen and done between them. All is in float32 with exact softmax, on a GPU or
without one; its frozen encoders are stand-ins.
"""

import importlib
import json
import sys
import types
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from world_model import original_side
from world_model.original_side import DEVICE, numpy, part

CHANNELS, STRIDE = 48, 16  # its codec's channels and spatial stride
recorded: dict[str, np.ndarray] = {}  # of the request under way
pictures: list[torch.Tensor] = []  # that its codec is given


class CodecStandIn(nn.Module):
    """Makes latents of a chunk, of a first frame alone and then of four at a time, in place of the codec."""

    config = types.SimpleNamespace(latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    _cached_conv_counts = types.MappingProxyType({"encoder": 0})

    def encoder(self, video, **_):
        """Returns [B, 2 x channels, F, h, w]: the mean, and a variance that nobody reads."""
        pictures.append(video)
        alone = video.shape[2] % 4
        parts = [x for x in (video[:, :, :alone], *video[:, :, alone:].split(4, 2)) if x.shape[2]]
        size = video.shape[3] // STRIDE, video.shape[4] // STRIDE
        return original_side.latents(parts, CHANNELS, size).repeat(1, 2, 1, 1, 1)

    def quant_conv(self, x):
        """Returns its input: the stand-in needs no convolution."""
        return x


def tokenizer(texts, max_length, **_):
    """Takes bytes for tokens, in place of the tokenizer."""
    recorded[f"texts/{sum(name.startswith('texts/') for name in recorded)}"] = np.array(texts)
    ids, mask = original_side.byte_tokens(texts, max_length)
    return types.SimpleNamespace(input_ids=ids, attention_mask=mask)


def server_class(original) -> type:
    """The original's server class, which also records what its network gets and makes."""
    class Server(original.VA_Server):
        device = property(lambda self: DEVICE, lambda self, named: None)  # it names "cuda:0"

        def encode_prompt(self, *args, **more):
            made = super().encode_prompt(*args, **more)
            recorded.update({f"text/{i}": numpy(x) for i, x in enumerate(made) if x is not None})
            return made

        def _encode_obs(self, observation):
            pictures.clear()
            made = super()._encode_obs(observation)
            if pictures:
                *head, small = pictures  # in a T the wrists come last and lie on top, else there is one row of views
                row = torch.cat(list(small), -1)
                canvas = numpy(torch.cat([row, *(x[0] for x in head)], -2).movedim(0, -1) + 1) * 127.5
                recorded["canvas"] = np.concatenate([recorded["canvas"], canvas] if "canvas" in recorded else [canvas])
            return made

        def _infer(self, *args, **more):
            randn, noise = torch.randn, []

            def noted(*size, **of):
                noise.append(made := randn(*size, **of))
                noise[-1] = numpy(made)
                return made

            with mock.patch.object(torch, "randn", noted):
                commands, latents = super()._infer(*args, **more)
            recorded.update(commands=commands, video=numpy(latents), noise_video=noise[0], noise_actions=noise[1])
            return commands, latents

        def postprocess_action(self, action):
            recorded["actions"] = numpy(action)
            return super().postprocess_action(action)

        def _prepare_latent_input(self, latents, actions, *args, **more):
            made = super()._prepare_latent_input(latents, actions, *args, **more)
            if len(made) == 2:  # what was seen and done
                recorded.update(seen=numpy(made["latent_res_lst"]["noisy_latents"]),
                            done=numpy(made["action_res_lst"]["noisy_latents"]))
            return made

    return Server


def text_encoder(width: int):
    """Returns a function that makes features of token ids, in place of the text encoder."""
    return lambda ids, mask: types.SimpleNamespace(last_hidden_state=original_side.text_features(ids, width))


def requests(original, network, export: str, work: str, config: dict, inputs: dict) -> dict[str, np.ndarray]:
    """A chunk, what was seen and done in it, and the next chunk, as its client asks."""
    parts = {"vae": CodecStandIn(), "tokenizer": tokenizer, "text_encoder": text_encoder(config["text_dim"]),
             "transformer": network}
    loaders: dict[str, Any] = {f"load_{name}": lambda *_, made=made, **__: made for name, made in parts.items()}
    with mock.patch.multiple(original, save_async=lambda *_: None, **loaders):
        server = server_class(original)(types.SimpleNamespace(
            **config, param_dtype=torch.float32, local_rank=0, save_root=work, patch_size=(1, 2, 2),
            action_norm_method="quantiles", wan22_pretrained_model_name_or_path=export))
        views, found = part(inputs, "pictures/"), {}
        frames = [dict(zip(views, each, strict=True)) for each in zip(*views.values(), strict=True)]
        server.infer({"reset": True, "prompt": inputs["prompt"].item()})
        server.infer({"obs": frames[0]})
        server.infer({"compute_kv_cache": True, "obs": frames[1:], "state": inputs["executed"]})
        found |= {f"request0/{name}": x for name, x in recorded.items()}
        recorded.clear()
        server.infer({"obs": frames[-1]})
        return found | {f"request1/{name}": x for name, x in recorded.items()}


def passes(original, network, window: int, timestep: float, inputs: dict) -> dict[str, np.ndarray]:
    """Runs, for each chunk, its noisy video, its real video into the cache, and its actions likewise."""
    given = {name: torch.from_numpy(x).to(DEVICE) for name, x in inputs.items()}
    text, found, frames = given.pop("text"), {}, inputs["video0"].shape[2]
    video, action = (inputs[name][0, 0].size for name in ("video0", "action0"))
    network.create_empty_cache("pos", window, video // 4, action, DEVICE, torch.float32, 1)
    for name, x in given.items():
        acts, write = name.startswith("action"), name.endswith("_real")
        _, _, _, height, width = x.shape
        rows, columns = (height, width) if acts else (height // 2, width // 2)
        start = frames * int(name.removesuffix("_real")[-1])
        grid = original.get_mesh_id(frames, rows, columns, int(acts), 1, start, action=acts).to(DEVICE)
        time = torch.full((1, frames), 0.0 if write else timestep, device=DEVICE)
        out = network({"noisy_latents": x, "grid_id": grid[None], "text_emb": text, "timesteps": time},
                      update_cache=2 if write else 0, action_mode=acts)
        found[f"forward/{name}"] = numpy(
            out if acts else original.data_seq_to_patch([1, 2, 2], out, frames, height, width))
    return found


@torch.no_grad()
def main(checkout: str, export: str, work: str) -> None:
    """Computes what WORK/inputs.npz asks and writes WORK/found.npz."""
    sys.path.insert(0, f"{checkout}/wan_va")
    importlib.import_module("diffusers.pipelines.wan.pipeline_wan")  # looks for flash-attn: must not find a stand-in
    sys.meta_path.append(original_side.StandIns("flash_attn"))  # config.json says torch's attention
    original, model = (importlib.import_module(name) for name in ("wan_va_server", "modules.model"))
    network, left = model.WanTransformer3DModel.from_pretrained(
        f"{export}/transformer", torch_dtype=torch.float32, output_loading_info=True)
    network, inputs = network.eval().to(DEVICE), original_side.read_inputs(work)
    found = passes(original, network, int(inputs["window"]), float(inputs["timestep"]), part(inputs, "forward/"))
    if "config" in inputs:
        found |= requests(original, network, export, work, json.loads(inputs["config"].item()), inputs)
    original_side.write_results(work, left["missing_keys"], left["unexpected_keys"], **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
