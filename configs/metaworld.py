"""A Meta-World task at laptop scale: a button that stands elsewhere in every episode, pressed from above.

    python -m launch.train --config=configs/metaworld.py --workdir=DIR          # the training alone
    python -m launch.train --config=configs/metaworld.py:cloning --workdir=DIR  # behaviour cloning: no loss on video
    python -m launch.train --config=configs/metaworld.py:lingbot_va --workdir=DIR     # another family: video first
    python -m launch.train --config=configs/metaworld.py:lingbot_vla --workdir=DIR    # another one, actions alone
    python -m launch.train --config=configs/metaworld.py:debug --workdir=DIR    # tiny, a few steps

Data: 100 episodes of the scripted expert (64 x 64, 20 Hz), recorded by
`python -m launch.record_tabletop --out=.cache/metaworld`. The state is the hand's: the button has to be seen. A window
is one frame and one block of eight commands, 0.4 s.
"""

from ml_collections import ConfigDict

from configs import base

ARMS = ("", "cloning", "lingbot_va", "lingbot_vla", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`cloning`: the same transformer, data and budget, action loss alone. Other families: as many training FLOP.
    `debug`: a tiny model for a few steps."""
    if arg not in ARMS:
        raise ValueError(f"configs/metaworld.py:{arg}: arms are {ARMS}")
    c = {"lingbot_va": lingbot_va, "lingbot_vla": lingbot_vla}.get(arg, dreamzero)()
    c.layout.update(height=64, width=64)
    c.data.datasets.button = ConfigDict({
        "source": "rlds", "path": ".cache/metaworld/metaworld_rlds", "embodiment": "metaworld_20hz", "weight": 1.0,
        "window_stride": 1, "schema": "generic", "rate": 20.0})
    c.data.holdout = 0.1
    c.optimizer.update(learning_rate=3e-3, b1=0.9, b2=0.99, weight_decay=1e-2, ema_decay=0.99)
    c.train.update(global_batch_size=16, compute_dtype="float32", log_every=25, remat="none")
    c.checkpoint.update(every=300, keep_last=2)
    c.evaluate.update(solver_steps=4, windows=64, batch_size=16)
    if arg == "cloning":
        c.loss.video_weight = 0.0
    if arg == "debug":
        debug(c)
    return c


def dreamzero() -> ConfigDict:
    """One first frame and one block of two latent frames."""
    c = base.get_config("dreamzero")
    # qk_scale: 4 x 4 tokens a frame, which at 1 are hardly told apart for hundreds of steps
    c.model.update(dim=64, ffn_dim=256, num_heads=2, num_layers=3, freq_dim=64, text_dim=64, text_length=16,
                   image_dim=0, action_hidden_dim=64, window_blocks=1, qk_scale=2.0)
    c.layout.update(frames=9, frames_per_block=2, actions_per_block=8)
    c.encoders.fit_clips = 32
    c.loss.update(action_average="valid", weighting="uniform")
    c.train.steps = 1200
    return c


def lingbot_va() -> ConfigDict:
    """One first frame and one chunk of two latent frames, four actions for each; noise as in configs/quickstart.py."""
    c = base.get_config("lingbot_va")
    c.model.update(dim=64, ffn_dim=104, num_heads=2, num_layers=3, freq_dim=64, text_dim=64, text_length=16,
                   qk_scale=2.0, latent_channels=16, action_dim=32, max_chunk_frames=2)
    c.layout.update(frames=9, frames_per_block=1, actions_per_block=4)
    c.noise.update(history=0.1, text_dropout=0.0, given_first_frame=True)
    c.encoders.fit_clips = 32
    c.loss.update(action_average="valid", weighting="uniform")
    c.evaluate.update(action_steps=4, chunk_frames=2, window_blocks=6)  # all three frames, as in training
    c.train.steps = 1200
    return c


def lingbot_vla() -> ConfigDict:
    """One view of 4 x 4 tokens; prompts are bytes."""
    c = base.get_config("lingbot_vla")
    c.model.update(vocab_size=256, text_length=58, kv_heads=2, head_width=32, num_heads=2, dim=64, ffn_dim=88,
                   num_layers=3, expert_dim=64, expert_ffn_dim=64, views=1, action_dim=32, state_dim=32)
    c.model.update(vision_dim=64, vision_ffn_dim=64, vision_heads=2, vision_layers=2, vision_patch=8, vision_window=2,
                   vision_full_layers=(1,))
    c.layout.actions_per_block = 8
    c.encoders.tokens = "bytes"
    c.loss.error = "squared"
    c.train.steps = 1200
    return c


def debug(c: ConfigDict) -> None:
    """Tiny, a few steps."""
    c.model.update(dim=32, ffn_dim=64, num_layers=2)
    c.train.update(steps=6, global_batch_size=4, log_every=2)
    c.checkpoint.every = 3
    c.evaluate.update(windows=4, batch_size=4)
    c.encoders.fit_clips = 8
