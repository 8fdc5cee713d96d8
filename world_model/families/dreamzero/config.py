"""DreamZero's config keys, with units and the defaults of the 14B."""

from world_model.diffusion.step_skipping import THRESHOLDS
from world_model.families.wan import config

CONFIG = config.merged(config.CONFIG, {
    "model": {
        "visibility": "dreamzero",  # name of the training's visibility table: visibility.py
        "rollout_visibility": "dreamzero",  # table of cached rollouts; as released: dreamzero_state_sees_all
        "concat_first_frame": True,  # 14B: mask + first-frame latents joined on channels; 5B: False
        "image_dim": 1280,  # width of the first frame's image features (CLIP); 0 = none
        "image_tokens": 257,  # image feature tokens
        "action_hidden_dim": 1024,  # hidden width of the state encoder and action decoder
        "window_blocks": 4,  # blocks that a clean block may look back over, itself included; 0 = all
        "lora_rank": 0,  # rank of adapters in the layers (train.init_from has their base); 0 = none
        "lora_alpha": 4.0,  # an adapter counts alpha / rank
        "lora_pattern": r"(self|cross)_attn\.[qkvo]$|mlp\.fc[12]$",  # linears of a layer that get one
    },
    "noise": {
        "schedule": "coupled",  # coupled | high_noise | decoupled (Flash)
        "video_alpha": 3.0,  # Beta(alpha, beta) of high_noise and decoupled video; code 3, paper 7
        "video_beta": 1.0,  # see video_alpha
        "forward_dynamics": 0.0,  # share of blocks whose video is predicted from their actions, clean and without loss
    },
    "evaluate": {
        "solver": "unipc",  # unipc | euler
        "video_final_sigma": 0.0,  # noise level at which the video is left; Flash 0.8
        "skipping": "none",  # solver steps that reuse a prediction: none, 5 to 8 (of 16), adaptive
        "skip_thresholds": THRESHOLDS,  # (cosine, steps) pairs of skipping = adaptive
    },
})
