"""What a file of DreamZero's reference numbers asks, section by section.

Noise schedules and solver trajectories (sched), the teacher-forced forward with its losses and gradient norms (tf),
the same without actions (tfv), without a clean copy (ntf), and cached inference (inf).
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from world_model.batch import Layout
from world_model.diffusion import flow_matching, solvers
from world_model.families.base.golden import GoldenFile, channels_first, formula
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.wan.loss import frame_errors

SHIFT = 5.0


class DreamZeroGolden(GoldenFile):
    """A file of DreamZero's numbers."""

    MARK = "num_frame_per_block"
    INPUTS = re.compile(r"w/|in/|(cfg_json|noise_floor_json|grad_names|sched/mask8|sched/fm_weight_query)$"
                       r"|inf/block\d+_t$")
    RELATIVE = re.compile(r"tf/grad_norm$|sched/.*_timesteps$")

    def adapter(self, runtime: str, weights: Mapping[str, np.ndarray] | None = None):
        """The JAX model or the PyTorch runtime."""
        weights = self.weights if weights is None else weights
        if runtime == "jax":
            from world_model.families.dreamzero.parity.jax_adapter import JaxAdapter

            return JaxAdapter.from_reference(self.spec, weights)
        from world_model.families.dreamzero.torch.adapter import TorchAdapter

        return TorchAdapter.from_reference(self.spec, weights)

    @property
    def spec(self) -> DreamZeroSpec:
        """The model of this file."""
        c, m = self.config, self.config["model"]
        n, height, width = m["num_frame_per_block"], 2 * c["hp"], 2 * c["wp"]
        layout = Layout(
            frames=4 * n * c["nblk"] + 1, height=8 * height, width=8 * width, frames_per_block=n,
            actions_per_block=m["num_action_per_block"], states_per_block=m["num_state_per_block"])
        return DreamZeroSpec(
            layout=layout, latent_height=height, latent_width=width, dim=m["dim"], ffn_dim=m["ffn_dim"],
            num_heads=m["num_heads"], num_layers=m["num_layers"], freq_dim=m["freq_dim"],
            latent_channels=m["out_dim"], concat_first_frame=m.get("concat_first_frame_latent", True),
            text_dim=m["text_dim"], text_length=m["text_len"], image_dim=c["clip_dim"],
            image_tokens=self.inputs["in/clip"].shape[1], action_dim=m["action_dim"],
            state_dim=m["max_state_dim"], action_hidden_dim=m["hidden_size"],
            window_blocks=m["max_chunk_size"])

    def parts(self, *, clean: bool, actions: bool) -> dict[str, np.ndarray | None]:
        """Inputs of a forward over the whole window."""
        parts = {"noisy_latents": self.video("noisy"), "video_timestep": self.inputs["in/timestep"],
                 "text": self.inputs["in/context"], "image": self.inputs["in/clip"],
                 "condition": self.video("y") if self.spec.concat_first_frame else None}
        if clean:
            parts["clean_latents"] = self.video("latents")
        if actions:
            parts |= {"noisy_actions": self.inputs["in/noisy_action"],
                      "action_timestep": self.inputs["in/timestep_action"], "state": self.inputs["in/state"]}
        return parts

    def example(self) -> dict[str, np.ndarray | None]:
        """Inputs of the training loss, with the noise that was sampled."""
        given = self.inputs
        mask = (given["in/action_mask"] * given["in/has_real_action"][:, None, None]).astype(bool)
        return {"latents": self.video("latents"), "text": given["in/context"], "image": given["in/clip"],
                "condition": self.parts(clean=True, actions=False)["condition"],
                "actions": given["in/action"], "action_mask": mask, "state": given["in/state"],
                "noise": self.video("noise"), "action_noise": given["in/noise_action"],
                "video_index": given["in/t_id"], "action_index": given["in/ta_id"]}

    def frame_errors(self, video: np.ndarray) -> np.ndarray:
        """[B, F]: mean square errors of predicted velocities."""
        return np.asarray(frame_errors(video, self.video("noise") - self.video("latents")))


