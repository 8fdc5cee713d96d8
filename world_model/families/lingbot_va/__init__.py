"""LingBot-VA (arXiv 2601.21998): a chunk's video first, then its actions from it, by one network or, as a Mixture of
Transformers, by two streams that attend to each other."""

import dataclasses

from world_model.families.base.family import Family
from world_model.families.lingbot_va.config import CONFIG, MIXTURE_CONFIG
from world_model.families.lingbot_va.flops import forward_flops, mot_forward_flops
from world_model.families.lingbot_va.inputs import make_inputs
from world_model.families.lingbot_va.layout import LingBotVASpec
from world_model.families.lingbot_va.mixture import LingBotVAMoT, LingBotVAMoTSpec
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.lingbot_va.policy import LingBotVAPolicy
from world_model.families.lingbot_va.sampler import LingBotVASampler
from world_model.families.lingbot_va.weights.export import WRITTEN
from world_model.families.lingbot_va.weights.formats import IMPORTS

FAMILY = Family(
    name="lingbot_va", spec=LingBotVASpec, module=LingBotVA, config=CONFIG, inputs=make_inputs,
    loss="world_model.families.lingbot_va.loss:LingBotVALoss",
    sampler=LingBotVASampler, policy=LingBotVAPolicy, forward_flops=forward_flops, render_mask=LingBotVA.render_mask,
    exports={"lingbot_va": WRITTEN}, imports={"lingbot_va": IMPORTS["lingbot_va"]},
    torch_policy="world_model.families.lingbot_va.torch.policy:LingBotVATorchPolicy",
    original="world_model.families.lingbot_va.torch.original_check:check",
    golden="world_model.families.lingbot_va.parity.golden:LingBotVAGolden")
MIXTURE = dataclasses.replace(
    FAMILY, name="lingbot_va_mot", spec=LingBotVAMoTSpec, module=LingBotVAMoT, config=MIXTURE_CONFIG,
    forward_flops=mot_forward_flops, exports={"lingbot_va_mot": WRITTEN},
    imports={"lingbot_va_mot": IMPORTS["lingbot_va_mot"]}, golden="",
    original="")
