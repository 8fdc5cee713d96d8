"""Runs an export in somebody's checkout of the original DreamZero, by that project's own interpreter.

    PYTHON original_run.py CHECKOUT EXPORT TAG WORK

Needs that project's packages, and world_model/original_side.py. original_check.py asks for a training forward by its
network, and two requests to its policy (a first frame, then four). All is in float32 with exact softmax, on a GPU or
without one; its frozen encoders are stand-ins.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from world_model import original_side
from world_model.original_side import DEVICE, exact_attention, numpy, part

IMAGE_TOKENS, IMAGE_DIM = 257, 1280
recorded: dict[str, np.ndarray] = {}  # of the request under way


class OnTheCpu(TorchFunctionMode):
    """Makes tensors on the CPU where the original names "cuda"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = DEVICE
        return function(*args, **kwargs)


class NoEvent:
    """A CUDA event that measures no time, for machines without CUDA."""

    def __init__(self, **_):
        pass

    def record(self):
        """Does nothing: there is no device time to record."""

    def elapsed_time(self, other):
        """Returns 0 milliseconds."""
        return 0.0


class TextStandIn(nn.Module):
    """Makes features of token ids, in place of the text encoder."""

    def __init__(self, width: int, path: str):
        super().__init__()
        self.text_encoder_pretrained_path, self.width = path, width

    def forward(self, ids, mask):
        return original_side.text_features(ids, self.width)


class ImageStandIn(nn.Module):
    """Makes features of a picture, in place of the image encoder."""

    def __init__(self, path: str):
        super().__init__()
        self.image_encoder_pretrained_path, self.model = path, nn.Module()
        self.model.visual = nn.Identity()

    def encode_image(self, image):
        mean = image.float().mean((1, 3, 4))
        wave = torch.sin(torch.arange(IMAGE_TOKENS * IMAGE_DIM, device=image.device) / 11.0)
        wave = wave.unflatten(0, (IMAGE_TOKENS, IMAGE_DIM))
        recorded["image"] = numpy(wave * (1 + mean.mean(1)[:, None, None]))
        return torch.from_numpy(recorded["image"]).to(image.device)


class CodecStandIn(nn.Module):
    """Makes latents of a video, of its first frame and then of four at a time, in place of the codec."""

    def __init__(self, channels: int, size: list, path: str):
        super().__init__()
        self.vae_pretrained_path, self.z_dim, self.size, self.model = path, channels, tuple(size), nn.Module()
        self.model.encode = None

    def encode(self, video, **_):
        made = original_side.latents([video[:, :, :1], *video[:, :, 1:].split(4, 2)], self.z_dim, self.size)
        recorded.setdefault("codec", []).append(numpy(made))
        return made


class TokenizerStandIn:
    """Takes bytes for tokens, in place of the tokenizer."""

    def __init__(self, name, seq_len, clean):
        self.length = seq_len

    def __call__(self, texts, **_):
        recorded.setdefault("texts", []).append(np.array(texts))
        return original_side.byte_tokens(texts, self.length)


def make_float32() -> None:
    """Removes bfloat16 and compiling from torch, before the original is imported."""
    torch.bfloat16 = torch.float32
    torch.compile = lambda *args, **_: args[0] if args else (lambda function: function)


def patch() -> None:
    """Replaces attention, which it computes in bfloat16, the tokenizer and, without a GPU, what it wants of CUDA."""
    from groot.vla.model.dreamzero.modules import wan2_1_attention, wan2_1_submodule
    from groot.vla.model.dreamzero.transform import dreamzero_cotrain

    wan2_1_attention.AttentionModule.forward = lambda self, q, k, v, *_: exact_attention(q, k, v)
    wan2_1_submodule.flash_attention = exact_attention
    dreamzero_cotrain.HuggingfaceTokenizer = TokenizerStandIn
    if DEVICE == "cpu":
        generator = torch.Generator
        torch.Generator = lambda device="cpu": generator("cpu")
        torch.cuda.Event, torch.cuda.synchronize = NoEvent, lambda *_: None


