"""What a file of LingBot-VA's reference numbers asks, section by section.

Schedules, weights and Euler trajectories (sched), rotary angles (rope), masks (mask), what training makes of its
samples (in), the training forward with losses, hidden states and gradients (tr), single cached passes with cache
contents and eviction (inf), and the serving loop, whole and partly denoised (srv).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from world_model.attention import visibility
from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, Group, segment_of_token
from world_model.batch import Layout
from world_model.diffusion import flow_matching
from world_model.families.base.golden import GoldenFile, channels_first, formula, grouped
from world_model.families.lingbot_va.layout import LingBotVASpec, Modality, frame_positions, make_sequence
from world_model.families.lingbot_va.loss import Sampled
from world_model.families.lingbot_va.parity import golden_cached as parity_lingbot_va_cached
from world_model.families.lingbot_va.parity.jax_adapter import LingBotVAAdapter
from world_model.families.lingbot_va.steps import HISTORY_LEVELS, LEVELS
from world_model.families.wan.inputs import Example
from world_model.families.wan.spec import PATCH
from world_model.layers import rotary
from world_model.layers.embedders import patchify

DERIVED = r"(noisy|hist|target)_(video|action)|mix_(noisy|hist)_(video|action)|clean_action|(video|action)_grid_id"
INFERENCE = ("inf/", "srv/")
# The reference's sequence: within each segment, sample after sample.
SEGMENTS = (NOISY_VIDEO, CLEAN_VIDEO, NOISY_ACTION, CLEAN_ACTION)


class LingBotVAGolden(GoldenFile):
    """A file of LingBot-VA's numbers."""

    MARK = "attention_head_dim"
    INPUTS = re.compile(rf"w/|in/(?!({DERIVED})$)|(cfg_json|noise_floor_json|grad_names)$|sched/index_u$|mask/.*_dims$"
                       r"|sched/.*/weight_query$|rope/(grid_id|segments)$")
    RELATIVE = re.compile(r"tr/.*/grad_norm(_total)?$|sched/.*timesteps$")

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        for key, x in self.expected.items():
            if key.endswith("/grad_norm"):
                self.expected[key] = np.nan_to_num(x)  # no gradient counts as one of size 0

    def adapter(self, runtime: str, weights: Mapping[str, np.ndarray] | None = None):
        """The JAX model or the PyTorch runtime, for which only inference is compared because it does not train."""
        weights = self.weights if weights is None else weights
        if runtime == "jax":
            return LingBotVAAdapter.from_reference(self.spec, weights)
        from world_model.families.lingbot_va.torch.adapter import TorchLingBotVAAdapter

        self.expected = {key: x for key, x in self.expected.items() if key.startswith(INFERENCE)}
        return TorchLingBotVAAdapter.from_reference(self.spec, weights)

    @property
    def spec(self) -> LingBotVASpec:
        """The model of this file."""
        c, m = self.config, self.config["model"]
        return LingBotVASpec(
            layout=Layout(4 * c["frames"] - 3, 8 * c["H"], 8 * c["W"], 1, c["n"], 1), latent_height=c["H"],
            latent_width=c["W"], dim=m["num_attention_heads"] * m["attention_head_dim"], ffn_dim=m["ffn_dim"],
            num_heads=m["num_attention_heads"], num_layers=m["num_layers"], freq_dim=m["freq_dim"],
            latent_channels=m["in_channels"], text_dim=m["text_dim"], text_length=c["text_len"],
            action_dim=m["action_dim"])

    def example(self) -> Example:
        """The training batch."""
        latents, mask = self.video("latents"), self.actions("actions_mask")
        return Example(latents=latents, condition=None, text=self.inputs["in/text_emb"], image=None,
                       frame_valid=np.ones(latents.shape[:2], bool), actions=self.actions("actions"), action_mask=mask,
                       action_valid=np.ones(mask.shape[:2], bool), state=None)

    def sampled(self, mix: str, history: bool, window: int) -> Sampled:
        """The samples of one variant, by the levels nearest to its timesteps."""
        c = self.config
        def index(name, shift):
            return np.asarray(flow_matching.nearest_level(
                flow_matching.noise_levels(shift), self.inputs[f"in/{mix}{name}_timesteps"]))
        def coin(value):
            return np.full(c["B"], value)
        return Sampled(index("video", c["video_shift"]), index("action", c["action_shift"]),
                     index("hist", c["video_shift"]), coin(history), self.video("noise_video"),
                     self.actions("noise_action"), self.video("noise_hist"), coin(False), np.int32(c["K"]),
                     np.int32(window))

    def timesteps(self, mix: str, history: bool) -> dict[str, np.ndarray]:
        """The levels of one variant as the reference rounded them."""
        found = {name: self.inputs[f"in/{mix}{name}_timesteps"] for name in ("video", "action", "hist")}
        return {"video_timestep": found["video"], "action_timestep": found["action"],
                "clean_timestep": found["hist"] * np.float32(history)}


