"""launch.check_policy finds each fault that is planted in a small policy, passes the whole one and our own runtime."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from launch import check_policy
from launch.policy_check.adapter import Adapter, AdapterError, Visibility
from launch.policy_check.properties import FAILED, NOT_CHECKED, PASSED

VIEWS, STEPS, DIMS, WIDTH = 2, 4, 3, 8
FREE = torch.Generator()  # goes on from call to call, whatever the seed
VISIBLE = torch.ones(3, 3, dtype=torch.bool).tril()  # three blocks of tokens, each sees itself and those before


class Policy(nn.Module):
    """Velocities of a chunk from pooled views; `fault` plants one."""

    def __init__(self, fault: str = ""):
        super().__init__()
        self.fault = fault
        self.see, self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(DIMS + 1, WIDTH), nn.Linear(WIDTH, DIMS)
        self.mix = nn.Linear(WIDTH, WIDTH)
        if fault == "an unused parameter":
            self.extra = nn.Parameter(torch.zeros(3))
        state = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=state) / 4
        if fault == "drawn at load":
            self.seeds = nn.Parameter(torch.randn(WIDTH)).to(torch.bfloat16).float()  # no parameter any more
        if fault == "a random parameter":
            self.leave.bias.data = torch.randn(DIMS)

    def velocity(self, batch, noisy, time):
        seen = self.see(batch["views"])  # [B, V, D]
        mask = batch["view_mask"][..., None]
        pooled = seen.mean(1) if self.fault == "masked views" else (seen * mask).sum(1) / mask.sum(1)
        if hasattr(self, "seeds"):
            pooled = pooled + self.seeds
        x = self.enter(torch.cat([noisy, time[:, None, None].expand(-1, STEPS, 1)], -1)) + pooled[:, None]
        if self.fault == "rows together":
            x = x + x.mean(0, keepdim=True)
        return self.leave(torch.tanh(x))

    def blocks(self, tokens):
        table = torch.ones_like(VISIBLE) if self.fault == "sees the future" else VISIBLE
        return torch.tanh(tokens + (table.float() / 3) @ self.mix(tokens))


def loss(module, batch, seed):
    state = torch.Generator().manual_seed(seed)
    rows = len(batch["actions"])
    noise, time = torch.randn(rows, STEPS, DIMS, generator=state), torch.rand(rows, generator=state)
    mask = batch["mask"] | torch.tensor(module.fault == "past the end")
    actions = torch.where(mask, batch["actions"], 0)
    noisy = actions + time[:, None, None] * (noise - actions)
    error = (module.velocity(batch, noisy, time) - (noise - actions)).square()
    blocks = module.blocks(actions[:, :3, :1].expand(-1, -1, WIDTH)).square().mean()
    jitter = torch.randn((), generator=FREE) * (module.fault == "an unseeded loss")
    return (error * mask).sum() / mask.sum() + blocks + jitter


def sample(module, batch, seed):
    rows = len(batch["views"])
    x = torch.stack([torch.randn(STEPS, DIMS, generator=torch.Generator().manual_seed(seed + row))
                     for row in range(rows)])
    if module.fault == "an unseeded sample":
        x = torch.randn(x.shape, generator=FREE)
    return x - module.velocity(batch, x, torch.ones(rows))


def make(fault: str = "", **changes) -> Adapter:
    state = torch.Generator().manual_seed(3)
    mask = torch.ones(2, STEPS, DIMS, dtype=torch.bool)
    mask[0, 2:], mask[:, :, 2] = False, False
    view_mask = torch.tensor([[True, False], [True, True]])
    inputs = {"views": torch.randn(2, VIEWS, 5, generator=state), "view_mask": view_mask, "mask": mask,
              "actions": torch.randn(2, STEPS, DIMS, generator=state)}
    scale = 0.0 if fault == "normalisation" else 2.0
    fields = dict(
        name="toy", load=lambda: Policy(fault), inputs=inputs, loss=loss, sample=sample,
        ignored={"padded steps": ("actions", ~mask.any(-1, keepdim=True)),
                 "invalid dimensions": ("actions", torch.tensor([False, False, True])),
                 "masked views": ("views", ~view_mask[..., None])},
        visibility=Visibility(torch.randn(1, 3, WIDTH, generator=state), VISIBLE, Policy.blocks),
        normalization=((lambda a: 2 * a + 1), (lambda a: (a - 1) / 2 if scale else a / 2)))
    return Adapter(**fields | changes)


def failed(adapter: Adapter) -> set[str]:
    return {finding.name for finding in check_policy.check(adapter) if finding.verdict == FAILED}


def test_a_whole_policy_passes():
    findings = check_policy.check(make())
    assert [f.verdict for f in findings] == [PASSED] * 11, [f for f in findings if f.verdict != PASSED]


@pytest.mark.parametrize("fault,names", [
    ("past the end", {"padded steps do not matter", "invalid dimensions do not matter"}),
    ("masked views", {"masked views do not matter"}),
    ("sees the future", {"outputs do not depend on what they may not see"}),
    ("an unused parameter", {"every trainable parameter gets a gradient"}),
    ("a random parameter", {"nothing is random after loading"}),
    ("drawn at load", {"nothing is random after loading", "what is meant to be learned is a parameter"}),
    ("normalisation", {"normalise and un-normalise are inverse"}),
    ("rows together", {"a batch answers as its rows do alone"})])
def test_each_fault_is_found_and_nothing_else(fault, names):
    assert failed(make(fault)) == names


@pytest.mark.parametrize("what", ["loss", "sample"])
def test_randomness_without_a_seed_is_found(what):
    assert f"{what} is deterministic under a seed" in failed(make(f"an unseeded {what}"))


def test_a_network_that_ignores_what_it_may_see_is_found():
    blind = dataclasses.replace(make().visibility, forward=lambda module, tokens: torch.tanh(tokens))
    found = [f for f in check_policy.check(make(visibility=blind)) if f.name.startswith("outputs do not")]
    assert found[0].verdict == FAILED and found[0].measured["unseen_tokens"] == [0, 1]


def test_what_an_adapter_leaves_out_is_not_called_passed():
    findings = check_policy.check(make(ignored={}, visibility=None, normalization=None))
    assert sum(f.verdict == NOT_CHECKED for f in findings) == 3


def test_a_policy_that_raises_is_a_finding_and_the_others_go_on():
    def broken(module, batch, seed):
        raise RuntimeError("no such view")

    findings = check_policy.check(make(sample=broken))
    assert any("RuntimeError: no such view" in f.sentence for f in findings)
    assert any(f.verdict == PASSED for f in findings)


@pytest.mark.parametrize("changes,sentence", [
    ({"ignored": {"steps": ("action", torch.ones(1, dtype=torch.bool))}}, "did you mean 'actions'"),
    ({"ignored": {"steps": ("actions", torch.ones(5, dtype=torch.bool))}}, r"broadcast to 'actions' \[2, 4, 3\]"),
    ({"ignored": {"steps": ("actions", torch.zeros(1, dtype=torch.bool))}}, "nothing to check"),
    ({"inputs": {"views": torch.zeros(1, 2)}, "ignored": {}}, "at least 2 rows"),
    ({"loss": lambda module, batch, seed: torch.zeros(3)}, r"shape \[\] or \[2\], found torch.float32 \[3\]"),
    ({"loss": lambda module, batch, seed: torch.tensor(float("nan"))}, "loss is not finite"),
    ({"sample": lambda module, batch, seed: torch.zeros(2, 3)}, r"\[2, steps, dimensions\], found torch.float32"),
    ({"load": lambda: None}, "should return a torch.nn.Module, found NoneType"),
    ({"visibility": Visibility(torch.zeros(1, 2, WIDTH), VISIBLE, Policy.blocks)}, r"bool \[2, 2\]"),
    ({"normalization": (lambda a: a, lambda a: a[:1])}, "normalization returns")])
def test_an_adapter_that_breaks_its_word_is_told_where(changes, sentence):
    with pytest.raises(AdapterError, match=sentence):
        check_policy.check(make(**changes))


@pytest.mark.parametrize("name,sentence", [("json", "MODULE:CALLABLE"), ("json:nothing", "has no 'nothing'"),
                                           ("nothing.here:adapter", "there is no module 'nothing': run this in its folder"),
                                           ("json.here:adapter", "there is no module 'json.here'"),
                                           ("builtins:dict", "should return an Adapter, found dict")])
def test_a_wrong_name_is_told(name, sentence):
    with pytest.raises(AdapterError, match=sentence):
        check_policy.load_adapter(name)


def test_page_and_json_hold_what_was_seen(tmp_path):
    adapter = make("an unused parameter")
    check_policy.write(tmp_path, adapter, check_policy.check(adapter))
    stored = json.loads((tmp_path / "policy_check.json").read_text())
    lost = [f for f in stored["findings"] if f["verdict"] == FAILED]
    assert [f["measured"]["without"] for f in lost] == [["extra"]]
    assert "1 failed" in (page := (tmp_path / "policy_check.html").read_text()) and "extra" in page
