"""LingBot-VLA (arXiv 2601.18692; version 2: arXiv 2607.06403): a vision-language model and an action expert that are
joined in every layer's attention. It imagines no video."""

from world_model.families.base.family import Family
from world_model.families.lingbot_vla.config import CONFIG
from world_model.families.lingbot_vla.flops import forward_flops
from world_model.families.lingbot_vla.inputs import make_inputs
from world_model.families.lingbot_vla.model import LingBotVLA
from world_model.families.lingbot_vla.sampler import LingBotVLAPolicy, LingBotVLASampler
from world_model.families.lingbot_vla.spec import LingBotVLASpec
from world_model.families.lingbot_vla.weights.export import EXPORTS
from world_model.families.lingbot_vla.weights.formats import IMPORTS

FAMILY = Family(
    name="lingbot_vla", spec=LingBotVLASpec, module=LingBotVLA, config=CONFIG, inputs=make_inputs,
    loss="world_model.families.lingbot_vla.loss:LingBotVLALoss",
    sampler=LingBotVLASampler, policy=LingBotVLAPolicy, forward_flops=forward_flops, imagines_video=False,
    exports=EXPORTS, imports=IMPORTS,
    torch_policy="world_model.families.lingbot_vla.torch.policy:LingBotVLATorchPolicy",
    original="world_model.families.lingbot_vla.torch.original_check:check",
    golden="world_model.families.lingbot_vla.parity.golden:LingBotVLAGolden")