def with_stand_ins(export: Path, work: Path) -> Path:
    """A folder of links to the export, whose config.json names the stand-ins."""
    folder, nothing = work / "export", work / "nothing.pth"
    folder.mkdir()
    for path in export.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    torch.save({}, nothing)
    config = json.loads((export / "config.json").read_text())
    head, ours = config["action_head_cfg"]["config"], config["wamax"]
    here = {"_convert_": "object", "path": str(nothing)}
    head["text_encoder_cfg"] = {"_target_": "wamax_stand_ins.TextStandIn", **here, "width": ours["network"]["text_dim"]}
    head["image_encoder_cfg"] = {"_target_": "wamax_stand_ins.ImageStandIn", **here}
    head["vae_cfg"] = {"_target_": "wamax_stand_ins.CodecStandIn", **here, "channels": ours["network"]["out_dim"],
                       "size": ours["inputs"]["latent_size"]}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unmatched(policy, export: Path) -> tuple[set[str], set[str]]:
    """What its loader, which is not strict, left out: names of the network that no file has, and the reverse."""
    index = json.loads((export / "model.safetensors.index.json").read_text())["weight_map"]
    head = policy.trained_model.action_head
    merged = head.train_architecture == "lora"
    written = {name.replace("base_model.model.", "") for name in index if ".lora_" not in name or not merged}
    network = {f"action_head.model.{name}" for name in head.model.state_dict()}
    return network - written, written - network


def forward(network, inputs: dict) -> dict[str, np.ndarray]:
    """Its teacher-forced forward, which works under gradients alone."""
    given = {name: torch.from_numpy(x).to(DEVICE) for name, x in inputs.items()}
    frames = given["video_timestep"].shape[1]
    batch, _, _, height, width = given["noisy_latents"].shape
    video, action = network(
        given["noisy_latents"], timestep=given["video_timestep"], timestep_action=given["action_timestep"],
        context=given["text"], seq_len=frames * (height // 2) * (width // 2), clean_x=given["clean_latents"],
        y=given["condition"], clip_feature=given.get("image"), action=given["noisy_actions"], state=given["state"],
        embodiment_id=torch.zeros(batch, dtype=torch.long, device=DEVICE))
    return {"forward/video": numpy(video), "forward/action": numpy(action)}


def request(policy, observation: dict) -> dict[str, np.ndarray]:
    """One request as its server makes it: what the head was given, and what came out."""
    from tianshou.data import Batch

    recorded.clear()
    answer, video = policy.lazy_joint_forward_causal(Batch(obs=observation))
    found = {"act/" + key: np.asarray(value, np.float32) for key, value in answer.act.items()}
    for name in ("texts", "text", "codec"):
        found |= {f"{name}/{i}": x for i, x in enumerate(recorded.pop(name, []))}
    return found | recorded | {"video": numpy(video)}


def watch(head) -> None:
    """Notes what the head is given and makes."""
    act, noise, prompt = head.lazy_joint_video_action, head.generate_noise, head.encode_prompt

    def noted(backbone, data, **more):
        recorded.update(canvas=numpy(data["images"]), state=numpy(data["state"]))
        out = act(backbone, data, **more)
        recorded["actions"] = numpy(out["action_pred"])
        return out

    def noise_noted(*args, **more):
        made = noise(*args, **more)
        recorded["noise_actions" if "noise_video" in recorded else "noise_video"] = numpy(made)
        return made

    def prompt_noted(*args):
        recorded.setdefault("text", []).append(numpy(prompt(*args)))
        return torch.from_numpy(recorded["text"][-1]).to(DEVICE)

    head.lazy_joint_video_action, head.generate_noise, head.encode_prompt = noted, noise_noted, prompt_noted


def main(checkout: str, export: str, tag: str, work: str) -> None:
    """Computes what WORK/inputs.npz asks and writes WORK/found.npz."""
    sys.path.insert(0, checkout)
    sys.modules["wamax_stand_ins"] = sys.modules[__name__]
    torch.distributed.init_process_group("gloo", init_method=f"file://{work}/group", rank=0, world_size=1)
    make_float32()
    with OnTheCpu() if DEVICE == "cpu" else contextlib.nullcontext():
        from groot.vla.data.schema import EmbodimentTag
        from groot.vla.model.n1_5.sim_policy import GrootSimPolicy

        patch()
        folder = with_stand_ins(Path(export), Path(work))
        policy = GrootSimPolicy(EmbodimentTag(tag), str(folder), DEVICE)
        head = policy.trained_model.action_head
        head._device = DEVICE
        inputs = original_side.read_inputs(work)
        found = forward(head.model, part(inputs, "forward/"))
        watch(head)
        for i in range(2):
            observation = part(inputs, prefix := f"request{i}/")
            text = observation.pop("text").item()
            answers = request(policy, observation | {"annotation.language.action_text": text})
            found |= {prefix + name: x for name, x in answers.items()}
    original_side.write_results(work, *unmatched(policy, Path(export)), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
