"""What a file of LingBot-VA's reference numbers asks of inference: cached passes (inf) and the serving loop (srv)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from world_model.families.base.golden import GoldenFile, channels_first, grouped
from world_model.families.lingbot_va.layout import Modality
from world_model.families.lingbot_va.parity.jax_adapter import LingBotVAAdapter

PARTIAL_TIMESTEP = 555.5  # inf/partial writes the cache at this timestep
MIN_RANGE = 1e-6  # added to q99 - q01


def cached_inference(golden: GoldenFile, adapter: LingBotVAAdapter) -> Iterator[tuple[str, np.ndarray]]:
    """Serving order: predicted video and actions, each denoised once and written; then what was observed. The
    unconditional text has a row where guidance is above 1 alone, as the reference's server runs it."""
    c, server, given = golden.config, golden.config["server"], golden.inputs
    text = given["in/inf_text_cond_uncond"][:2 if server["guidance"] > 1 else 1]
    session = adapter.start(text, c["K"], server["attn_window"])
    for chunk in range(server["chunks"]):
        passes = _Passes(golden, session, chunk, len(text))
        yield f"inf/c{chunk}/video_denoise", passes.video("noise", given["in/inf_t_video"][chunk])
        yield f"inf/c{chunk}/video_kv_pass", passes.video("pred", 0, write=True)
        yield f"inf/c{chunk}/action_denoise", passes.actions("noise", given["in/inf_t_action"][chunk])
        yield f"inf/c{chunk}/action_kv_pass", passes.actions("pred", 0, write=True)
        yield f"inf/c{chunk}/cache_len_after_pred", len(session.cached_blocks(2 * chunk + 2))
        yield f"inf/c{chunk}/video_real_pass", passes.video("real", 0, write=True)
        yield f"inf/c{chunk}/action_real_pass", passes.actions("real", 0, write=True)
        blocks = session.cached_blocks(2 * chunk + 2)
        yield f"inf/c{chunk}/cache_len_after_real", len(blocks)
        yield f"inf/c{chunk}/cache_ids_after_real", blocks
        for layer, name in ((0, "l0"), (-1, "llast")):
            keys, values = session.keys_values(layer)
            yield f"inf/c{chunk}/cache_k_{name}", keys
            yield f"inf/c{chunk}/cache_v_{name}", values
    if "inf/partial/video_kv_pass" in golden.expected:
        passes = _Passes(golden, adapter.start(text, c["K"], server["attn_window"]), 0, len(text))
        yield "inf/partial/video_kv_pass", passes.video("pred", PARTIAL_TIMESTEP, write=True)
        yield "inf/partial/action_denoise", passes.actions("noise", given["in/inf_t_action"][0])


class _Passes:
    """Single passes of one chunk, the same for all text rows. In chunk 0 the first frame is the observation and the
    first action group zero, both at timestep 0."""

    def __init__(self, golden: GoldenFile, session, chunk: int, batch: int):
        self.golden, self.session, self.chunk, self.batch = golden, session, chunk, batch

    def video(self, name: str, timestep: float, write: bool = False) -> np.ndarray:
        x = self.golden.video(f"inf_{name}_video")[self.chunk].copy()
        if self.chunk == 0:
            x[0] = self.golden.video("inf_real_video")[0, 0]
        return channels_first(self._run(x, timestep, modality=Modality.VIDEO, write=write))

    def actions(self, name: str, timestep: float, write: bool = False) -> np.ndarray:
        x = self.golden.actions(f"inf_{name}_action")[self.chunk] * used_channels(self.golden)
        n = self.golden.config["n"]
        if self.chunk == 0:
            x[:n] = 0
        return grouped(self._run(x, timestep, modality=Modality.ACTION, write=write), n)

    def _run(self, x: np.ndarray, timestep: float, *, modality: Modality, write: bool) -> np.ndarray:
        time = np.full((self.batch, self.golden.config["K"]), timestep, np.float32)
        if self.chunk == 0:
            time[:, 0] = 0
        x = np.repeat(x[None], self.batch, axis=0)
        return self.session.run(x, time, self.chunk, modality=modality, write=write)


def serving(golden: GoldenFile, adapter: LingBotVAAdapter) -> Iterator[tuple[str, np.ndarray]]:
    """Predict, execute, observe: executed actions and real video come back after every chunk."""
    c, server, given = golden.config, golden.config["server"], golden.inputs
    mask, n = used_channels(golden), c["n"]
    low, span = given["in/inf_q01"], given["in/inf_q99"] - given["in/inf_q01"] + MIN_RANGE
    noise, action_noise = golden.video("inf_noise_video"), golden.actions("inf_noise_action")
    for name, run in server["runs"].items():
        rollout = adapter.rollout(
            steps=run["nv"], action_steps=run["na"], shift=c["video_shift"], action_shift=c["action_shift"],
            guidance=server["guidance"], chunk_frames=c["K"], window_blocks=server["attn_window"],
            executed_steps=max(run["exec"], 0))
        text = given["in/inf_text_cond_uncond"]
        session = rollout.start(adapter.params, text[:1], text[1:])
        chunks = sum(key.startswith(f"srv/{name}/") and key.endswith("_latents") for key in golden.expected)
        for chunk in range(chunks):
            real = golden.video("inf_real_video")[chunk][None]
            latents, actions, session = rollout.predict(
                adapter.params, session, noise[chunk][None], action_noise[chunk][None], mask[None],
                jnp.asarray(real[:, :1]) if chunk == 0 else None)
            executed = (np.asarray(actions[0]) + 1) / 2 * span + low
            yield f"srv/{name}/c{chunk}_latents", channels_first(np.asarray(latents))[0]
            yield f"srv/{name}/c{chunk}_actions_normalised", grouped(np.asarray(actions), n)[0]
            yield f"srv/{name}/c{chunk}_actions", grouped(executed[None], n)[0, server["used"], ..., 0]
            back = np.where(mask, (executed - low) / span * 2 - 1, 0).astype(np.float32)
            session = rollout.observe(adapter.params, session, real, back[None]).next(c["K"])


def used_channels(golden: GoldenFile) -> np.ndarray:
    """bool [A]: the robot's action channels in inference."""
    return np.isin(np.arange(golden.config["model"]["action_dim"]), golden.config["server"]["used"])
