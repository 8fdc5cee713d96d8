"""The properties themselves: each takes an adapter and a loaded policy and gives findings (extra: torch)."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from launch.policy_check.adapter import Adapter, AdapterError

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
LOSS_SEEDS = 4  # draws of noise and time over which a parameter has to get a gradient at least once
CHANGED_TOKENS = 32  # tokens of a pass, evenly spread


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came out of one check."""

    name: str
    verdict: str
    sentence: str
    measured: dict = dataclasses.field(default_factory=dict)


def verdict(passed: bool) -> str:
    """PASSED or FAILED."""
    return PASSED if passed else FAILED


def repeatable(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """Loss and sample are functions of the inputs and the seed; all other checks rest on that."""
    for what, call in (("loss", adapter.loss_of), ("sample", adapter.sample_of)):
        with torch.no_grad():
            first, again, other = (call(module, adapter.inputs, seed) for seed in (0, 0, 1))
        apart = largest(first - again)
        same = "equal bit for bit" if apart == 0 else f"{apart:.3g} apart"
        noise = "another seed gives another" if not torch.equal(first, other) else "the seed does not matter"
        yield Finding(f"{what} is deterministic under a seed", verdict(apart == 0),
                      f"twice with seed 0: {same}; {noise}", {"largest_difference": apart})


def masked_inputs(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """What must not matter does not: neither the loss nor its gradient nor the sampled actions know of it."""
    if not adapter.ignored:
        yield Finding("what is masked does not matter", NOT_CHECKED, "the adapter names nothing that is masked")
    for what, (name, where) in adapter.ignored.items():
        value = adapter.inputs[name]
        where = where.broadcast_to(value.shape)
        changed = adapter.inputs | {name: torch.where(where, other_values(value), value)}
        with torch.no_grad():
            loss = largest(adapter.loss_of(module, changed) - adapter.loss_of(module, adapter.inputs))
        actions = largest(adapter.sample_of(module, changed) - adapter.sample_of(module, adapter.inputs))
        gradient = largest_gradient(adapter, module, name, where) if value.is_floating_point() else None
        measured = {"loss": loss, "sampled_actions": actions} | ({} if gradient is None else {"gradient": gradient})
        moved = ", ".join(f"{part.replace('_', ' ')} by {size:.3g}" for part, size in measured.items() if size)
        yield Finding(f"{what} do not matter", verdict(not moved), f"other values of {name!r} there change "
                      + (moved or "neither loss, gradient nor actions"), measured)


def largest_gradient(adapter: Adapter, module: nn.Module, name: str, where: Tensor) -> float:
    """The largest gradient of the loss with respect to an input, there."""
    value = adapter.inputs[name].detach().clone().requires_grad_()
    gradient, = torch.autograd.grad(adapter.loss_of(module, adapter.inputs | {name: value}), value, allow_unused=True)
    return 0.0 if gradient is None else largest(gradient[where])


def other_values(value: Tensor) -> Tensor:
    """Values of the same range in another order: nothing that a network has to refuse."""
    return value.flatten()[torch.randperm(value.numel(), generator=torch.Generator().manual_seed(1))].view_as(value)


def visibility(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """An output does not depend on what its token may not see, through any number of layers, but on what it may."""
    name = "outputs do not depend on what they may not see"
    if adapter.visibility is None:
        yield Finding(name, NOT_CHECKED, "the adapter has no visibility")
        return
    tokens, reach = adapter.visibility.tokens, closure(adapter.visibility.visible)
    before, leaks, blind, worst = adapter.pass_of(module, tokens), [], [], 0.0
    for index in torch.linspace(0, tokens.shape[1] - 1, min(CHANGED_TOKENS, tokens.shape[1])).long().unique().tolist():
        changed = tokens.clone()
        changed[:, index] = tokens[:, index].flip(-1) + 1
        moved = (adapter.pass_of(module, changed) - before).abs().flatten(2).amax(dim=(0, 2))
        hidden = moved.where(~reach[:, index], torch.zeros(())).max().item()
        worst = max(worst, hidden)
        leaks += [index] if hidden > adapter.tolerance else []
        others = reach[:, index] & (torch.arange(len(reach)) != index)
        blind += [index] if others.any() and moved[others].max() == 0 else []
    sentence = f"changing tokens moves outputs that may not see them by at most {worst:.3g}"
    sentence += f"; tokens {leaks[:8]} leak" if leaks else ""
    sentence += f"; nothing depends on tokens {blind[:8]}, which the table shows" if blind else ""
    yield Finding(name, verdict(not leaks and not blind), sentence,
                  {"largest_leak": worst, "leaking_tokens": leaks, "unseen_tokens": blind})


def closure(visible: Tensor) -> Tensor:
    """bool [T, T]: what reaches a row through any number of layers, with what a residual stream keeps."""
    reach = visible | torch.eye(len(visible), dtype=torch.bool)
    while not torch.equal(wider := (reach.float() @ reach.float()) > 0, reach):
        reach = wider
    return reach


def gradients(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """Each trainable parameter gets a finite gradient that is not zero, over a few draws."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not named:
        yield Finding("every trainable parameter gets a gradient", FAILED, "no parameter is trainable")
        return
    silent, broken = set(named), set()
    for seed in range(LOSS_SEEDS):
        found = torch.autograd.grad(adapter.loss_of(module, adapter.inputs, seed), list(named.values()),
                                    allow_unused=True)
        for name, gradient in zip(named, found, strict=True):
            if gradient is not None:
                broken |= set() if torch.isfinite(gradient).all() else {name}
                silent -= {name} if gradient.any() else set()
    lost = sum(named[name].numel() for name in silent)
    sentence = f"{len(named) - len(silent)} of {len(named)} parameters get one over {LOSS_SEEDS} draws"
    sentence += f"; none: {shortened(sorted(silent))} ({lost:,} values)" if silent else ""
    sentence += f"; not finite: {shortened(sorted(broken))}" if broken else ""
    yield Finding("every trainable parameter gets a gradient", verdict(not silent and not broken), sentence,
                  {"without": sorted(silent), "values_without": lost, "not_finite": sorted(broken)})


def loading(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """Loaded twice under other seeds the policy is the same, and what is meant to be learned is a parameter."""
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(adapter.load())
    first, second = (dict(tensors(each)) for each in loaded)
    differ = {name: list(value.shape) for name, value in first.items()
              if name not in second or not torch.equal(value, second[name])}
    listed = shortened([f"{name} {shape}" for name, shape in differ.items()])
    yield Finding("nothing is random after loading", verdict(not differ),
                  f"loaded twice, {len(first)} tensors: " + (f"these differ: {listed}" if differ else "all are equal"),
                  {"random": differ})
    known = {name for name, _ in (*loaded[0].named_parameters(), *loaded[0].named_buffers())}
    stray = {name: list(value.shape) for name, value in first.items()
             if name not in known and (value.requires_grad or name in differ)}
    listed = shortened([f"{name} {shape}" for name, shape in stray.items()])
    yield Finding("what is meant to be learned is a parameter", verdict(not stray),
                  f"neither saved nor trained: {listed}" if stray else "no other tensor asks for a gradient",
                  {"stray": stray})


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors that a module holds, the unregistered ones too, by name."""
    for prefix, part in module.named_modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}".lstrip("."), value


def normalisation(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """Normalising and un-normalising give back the robot's numbers."""
    name = "normalise and un-normalise are inverse"
    if adapter.normalization is None:
        yield Finding(name, NOT_CHECKED, "the adapter has no normalization")
        return
    normalise, back = adapter.normalization
    raw = adapter.raw_actions if adapter.raw_actions is not None else adapter.inputs.get("actions")
    if raw is None:
        raise AdapterError("normalization needs raw_actions, or an input called 'actions'")
    returned = back(normalise(raw))
    if returned.shape != raw.shape:
        raise AdapterError(f"normalization returns {list(returned.shape)} for actions {list(raw.shape)}")
    apart = largest(returned - raw) / max(largest(raw), 1e-12)
    yield Finding(name, verdict(apart < 1e-5), f"there and back: {apart:.3g} of the largest action",
                  {"relative": apart})


def batching(adapter: Adapter, module: nn.Module) -> Iterator[Finding]:
    """Each row, put first in the batch, gets the actions that it gets alone; its noise has to come from the seed and
    its place."""
    apart = [largest(adapter.sample_of(module, {name: value.roll(-i, 0) for name, value in adapter.inputs.items()})[:1]
                     - adapter.sample_of(module, adapter.row(i))) for i in range(adapter.batch)]
    yield Finding("a batch answers as its rows do alone", verdict(max(apart) <= adapter.tolerance),
                  f"{adapter.batch} rows, each alone and first in the batch: at most {max(apart):.3g} apart",
                  {"largest_difference_by_row": apart})


def largest(x: Tensor) -> float:
    """The largest absolute value, 0 of nothing; infinite where something is not finite."""
    if not x.numel():
        return 0.0
    found = x.detach().abs().max().item()
    return found if found == found else float("inf")


def shortened(names: list[str], count: int = 8) -> str:
    """The first few names, and how many more."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


PROPERTIES: tuple[Callable[[Adapter, nn.Module], Iterator[Finding]], ...] = (
    repeatable, masked_inputs, visibility, gradients, loading, normalisation, batching)
