"""DreamZero (arXiv 2602.15922): video and actions of a block are denoised together by one causal video transformer."""

from world_model.families.base.family import Family
from world_model.families.dreamzero.config import CONFIG
from world_model.families.dreamzero.flops import forward_flops
from world_model.families.dreamzero.inputs import DreamZeroInputs
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.model import DreamZero
from world_model.families.dreamzero.policy import DreamZeroPolicy
from world_model.families.dreamzero.sampler import DreamZeroSampler
from world_model.families.dreamzero.weights.export import EXPORTS
from world_model.families.dreamzero.weights.formats import IMPORTS


def make_inputs(spec: DreamZeroSpec, noise: dict, **encoders) -> DreamZeroInputs:
    """The inputs around those encoders."""
    return DreamZeroInputs(spec=spec, **encoders)


FAMILY = Family(
    name="dreamzero", spec=DreamZeroSpec, module=DreamZero, config=CONFIG, inputs=make_inputs,
    loss="world_model.families.dreamzero.loss:DreamZeroLoss",
    sampler=DreamZeroSampler, policy=DreamZeroPolicy, forward_flops=forward_flops, render_mask=DreamZero.render_mask,
    exports=EXPORTS, imports=IMPORTS,
    torch_policy="world_model.families.dreamzero.torch.policy:DreamZeroTorchPolicy",
    torch_step="world_model.families.dreamzero.torch.step:write_step",
    original="world_model.families.dreamzero.torch.original_check:check",
    golden="world_model.families.dreamzero.parity.golden:DreamZeroGolden")
