"""The losses, routers, teachers' heads and gradients that a file of LingBot-VLA's reference numbers asks."""

from collections.abc import Iterator

import jax
import numpy as np

from world_model.diffusion import flow_matching
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.loss import BIAS, ERRORS, moved_bias
from world_model.families.lingbot_vla.parity.jax_adapter import Expert, LingBotVLAAdapter
from world_model.families.lingbot_vla.teachers import COSINE_WEIGHT, video_errors

Found = Iterator[tuple[str, np.ndarray]]
NAMES = {"l1": "l1", "mse": "squared"}  # the reference's and ours of loss.error
BIAS_SPEED = 2.5e-4  # bias speed of the file's updates


def losses(golden, adapter: LingBotVLAAdapter, case: str, example: Example, expert: Expert) -> Found:
    """Losses of a case of the golden file, by both errors; expert: the pass at the training input."""
    train = f"{case}train"
    names = [str(name).removeprefix("model.") for name in golden.inputs[f"{case}grad_names"]]
    for theirs, ours in NAMES.items():
        if f"{train}/loss_{theirs}" not in golden.expected:
            continue
        loss, metrics, gradients = adapter.train(
            example, golden.inputs["in/noise"], golden.inputs["in/time"], error=ours)
        yield f"{train}/loss_{theirs}", metrics["action_loss"]
        yield f"{train}/total_{theirs}", loss
        norms = np.array([np.linalg.norm(gradients[name]) for name in names])
        yield f"{train}/grad_norm_{theirs}", norms
        yield f"{train}/total_grad_norm_{theirs}", np.linalg.norm(norms)
        yield from ((f"{case}grad_{theirs}/model.{name}", x) for name, x in gradients.items())
        yield from _means(golden, example, expert, theirs, train)
    if adapter.spec.experts:
        yield from ((f"{train}/{name}", x) for name, x in _routers(adapter, expert, metrics))
    if adapter.spec.teachers:
        yield from ((f"{train}/{name}", x) for name, x in _teachers(adapter, example, metrics))


def _means(golden, example: Example, expert: Expert, theirs: str, train: str) -> Found:
    """Errors that are logged, over other columns or sample by sample."""
    errors = np.asarray(ERRORS[NAMES[theirs]](
        expert.velocity - flow_matching.velocity(example.actions, golden.inputs["in/noise"])))
    mask = example.action_mask
    yield f"{train}/elem_{theirs}", errors[..., mask[0, 0]]
    yield f"{train}/loss_{theirs}_no_joint_mask", errors.mean()
    masked = (errors * mask).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))
    yield f"{train}/batch_mean_{theirs}", masked if "in/joint_mask" in golden.inputs else errors.mean(axis=(1, 2))


def _routers(adapter: LingBotVLAAdapter, expert: Expert, metrics: dict) -> Found:
    routing, weights = zip(*expert.routing, strict=True)
    yield "router_logits", np.stack([r.logits for r in routing])
    yield "router_selected", np.sort([r.chosen for r in routing], axis=-1)
    yield "router_weights", np.sort(weights, axis=-1)
    yield "seq_balance_per_layer", np.array([r.balance.mean() for r in routing])
    yield "router_z_per_layer", np.array([r.z.mean() for r in routing])
    yield "seq_balance_loss", 1e-3 * metrics["router_balance"]
    yield "router_z_loss", 1e-4 * metrics["router_z"]
    load, bias = metrics["router_load"], adapter.params[BIAS]
    yield "tokens_per_expert", load
    yield "bias_after_update", moved_bias(bias, load, BIAS_SPEED, False)
    yield "bias_after_update_centred", moved_bias(bias, load, BIAS_SPEED, True)


def _teachers(adapter: LingBotVLAAdapter, example: Example, metrics: dict) -> Found:
    weighted = {name.removeprefix("teacher_"): 0.004 * x for name, x in metrics.items() if name.startswith("teacher_")}
    yield "loss_depth_weighted", weighted["current_depth"]
    yield "loss_future_depth_weighted", weighted["future_depth"]
    videos = [weighted[f"{when}_video"] for when in ("current", "future")]
    for name, x in (("video", sum(videos)), ("current_video", videos[0]), ("future_video", videos[1])):
        yield f"align/{name}_loss_weighted", x
        yield f"align/{name}_loss", x / 0.004
    yield "loss_video_weighted", sum(videos)
    for name, features in adapter.teach(example).items():
        yield f"{name.replace('current_depth', 'depth')}_preds", features
        if name.endswith("video"):
            square, angle = jax.device_get(video_errors(features, example.features[name]))
            for part, x, weight in (("mse", square.mean(), 1), ("cosine", angle.mean(), COSINE_WEIGHT)):
                yield f"align/{name}_{part}_loss", x
                yield f"align/{name}_{part}_loss_weighted", weight * x
