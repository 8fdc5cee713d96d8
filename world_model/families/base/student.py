"""Consistency training of a few-step student, which starts from its teacher's weights (Easy Consistency Tuning, Geng et
al. 2024, arXiv 2406.14548; the student's own answer, without gradient, is the target: Song and Dhariwal 2023, arXiv
2310.14189).

What a student says of the clean data shall be the same at sigma s and at a lower r of the same data and noise, so that
one step from noise ends where many would. With clean = x - sigma v and x_s - x_r = (s - r) (eps - x0), that asks of the
velocity at s

    v(x_s, s)  =  (1 - r / s) (eps - x0)  +  (r / s) v(x_r, r)

which is flow matching again where r = 0: any family's loss takes it for a target. Video and actions are two streams.
`together`, both go from s to r at once, as if they were one. `apart`, each goes alone, and the other stays as noisy as
it was: one consistency for each modality.
"""

import dataclasses

import jax

from world_model.families.base.loss import Loss


@dataclasses.dataclass(frozen=True)
class StudentLoss(Loss):
    """A family's loss with another target. `model` is that loss's."""

    of: Loss
    streams: str = "apart"
    levels: int = 16  # r lies one of so many below s

    def __post_init__(self):
        if type(self.of).quieter is Loss.quieter:
            raise ValueError(f"{type(self.of).__name__} says nothing of lower noise levels (`quieter`): its family has "
                             "no students")

    def count(self, batch: dict) -> dict:
        """See `Loss`."""
        return self.of.count(batch)

    def sample(self, keys, example, key: jax.Array):
        """See `Loss`."""
        return self.of.sample(keys, example, key)

    def after_step(self, params: dict, metrics: dict) -> tuple[dict, dict]:
        """See `Loss`."""
        return self.of.after_step(params, metrics)

    def loss_at(self, params: dict, example, sampled, counts: dict):
        """See `Loss`; the metrics' losses are those of consistency, and so is `consistency_loss`, their sum."""
        predicted = self.of.predict(params, example, sampled)
        targets = self.consistent(jax.lax.stop_gradient(params), example, sampled)
        loss, metrics = self.of.loss_of(predicted, targets, example, sampled, counts)
        return loss, metrics | {"consistency_loss": loss}

    def consistent(self, params: dict, example, sampled) -> dict:
        """{stream: the velocity that is asked of it}."""
        data = self.of.targets(example, sampled)
        moves = [set(data)] if self.streams == "together" else [{stream} for stream in sorted(data)]
        found = {}
        for streams in moves:
            lower, ratio = self.of.quieter(sampled, 1 / self.levels, streams)
            own, _ = self.of.predict(params, example, lower)
            for stream in sorted(streams):
                cropped = data[stream][tuple(map(slice, own[stream].shape))]  # to what the network has an answer for
                found[stream] = cropped + ratio[stream] * (own[stream].astype(cropped.dtype) - cropped)
        return found