def teacher_forced(golden: DreamZeroGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Training forward with clean and noisy copy; hidden states are of sample 0."""
    out = adapter.forward(golden.parts(clean=True, actions=True))
    for i, hidden in enumerate(out.hidden):
        yield f"tf/block{i}", hidden[:1]
    yield "tf/video", channels_first(out.video)
    yield "tf/action", out.action
    yield "tf/dyn_per_frame", golden.frame_errors(out.video)
    if "tf/loss" in golden.expected:
        losses = adapter.losses(golden.example())
        yield "tf/dynamics_loss", losses.video
        yield "tf/action_loss", losses.action
        yield "tf/loss", losses.video + losses.action
        yield "tf/grad_norm", np.array([losses.gradient_norms[str(n)] for n in golden.inputs["grad_names"]])


def video_only(golden: DreamZeroGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """The training forward without action and state tokens."""
    out = adapter.forward(golden.parts(clean=True, actions=False))
    yield "tfv/sane_video", channels_first(out.video)
    weights = flow_matching.noise_levels(SHIFT).weights[golden.inputs["in/t_id"]]
    yield "tfv/sane_loss", (golden.frame_errors(out.video) * weights).mean()


def no_clean_copy(golden: DreamZeroGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """The forward over one copy of the video."""
    out = adapter.forward(golden.parts(clean=False, actions=True))
    yield "ntf/video", channels_first(out.video)
    yield "ntf/action", out.action


def cached_inference(golden: DreamZeroGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Prefill of clean blocks and one denoising forward of each, where state tokens see all, as released."""
    layout, given = golden.spec.layout, golden.inputs
    latents, noise = golden.video("latents"), golden.video("noise")
    # The first frame sees itself alone: the form without a clean copy gives its output.
    parts = golden.parts(clean=False, actions=True)
    condition = parts["condition"]
    first = adapter.forward(parts | {"noisy_latents": latents, "video_timestep": 0 * parts["video_timestep"]})
    yield "inf/prefill0_video", channels_first(first.video[:, :1])

    session = adapter.start(given["in/context"], given["in/clip"], "dreamzero_state_sees_all")
    session.prefill(latents[:, :1], _at(condition, slice(0, 1)))
    yield "inf/kv_after_prefill0_l0", session.keys_values(0)[:, :1]
    for i in range(layout.num_blocks):
        counts = layout.frames_per_block, layout.actions_per_block, layout.states_per_block
        frames, actions, states = (slice(i * n, (i + 1) * n) for n in counts)
        frames = slice(1 + frames.start, 1 + frames.stop)
        noisy = {"noisy_latents": noise[:, frames], "noisy_actions": given["in/noise_action"][:, actions],
                 "state": given["in/state"][:, states]}
        for time, x in (("video_timestep", "noisy_latents"), ("action_timestep", "noisy_actions")):
            noisy[time] = np.full(noisy[x].shape[:2], given[f"inf/block{i}_t"], np.float32)
        out = session.denoise(noisy, _at(condition, frames))
        yield f"inf/block{i}_video", channels_first(out.video)
        yield f"inf/block{i}_action", out.action
        if i + 1 < layout.num_blocks:
            session.prefill(latents[:, frames], _at(condition, frames))
            yield f"inf/kv_after_prefill{i + 1}_llast", session.keys_values(-1)[:, :1]


def schedules(golden: DreamZeroGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Training levels and weights; UniPC on a velocity that is a formula."""
    levels = flow_matching.noise_levels(SHIFT)
    yield "sched/fm_sigmas", levels.sigmas
    yield "sched/fm_timesteps", levels.timesteps
    yield "sched/fm_linear_timesteps_weights", levels.weights
    nearest = np.asarray(flow_matching.nearest_level(levels, golden.inputs["sched/fm_weight_query"]))
    yield "sched/fm_weight_at_query", levels.weights[nearest]
    for key in [key for key in golden.expected if key.endswith("_traj")]:
        match = re.match(r"sched/(unipc(\d+)(?:_dec(\d+))?(_mask8)?)_traj$", key)
        if match is None:  # `compare` reports it
            continue
        name, steps, final, masked = match.groups()
        solver = solvers.make_solver("unipc", int(steps), SHIFT, int(final or 0) / 10)
        run = golden.inputs["sched/mask8"] if masked else np.ones(int(steps), bool)
        yield f"sched/{name}_sigmas", solver.sigmas
        yield f"sched/{name}_timesteps", solver.timesteps
        yield key, adapter.solve(lambda x, t: formula(x, t / 1000), golden.expected[key][0], solver, run)


def _at(condition: np.ndarray | None, frames: slice) -> np.ndarray | None:
    return None if condition is None else condition[:, frames]


DreamZeroGolden.SECTIONS = {"sched": schedules, "tf": teacher_forced, "tfv": video_only, "ntf": no_clean_copy,
                            "inf": cached_inference}
