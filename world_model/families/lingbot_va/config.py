"""LingBot-VA's config keys, with units and the defaults of the 5B, and those of its Mixture of Transformers."""

from world_model.families.wan import config

CONFIG = config.merged(config.CONFIG, {
    "model": {
        "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "latent_channels": 48, "action_dim": 30,
        "visibility": "lingbot_va",  # name of the training's visibility table: visibility.py
        "max_chunk_frames": 4,  # K, latent frames per chunk, sampled from 1 to this in every step
        "min_window_blocks": 4,  # W, how far back is seen, sampled in every step; a chunk is two blocks
        "max_window_blocks": 64,  # largest W
    },
    "layout": {"height": 256, "width": 320, "frames_per_block": 1,  # actions are grouped by latent frame
               "actions_per_block": 16},
    "noise": {
        "action_shift": 1.0,  # shift of the actions' levels; released LIBERO weights 0.05
        "history": 0.5,  # probability that the clean copy of the video is noised
        "text_dropout": 0.1,  # probability that the prompt gives way to the empty one
        "shared_levels": False,  # the same levels for the whole batch, as in the reference's trainer
        "forward_dynamics": 0.0,  # share of steps in which video sees its own chunk's actions (L_fdm)
        "given_first_frame": False,  # the first frame has level 0 and no loss, as in rollouts; as released: denoised
    },
    "evaluate": {
        "action_steps": 50,  # denoising steps of a chunk's actions
        "chunk_frames": 2,  # K in rollouts
        "window_blocks": 30,  # blocks in the cache, two a chunk
        "executed_steps": 0,  # partial denoising: of solver_steps so many run; 0 = all
    },
})

MIXTURE_CONFIG = config.merged(CONFIG, {
    "model": {
        "action_stream_dim": 768,  # width of the action stream; a multiple of dim / num_heads
        "action_ffn_dim": 3584,  # hidden width of its MLP
        "action_init": "interpolated",  # from the video stream: interpolated | unscaled; or random (unstable)
    },
})
