"""Config keys that every family on Wan's backbone has, with units and the defaults of its largest model."""

from collections.abc import Mapping

CONFIG: dict[str, dict] = {
    "model": {
        "dim": 5120,  # D, residual width
        "ffn_dim": 13824,  # hidden width of the MLP
        "num_heads": 40,  # attention heads; dim must divide
        "num_layers": 40,  # transformer layers
        "freq_dim": 256,  # width of the timestep sinusoid
        "latent_channels": 16,  # channels of the video codec
        "text_dim": 4096,  # width of the text features
        "text_length": 512,  # text tokens; longer prompts are an error
        "action_dim": 32,  # shared action slots
        "state_dim": 64,  # proprioceptive slots
        "qk_scale": 1.0,  # initial scale of normalised q and k; above 1 attention starts sharper (small grids)
    },
    "layout": {
        "frames": 33,  # raw video frames per window, T = k times the codec's temporal stride + 1
        "height": 352,  # pixels, after view tiling
        "width": 640,  # pixels, after view tiling
        "frames_per_block": 2,  # latent frames per autoregressive block
        "actions_per_block": 24,  # actions per block
        "states_per_block": 1,  # state tokens per block
    },
    "encoders": {
        "video": "patch_pca",  # video codec: world_model/encoders
        "text": "hash",  # text encoder: world_model/encoders
        "image": "none",  # encoder of the first frame: none | clip
        "video_weights": "",  # for wan21, wan22: .safetensors file or folder (or .pth, see allow_pickle)
        "text_weights": "",  # for umt5, likewise
        "image_weights": "",  # for clip, likewise
        "allow_pickle": False,  # read .pth files, by torch's weights_only unpickler
        "dtype": "bfloat16",  # float32 | bfloat16: weights and arithmetic of encoders whose weights are in files
        "tokenizer": "",  # for umt5: local tokenizer.json or SentencePiece .model
        "chunk": 1,  # latent frames that a Wan VAE takes at once after the first: speed against memory; 0 = all
        "tile": 0,  # latent pixels on a side of a Wan VAE's tiles; 0 = whole frames
        "fit_clips": 64,  # windows used to fit a codec that is fitted on the data
    },
    "noise": {
        "shift": 5.0,  # sigma = shift s / (1 + (shift - 1) s)
    },
    "loss": {
        "video_weight": 1.0,  # factor of the video loss
        "action_weight": 1.0,  # factor of the action loss
        "weighting": "bell",  # by noise level: bell, around t = 500, as published | uniform
        "action_average": "slots",  # slots: over all padded slots, as published | valid: over real dimensions
    },
    "optimizer": {
        "frozen_dtype": "float32",  # float32 | bfloat16: in which parameters are held that do not train
    },
    "evaluate": {
        "solver_steps": 16,  # denoising steps of the video per block or chunk
        "guidance": 1.0,  # classifier-free guidance of the video; 1 = off
        "action_guidance": 1.0,  # and of the actions
        "unconditional": "",  # what the unconditional branch reads; "released": DreamZero's published negative prompt
        "branch_devices": 1,  # 2: each branch of the guidance on a device of its own
    },
}


def merged(*configs: Mapping[str, Mapping]) -> dict[str, dict]:
    """Sections of several configs together; a later one's keys replace an earlier one's."""
    found: dict[str, dict] = {}
    for config in configs:
        for section, keys in config.items():
            found.setdefault(section, {}).update(keys)
    return found
