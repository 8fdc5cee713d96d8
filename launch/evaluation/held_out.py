"""Evaluation inside a run: the same held-out windows and noise every time, with the run's own sharded weights.

    held_out/DATASET/NAME   metrics of the loss, also by noise level (evaluate.every), and their means held_out/NAME
    rollout/NAME            errors of rolled-out video and actions, and of their baselines (evaluate.rollout_every)

The windows are decoded and encoded once, at the start; encodings stay on the devices, spread over them. The weights are
the average where there is one. What is computed with is cast for the time of an evaluation, as a step does it.
"""

from collections.abc import Callable

import numpy as np

from launch.evaluation.evaluator import NOISE_SAMPLES, SHOWN, Evaluator, pad_batch
from launch.reporting import figures, scores
from launch.setup.experiment import Experiment
from world_model.encoders import place
from world_model.training import metrics

LOSSES, ROLLOUT = "held_out", "rollout"  # what names of metrics begin with
ROLLED = ("video_psnr_db", "copy_last_psnr_db", "codec_psnr_db", "model_mse", "predict_mean_mse", "repeat_last_mse")


class HeldOut:
    """The evaluations of one run. Call it under the run's mesh.

    experiment: fitted to the devices; data: its mixture; kept: what the run keeps of its encoders; encoders: their
    arrays on the mesh, as far as the train step takes them. Raises ValueError where no episodes are held out.
    """

    def __init__(self, experiment: Experiment, data, mesh, kept: dict, encoders: dict, say: Callable[[str], None]):
        self._config, self._evaluator = experiment.config, Evaluator(experiment, mesh)
        self._model, self._frozen = experiment.model, encoders
        if data.cache:  # a cache has training windows alone: held-out ones are made of video
            data = data.without_cache()
            self._frozen = place(experiment.load_encoders(kept), mesh)
        self._windows = self._encode_windows(data, say) if self._config.evaluate.every else []
        self._rolled = self._encode_rolled(data) if self._config.evaluate.rollout_every else None
        if "video" in self._frozen:
            self._frozen = {"video": self._frozen["video"]}  # decodes what is rolled out
        self.last: dict[str, float] = {}  # the newest means, for the line on the terminal
        self._measured: tuple[int, float] | None = None  # (step, mean loss)

    def _encode_windows(self, data, say) -> list[tuple]:
        """[(dataset, number of windows, small, example)] of the windows whose losses are measured."""
        if missing := sorted({d.name for d in data.training} - {d.name for d in data.heldout}):
            say(f"no episodes of {', '.join(missing)} are held out (data.holdout = {self._config.data.holdout}): "
                "there will be no held-out curve of them")
        size, found = self._evaluator.batch_size(), []
        for dataset, batch in data.heldout_by_dataset(size, self._config.evaluate.windows):
            small, example, _ = self._evaluator.encode(self._frozen, pad_batch(batch, size))
            found.append((dataset, len(batch["sample_index"]), small, example))
        if not found:
            raise ValueError(f"evaluate.every = {self._config.evaluate.every}, and data.holdout = "
                             f"{self._config.data.holdout} holds out no window of any dataset: raise it, or set "
                             "evaluate.every = 0")
        return found

    def _encode_rolled(self, data) -> tuple:
        """(batch, example, conditions, datasets, number of windows) of those that are rolled out."""
        size = self._evaluator.batch_size()
        batch = next(data.heldout_batches(size, size))
        whole = pad_batch(batch, size)
        _, example, conditions = self._evaluator.encode(self._frozen, whole)
        return whole, example, conditions, data.heldout_robots, len(batch["sample_index"])

    def due(self, step: int) -> bool:
        """Whether something is measured after a step."""
        return self._is_due("every", step) or self._is_due("rollout_every", step)

    def _is_due(self, key: str, step: int) -> bool:
        every = self._config.evaluate[key]
        return bool(every) and (step % every == 0 or step == self._config.train.steps)

    def __call__(self, state: dict, step: int) -> tuple[dict[str, float], np.ndarray | None]:
        """(record, picture uint8 [H, W, 3] of rolled-out video or None) of what is due after a step."""
        params = self._model.cast(state["params"] | state.get("ema", {}), self._config.train.compute_dtype)
        record, picture = {}, None
        if self._is_due("every", step):
            record |= self._losses(params)
            self._measured = step, record[f"{LOSSES}/loss"]
        if self._rolled and self._is_due("rollout_every", step):
            rolled, picture = self._roll_out(params)
            record |= rolled
        self.last |= {name: value for name, value in record.items() if name.count("/") == 1}
        return record, picture

    def loss_at(self, step: int) -> float | None:
        """The mean held-out loss after a step, where it was just measured."""
        return self._measured[1] if self._measured and self._measured[0] == step else None

    def _losses(self, params: dict) -> dict[str, float]:
        windows: dict[str, list[dict]] = {}
        for dataset, count, small, example in self._windows:
            for sample in range(NOISE_SAMPLES):
                each = self._evaluator.losses(params, small, example, sample)
                names = [name for name in each if dataset.embodiment.action or not name.startswith("action")]
                windows.setdefault(dataset.name, []).extend(
                    {name: each[name][i] for name in names} for i in range(count))
        found = {name: metrics.reduce(rows) for name, rows in windows.items()}
        every = {key for losses in found.values() for key in losses}
        means = {f"{LOSSES}/{key}": float(np.mean([losses[key] for losses in found.values() if key in losses]))
                 for key in sorted(every) if key.endswith("loss")}
        return means | {f"{LOSSES}/{name}/{key}": x for name, losses in found.items() for key, x in losses.items()}

    def _roll_out(self, params: dict) -> tuple[dict[str, float], np.ndarray | None]:
        batch, example, conditions, datasets, count = self._rolled
        found = self._evaluator.roll_out(params, self._frozen, batch, example, conditions, datasets, min(SHOWN, count))
        arrays = {name: x[:count] for name, x in found.items()}
        measured = scores.action_scores(arrays, self._config.layout.actions_per_block)
        picture = None
        if "frames_true" in arrays:
            measured |= scores.video_scores(arrays)
            picture = figures.strips(arrays)
        return {f"{ROLLOUT}/{name}": measured[name] for name in ROLLED if measured.get(name) is not None}, picture