def schedules(golden: LingBotVAGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Levels and weights of every shift; Euler on a velocity that is a formula."""
    for name in sorted({key.split("/")[1] for key in golden.expected if key.startswith("sched/shift")}):
        shift, at = float(name.removeprefix("shift")), f"sched/{name}"
        levels = flow_matching.noise_levels(shift)
        yield from zip((f"{at}/train_sigmas", f"{at}/train_timesteps", f"{at}/train_weights"), levels, strict=True)
        nearest = np.asarray(flow_matching.nearest_level(levels, golden.inputs[f"{at}/weight_query"]))
        yield f"{at}/weight_at_query", levels.weights[nearest]
        for key in (key for key in golden.expected if key.startswith(f"{at}/infer") and key.endswith("_sigmas")):
            steps = flow_matching.noise_levels(shift, int(re.search(r"infer(\d+)_", key)[1]))
            yield key, steps.sigmas
            yield key.replace("sigmas", "timesteps"), steps.timesteps
        for key in (key for key in golden.expected if key.startswith(f"{at}/euler")):
            yield key, _euler(golden.expected[key], shift)
    if "sched/index_u" in golden.inputs:
        u, low = golden.inputs["sched/index_u"].astype(np.float64), HISTORY_LEVELS.start
        yield "sched/index_of_u", np.floor(u * LEVELS).clip(0, LEVELS - 1)
        yield "sched/hist_index_of_u", np.floor(low + u * (LEVELS - low)).clip(0, LEVELS - 1)


def _euler(expected: np.ndarray, shift: float) -> np.ndarray:
    sigmas = np.append(flow_matching.noise_levels(shift, len(expected) - 1).sigmas, 0)
    samples = [expected[0]]
    for sigma, change in zip(sigmas, np.diff(sigmas), strict=False):
        samples.append(samples[-1] + np.float32(change) * formula(samples[-1], sigma))
    return np.stack(samples)


def rotations(golden: LingBotVAGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Angles as the reference rounds them, at whole and fractional times."""
    grid = golden.inputs["rope/grid_id"].astype(np.float64)
    for key in (key for key in golden.expected if key.endswith("_angles")):
        at = key.removesuffix("_angles")
        angles = rotary.position_angles(grid[:3], int(at.rpartition("hd")[2])).astype(np.float32)
        yield key, angles
        yield from zip((f"{at}_cos", f"{at}_sin"), rotary.table(angles), strict=True)


def masks(golden: LingBotVAGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Who sees whom, of self-attention and (every sample its own text) of cross-attention."""
    for key in (key for key in golden.inputs if key.endswith("_dims")):
        batch, frames, patches, n, chunk, window = map(int, golden.inputs[key])
        spec = dataclasses.replace(golden.spec, layout=Layout(4 * frames - 3, 8, 8, 1, n, 1), latent_height=PATCH,
                                   latent_width=PATCH * patches, max_chunk_frames=max(chunk, 4))
        sequence = make_sequence(spec, frames)
        sampled = visibility.sampled_mask(spec.table(), sequence, sequence, chunk - 1, window)
        order = np.concatenate([np.tile(_rows(sequence, group), batch) for group in SEGMENTS])
        sample = np.concatenate([np.repeat(range(batch), len(_rows(sequence, group))) for group in SEGMENTS])
        segment = segment_of_token(sequence)[order]
        yield key.removesuffix("_dims"), np.asarray(sampled)[segment][:, segment] & (sample[:, None] == sample)
        text = np.repeat(range(batch), golden.expected[key.replace("_dims", "_cross")].shape[1] // batch)
        yield key.replace("_dims", "_cross"), sample[:, None] == text


def training(golden: LingBotVAGolden, adapter: LingBotVAAdapter) -> Iterator[tuple[str, np.ndarray]]:
    """Every variant: levels shared or per sample, window, clean or noised history."""
    c, example = golden.config, golden.example()
    train = adapter.trainer(example, c["video_shift"], c["action_shift"])
    for name in sorted({key.split("/")[1] for key in golden.expected if key.startswith("tr/")}):
        mix, window, history = re.fullmatch(r"(mix_|)w(\d+)_(clean|hist)", name).groups()
        sampled, at = golden.sampled(mix, history == "hist", int(window)), f"tr/{name}"
        out = train(sampled, golden.timesteps(mix, history == "hist"))
        yield from _loss_inputs(golden, out, mix, history == "hist", example, sampled)
        yield f"{at}/video", channels_first(out.video)
        yield f"{at}/action", grouped(out.action, c["n"])
        yield f"{at}/video_seq", np.asarray(patchify(out.video, PATCH)).reshape(c["B"], -1, out.video.shape[-1])
        yield f"{at}/video_loss_per_frame", out.video_frames
        yield f"{at}/action_loss_per_frame", out.action_frames
        yield f"{at}/video_weight", out.video_weights
        yield f"{at}/action_weight", out.action_weights
        yield f"{at}/video_loss", out.video_frames.mean()
        yield f"{at}/action_loss", out.action_frames.mean()
        yield f"{at}/loss", out.loss
        norms = {key: np.linalg.norm(g) for key, g in out.gradients.items()}
        yield f"{at}/grad_norm", np.array([norms.get(str(key), 0) for key in golden.inputs["grad_names"]])
        yield f"{at}/grad_norm_total", np.linalg.norm(list(norms.values()))
        for key, gradient in out.gradients.items():
            yield f"{at}/grad/{key}", gradient
        for i, hidden in enumerate(out.hidden):
            rows = (hidden[:, _rows(make_sequence(golden.spec, c["frames"]), group)] for group in SEGMENTS)
            yield f"{at}/block{i}", np.concatenate([x.reshape(-1, x.shape[-1]) for x in rows])


def _loss_inputs(golden, out, mix: str, history: bool, example: Example, sampled: Sampled):
    """What the loss made of the samples. Targets are the same whatever the levels; masked actions have none."""
    n, x = golden.config["n"], out.inputs
    yield f"in/{mix}noisy_video", channels_first(x["noisy_latents"])
    yield f"in/{mix}noisy_action", grouped(x["noisy_actions"], n)
    if history:
        yield f"in/{mix}hist_video", channels_first(x["clean_latents"])
    yield "in/clean_action", grouped(x["clean_actions"], n)
    yield "in/target_video", channels_first(flow_matching.velocity(example.latents, sampled.noise))
    target = flow_matching.velocity(example.actions, sampled.action_noise)
    yield "in/target_action", grouped(np.where(example.action_mask, target, 0), n)


def positions(golden: LingBotVAGolden, adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Time, row, column and modality of every token."""
    for modality in Modality:
        grid = frame_positions(golden.spec, modality, range(golden.config["frames"]))
        grid = np.concatenate([grid, np.full((1, grid.shape[1]), modality is Modality.ACTION)])
        yield f"in/{modality}_grid_id", np.repeat(grid[None], golden.config["B"], axis=0)


def _rows(sequence, group: Group) -> np.ndarray:
    return np.concatenate([np.arange(s.start, s.stop) for s in sequence if s.group is group])


LingBotVAGolden.SECTIONS = {"sched": schedules, "rope": rotations, "mask": masks, "in": positions, "tr": training,
                            "inf": parity_lingbot_va_cached.cached_inference,
                            "srv": parity_lingbot_va_cached.serving}
