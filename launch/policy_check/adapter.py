"""What somebody tells of a policy so that it can be checked (extra: torch)."""

import dataclasses
import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


class AdapterError(Exception):
    """An adapter does not keep what its docstring says; the sentence says what and where."""


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Tokens of one pass, for the check that nothing sees what it may not."""

    tokens: Tensor  # [B, T, D], what the pass starts from
    visible: Tensor  # bool [T, T]: a layer's row may see that column
    forward: Callable[[nn.Module, Tensor], Tensor]  # (module, tokens) -> [B, T, any]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A policy, a batch of at least two rows, and what in the batch must not matter.

    All randomness of loss and sample has to come from the seed; torch.manual_seed(seed) is called before each.
    """

    name: str
    load: Callable[[], nn.Module]  # the policy with its weights, anew at each call
    inputs: Inputs  # [B, ...] each
    loss: Callable[[nn.Module, Inputs, int], Tensor]  # (module, inputs, seed) -> a number, or one per row [B]
    sample: Callable[[nn.Module, Inputs, int], Tensor]  # (module, inputs, seed) -> actions [B, N, A]
    # What must not matter: {what it is: (name of the input, bool that broadcasts to it, True where it must not)}. Usual
    # are steps past an episode's end, dimensions that the robot lacks, and views that are masked.
    ignored: dict[str, tuple[str, Tensor]] = dataclasses.field(default_factory=dict)
    visibility: Visibility | None = None
    # (normalise, un-normalise) of actions like those in inputs["actions"], or of `raw_actions`
    normalization: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
    raw_actions: Tensor | None = None
    tolerance: float = 1e-5  # for a batch against its rows, and for what a pass may not see

    def __post_init__(self):
        """Raises AdapterError."""
        rows = {name: len(value) if value.ndim else 0 for name, value in self.inputs.items()}
        if not rows or len(set(rows.values())) > 1 or min(rows.values()) < 2:
            raise AdapterError(f"inputs should share a first axis of at least 2 rows, found {rows}")
        for what, (name, where) in self.ignored.items():
            if name not in self.inputs:
                near = difflib.get_close_matches(name, self.inputs, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise AdapterError(f"ignored[{what!r}] names the input {name!r}, there are {sorted(self.inputs)}{hint}")
            shape = tuple(self.inputs[name].shape)
            try:
                fits = torch.broadcast_shapes(where.shape, shape) == shape
            except RuntimeError:
                fits = False
            if where.dtype != torch.bool or not fits:
                raise AdapterError(f"ignored[{what!r}] should be bool and broadcast to {name!r} {list(shape)}, found "
                                   f"{where.dtype} {list(where.shape)}")
            if not where.any():
                raise AdapterError(f"ignored[{what!r}] is False everywhere: there is nothing to check")

    @property
    def batch(self) -> int:
        """Rows of the inputs."""
        return len(next(iter(self.inputs.values())))

    def row(self, index: int) -> Inputs:
        """One row of the inputs, as a batch of one."""
        return {name: value[index:index + 1] for name, value in self.inputs.items()}

    def loss_of(self, module: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
        """The mean loss, one number. Raises AdapterError where the loss has another shape or is not finite."""
        torch.manual_seed(seed)
        loss, rows = self.loss(module, inputs, seed), len(next(iter(inputs.values())))
        if not isinstance(loss, Tensor) or tuple(loss.shape) not in ((), (rows,)):
            raise AdapterError(f"loss should return a tensor of shape [] or [{rows}], found {kind(loss)}")
        if not torch.isfinite(loss).all():
            raise AdapterError(f"loss is not finite on the adapter's inputs: {loss.tolist()}")
        return loss.mean()

    @torch.no_grad()
    def sample_of(self, module: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
        """Actions [B, N, A]. Raises AdapterError where they have another shape."""
        torch.manual_seed(seed)
        actions, rows = self.sample(module, inputs, seed), len(next(iter(inputs.values())))
        if not isinstance(actions, Tensor) or actions.ndim != 3 or len(actions) != rows:
            raise AdapterError(f"sample should return actions [{rows}, steps, dimensions], found {kind(actions)}")
        return actions

    @torch.no_grad()
    def pass_of(self, module: nn.Module, tokens: Tensor) -> Tensor:
        """Outputs [B, T, ...] of the tokens. Raises AdapterError where they or the table have another shape."""
        assert self.visibility is not None
        count, table = tokens.shape[1], self.visibility.visible
        if table.dtype != torch.bool or tuple(table.shape) != (count, count):
            raise AdapterError(f"visibility.visible should be bool [{count}, {count}], found {kind(table)}")
        out = self.visibility.forward(module, tokens)
        if not isinstance(out, Tensor) or out.shape[:2] != tokens.shape[:2]:
            raise AdapterError(f"visibility.forward should return [{len(tokens)}, {count}, ...], found {kind(out)}")
        return out


def kind(value) -> str:
    """What something is, for a sentence."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
