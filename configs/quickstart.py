"""PushT's slide at laptop scale: the main job, end to end, on the code paths of the 14B.

    make quickstart                                                        # everything, into runs/quickstart
    python -m launch.train --config=configs/quickstart.py --workdir=DIR    # the training alone
    python -m launch.train --config=configs/quickstart.py:debug --workdir=DIR   # under a minute
    python -m launch.train --config=configs/quickstart.py:lingbot_va --workdir=DIR    # another family; also _debug
    python -m launch.train --config=configs/quickstart.py:lingbot_vla --workdir=DIR   # actions alone; also _debug

Data: 360 simulated PushT episodes (64 x 64, 10 Hz) in which the T is one long push away from the goal, and 40
action-free clips with other colours. `make quickstart` records them, as does

    python -m launch.record_pusht --out=.cache/pusht_slide --task=slide --episodes=360

The trained model does the same: `python -m launch.rollout --workdir=DIR --task=pusht-slide --execute=8`.
"""

from ml_collections import ConfigDict

from configs import base

STEPS = {"dreamzero": 3500, "lingbot_va": 1500, "lingbot_vla": 8000}  # about as many minutes each
ARMS = ("", "debug", "lingbot_va", "lingbot_va_debug", "lingbot_vla", "lingbot_vla_debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: a tiny model for a few steps. `lingbot_va`: video first, then its actions. `lingbot_vla`: actions alone,
    from what is seen now."""
    if arg not in ARMS:
        raise ValueError(f"configs/quickstart.py:{arg}: arms are {ARMS}")
    family = arg.removesuffix("debug").removesuffix("_") or "dreamzero"
    c = {"dreamzero": dreamzero, "lingbot_va": lingbot_va, "lingbot_vla": lingbot_vla}[family]()
    data_and_training(c, STEPS[family])
    if family != "lingbot_vla":
        video(c)
    if arg.endswith("debug"):
        debug(c)
    return c


def dreamzero() -> ConfigDict:
    """First frame joined on channels, blocks of two latent frames."""
    c = base.get_config("dreamzero")
    c.model.update(image_dim=0, action_hidden_dim=128, window_blocks=2)
    c.layout.update(frames_per_block=2, actions_per_block=16)
    c.evaluate.solver_steps = 2
    return c


def lingbot_va() -> ConfigDict:
    """Chunks of one or two latent frames, eight actions before each."""
    c = base.get_config("lingbot_va")
    c.model.update(latent_channels=16, action_dim=32, max_chunk_frames=2)
    c.layout.update(frames_per_block=1, actions_per_block=8)
    # Video is rolled out from a given first frame and clean history, without guidance: little of the short training
    # goes into what only partial denoising and guidance need, none into drawing the first frame from nothing. Some goes
    # into forward dynamics, for grounded asynchronous execution.
    c.noise.update(history=0.1, text_dropout=0.0, forward_dynamics=0.2, given_first_frame=True)
    c.evaluate.update(solver_steps=2, action_steps=4, chunk_frames=2, window_blocks=6)
    return c


def lingbot_vla() -> ConfigDict:
    """One view of 4 x 4 tokens, which all see each other; prompts are bytes."""
    c = base.get_config("lingbot_vla")
    c.model.update(vocab_size=256, text_length=64, kv_heads=2, head_width=32, num_heads=4, dim=128, ffn_dim=256,
                   num_layers=4, expert_dim=128, expert_ffn_dim=256, views=1, action_dim=32, state_dim=32)
    c.model.update(vision_dim=96, vision_ffn_dim=192, vision_heads=3, vision_layers=3, vision_patch=8, vision_window=0,
                   vision_full_layers=())
    c.layout.update(height=64, width=64, actions_per_block=16)
    c.encoders.tokens = "bytes"
    c.loss.error = "squared"
    c.evaluate.solver_steps = 2  # of 1, 2, 4 and 10 steps two have the smallest error (docs/lingbot_vla.md)
    return c


def video(c: ConfigDict) -> None:
    """The same for families that imagine video."""
    c.model.update(dim=128, ffn_dim=512, num_heads=2, num_layers=4, freq_dim=64, text_dim=64, text_length=16,
                   qk_scale=2.0)  # 4 x 4 tokens a frame: at 1, neighbours are hardly told apart for hundreds of steps
    c.layout.update(frames=17, height=64, width=64)  # video at 5 Hz
    c.data.datasets.clips = ConfigDict({
        "source": "video_files", "path": ".cache/pusht_slide/pusht_clips", "embodiment": "video_only", "weight": 1.0,
        "window_stride": 1})
    c.encoders.fit_clips = 32
    c.loss.update(action_average="valid", weighting="uniform")


def data_and_training(c: ConfigDict, steps: int) -> None:
    """The same for all: mixture, optimizer."""
    c.data.datasets.pusht = ConfigDict({
        "source": "rlds", "path": ".cache/pusht_slide/pusht_rlds", "embodiment": "pusht", "weight": 9.0,
        "window_stride": 1, "rate": 10.0, "images": {"image": "observation/image"}, "state": "observation/state",
        "action": "action"})
    c.data.holdout = 0.1
    c.optimizer.update(learning_rate=3e-3, b1=0.9, b2=0.99, weight_decay=1e-2, ema_decay=0.99)
    c.train.update(steps=steps, global_batch_size=8, compute_dtype="float32", float32_products="highest", log_every=25)
    c.checkpoint.update(every=100, keep_last=2, keep_every=200)
    c.evaluate.update(windows=64, batch_size=16)


def debug(c: ConfigDict) -> None:
    """Tiny, a few steps."""
    c.model.update(dim=32, ffn_dim=64, num_heads=2, num_layers=2)
    if "expert_dim" in c.model:
        c.model.update(expert_dim=32, expert_ffn_dim=64, vision_dim=32, vision_heads=2, vision_layers=2)
    c.train.update(steps=6, global_batch_size=4, log_every=2, remat="none")  # compiles faster
    c.checkpoint.update(every=3, keep_every=6)
    c.evaluate.update(windows=4, batch_size=4)
    if "fit_clips" in c.encoders:
        c.encoders.fit_clips = 8
