"""Runs an export of LingBot-VLA's version 1 in the published package (rlinf-lingbotvla), by an interpreter that has it.

    PYTHON original_run.py CHECKOUT EXPORT WORK

Needs that package, torch, transformers 4.51, pillow and world_model/original_side.py; what else the package imports is
stood in for. original_check.py asks for a velocity, and for one request: pictures, prompt and state as the package's
own transforms prepare them, actions sampled from given noise, and commands. All is in float32. The sizes of
Qwen2.5-VL-3B-Instruct, which the package would read from the hub, are the export's; prompts are bytes.
"""

import ast
import importlib
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F

from world_model import original_side
from world_model.original_side import DEVICE, numpy, part

MISSING = ("accelerate", "av", "blobfile", "byted_wandb", "cv2", "datasets", "diffusers", "lerobot", "liger_kernel",
           "matplotlib", "numpydantic", "psutil", "pydantic", "torchcodec", "torchdata", "torchvision", "wandb",
           "xformers")
STATE, ACTION = "observation.state.", "action."
# Kinds that the package's Normalizer calls otherwise than the server of 61ef6b1, for which exports are written.
CALLED = {"bounds_99_woclip": "bounds_99"}


def build(language: dict, expert: dict, policy: dict):
    """The published class at those sizes of the vision-language model, of the action expert and of the policy."""
    if not any(isinstance(finder, original_side.StandIns) for finder in sys.meta_path):
        sys.meta_path.append(original_side.StandIns(*MISSING))
    published = importlib.import_module("lingbotvla.models.vla.pi0.modeling_lingbot_vla")
    from transformers import PretrainedConfig
    from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

    def known(*args, **kwargs):
        return Qwen2_5_VLConfig(**language)

    vars(published).update(
        AutoConfig=MagicMock(from_pretrained=known), AutoTokenizer=MagicMock(),
        CONFIG_MAPPING={"qwen2_5_vl": known, "qwen2": lambda **own: Qwen2Config(**{**own, **expert})})
    made = published.LingbotVlaPolicy(PretrainedConfig(**policy), tokenizer_path=policy["tokenizer_path"]).float()
    torch.set_float32_matmul_precision("highest")
    return made


def loaded(export: Path, sizes: dict):
    """(the policy with the export's weights, its arguments, what does not fit)."""
    import yaml
    from safetensors.torch import load_file

    arguments = yaml.safe_load((export / "lingbotvla_cli.yaml").read_text())
    folder = next(export.glob("checkpoints/global_step_*/hf_ckpt"))
    policy = build(sizes["language"], sizes["expert"], {
        **json.loads((folder / "config.json").read_text()), **arguments["model"], **arguments["train"],
        "loss_type": "fm"})
    tensors = {name: x for path in folder.glob("*.safetensors") for name, x in load_file(path).items()}
    return policy.eval().to(DEVICE), arguments, policy.load_state_dict(tensors, strict=False)


def velocity(policy, given: dict[str, torch.Tensor]) -> np.ndarray:
    """The velocity of its training forward, which returns the loss alone."""
    seen = []
    hook = policy.model.action_out_proj.register_forward_hook(lambda module, inputs, out: seen.append(numpy(out)))
    policy(given["patches"], given["view_mask"], given["state"], given["text_ids"], given["words"], given["actions"],
           noise=given["noise"], time=given["time"])
    hook.remove()
    return seen[0]


def tokenizer(texts, max_length, **_) -> dict[str, torch.Tensor]:
    """Takes bytes for tokens, in place of the tokenizer."""
    ids, mask = original_side.byte_tokens(texts, max_length)
    return {"input_ids": ids, "attention_mask": mask}


class Joints:
    """Groups of joints in slots, normalised as the export's files say."""

    def __init__(self, transform, export: Path, data: dict):
        published = json.loads((export / data["norm_stats_file"]).read_text())["norm_stats"]
        kind = CALLED.get(data["norm_type"], data["norm_type"])
        self.normalizer = transform.Normalizer(published, norm_type=dict.fromkeys(published, kind))
        self.rooms = {name: room for entry in data["joints"] for name, room in ast.literal_eval(entry).items()}

    def slots(self, state: dict[str, np.ndarray]) -> torch.Tensor:
        """float32 [slots of all groups] of a state by group."""
        found = self.normalizer.normalize({STATE + name: x for name, x in state.items()})
        return torch.cat([F.pad(torch.from_numpy(x), (0, self.rooms[name.removeprefix(STATE)] - len(x)))
                          for name, x in found.items()]).float()

    def commands(self, actions: np.ndarray, widths: dict[str, int]) -> dict[str, np.ndarray]:
        """Commands by group of joints, from actions [N, slots]."""
        first, found = 0, {}
        for name, room in self.rooms.items():
            if name in widths:
                found[ACTION + name] = actions[:, first:first + widths[name]]
            first += room
        return self.normalizer.unnormalize(found)


def request(policy, export: Path, arguments: dict, asked: dict, sizes: dict) -> dict[str, np.ndarray]:
    """What the released server does with a request, by the package's own functions."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    transform, config = importlib.import_module("lingbotvla.data.vla_data.transform"), policy.config
    processor = Qwen2VLImageProcessor(do_resize=False, patch_size=sizes["language"]["vision_config"]["patch_size"])
    joints, state = Joints(transform, export, arguments["data"]), part(asked, "state/")
    seen = {"image": {name: torch.from_numpy(x).permute(2, 0, 1).float() for name, x in part(asked, "view/").items()},
            "state": joints.slots(state), "prompt": [asked["prompt"].item()]}
    patches, mask, _ = transform.prepare_images(processor, seen, config.resize_imgs_with_padding[::-1],
                                                image_keys=sizes["views"])
    ids, words = transform.prepare_language(tokenizer, seen, config.tokenizer_max_length)
    slots = transform.prepare_state(seen, config.max_state_dim)
    actions = policy.model.sample_actions(*(x[None].to(DEVICE) for x in (patches, mask, ids, words, slots)),
                                          noise=torch.from_numpy(asked["noise"]).to(DEVICE))
    commands = joints.commands(numpy(actions)[0], {name: len(x) for name, x in state.items()})
    return {"patches": numpy(patches), "text_ids": ids.numpy(), "state": numpy(slots), "actions": numpy(actions),
            "texts/0": np.array([bytes(ids[words].tolist()).decode()]),
            **{f"commands/{name.removeprefix(ACTION)}": x for name, x in commands.items()}}


@torch.no_grad()
def main(checkout: str, export: str, work: str) -> None:
    """Computes what WORK/inputs.npz asks and writes WORK/found.npz."""
    asked = original_side.read_inputs(work)
    sizes = json.loads(asked["sizes"].item())
    policy, arguments, fit = loaded(Path(export), sizes)
    given = {name: torch.from_numpy(x).to(DEVICE) for name, x in part(asked, "forward/").items()}
    found = request(policy, Path(export), arguments, part(asked, "request0/"), sizes)
    found = {"forward/velocity": velocity(policy, given)} | {f"request0/{name}": x for name, x in found.items()}
    original_side.write_results(work, fit.missing_keys, fit.unexpected_keys, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
