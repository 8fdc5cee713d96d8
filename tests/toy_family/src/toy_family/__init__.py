"""Toy: a small transformer that predicts a chunk of actions from camera views (docs/add_a_family.md). No video."""

from toy_family.export import READ, WRITTEN
from toy_family.flow import ToyLoss, ToyPolicy, ToySampler
from toy_family.inputs import ToyInputs
from toy_family.network import Toy
from toy_family.spec import CONFIG, ToySpec, forward_flops
from world_model.families.base.family import Family

FAMILY = Family(
    name="toy", spec=ToySpec, module=Toy, config=CONFIG, inputs=lambda spec, noise: ToyInputs(spec), loss=ToyLoss,
    sampler=ToySampler, policy=ToyPolicy, forward_flops=forward_flops, imagines_video=False, exports={"toy": WRITTEN},
    imports={"toy": READ})
