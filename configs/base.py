"""Every configuration field once, with its unit: those that all families read, then each family's own. Variants
import this and say only what differs; a key that the family does not read is not there, so that setting it is an error.

Read by `launch` alone, which hands plain values down; a layer never sees a config.
"""

from ml_collections import ConfigDict


def get_config(family: str = "dreamzero") -> ConfigDict:
    """The shape of the family's largest model on an empty mixture; every experiment starts from here."""
    c = common(family)
    FAMILIES[family](c)
    return c


def common(family: str) -> ConfigDict:
    """What every family reads."""
    c = ConfigDict()
    c.seed = 0  # root of every random draw: initialisation, noise, data order

    c.model = ConfigDict()
    c.model.family = family  # embedders, heads, visibility table and layout: world_model/families
    c.model.dim = 5120  # D, residual width
    c.model.ffn_dim = 13824  # hidden width of the MLP
    c.model.num_heads = 40  # attention heads; dim must divide
    c.model.num_layers = 40  # transformer blocks
    c.model.freq_dim = 256  # width of the timestep sinusoid
    c.model.latent_channels = 16  # channels of the video codec
    c.model.text_dim = 4096  # width of the text features
    c.model.text_length = 512  # text tokens; longer prompts are an error
    c.model.action_dim = 32  # shared action slots
    c.model.state_dim = 64  # proprioceptive slots
    c.model.visibility = "dreamzero"  # name of the visibility table: world_model/attention/visibility.py
    c.model.qk_scale = 1.0  # initial scale of normalised q and k; above 1 attention starts sharper (small grids)
    c.model.attention = "blockwise"  # kernel: reference | blockwise | cudnn (GPU, bfloat16) | flash (TPU)

    c.layout = ConfigDict()
    c.layout.frames = 33  # raw video frames per window, T = 4k + 1
    c.layout.height = 352  # pixels, after view tiling
    c.layout.width = 640  # pixels, after view tiling
    c.layout.frames_per_block = 2  # latent frames per autoregressive block
    c.layout.actions_per_block = 24  # actions per block
    c.layout.states_per_block = 1  # state tokens per block

    c.encoders = ConfigDict()
    c.encoders.video = "patch_pca"  # video codec: world_model/encoders
    c.encoders.text = "hash"  # text encoder: world_model/encoders
    c.encoders.image = "none"  # encoder of the first frame: none | clip
    c.encoders.video_weights = ""  # of wan21, wan22: .safetensors file or folder (or .pth, see allow_pickle)
    c.encoders.text_weights = ""  # of umt5, likewise
    c.encoders.image_weights = ""  # of clip, likewise
    c.encoders.tokenizer = ""  # of umt5: local tokenizer.json or SentencePiece .model
    c.encoders.allow_pickle = False  # read .pth files, by torch's weights_only unpickler
    c.encoders.dtype = "bfloat16"  # float32 | bfloat16: weights and arithmetic of encoders whose weights are in files
    c.encoders.chunk = 1  # latent frames that a Wan VAE takes at once after the first: speed against memory; 0 = all
    c.encoders.tile = 0  # latent pixels on a side of a Wan VAE's tiles; 0 = whole frames
    c.encoders.fit_clips = 64  # windows used to fit a codec that is fitted on the data

    c.noise = ConfigDict()
    c.noise.shift = 5.0  # sigma = shift s / (1 + (shift - 1) s)

    c.loss = ConfigDict()
    c.loss.video_weight = 1.0  # factor of the video loss
    c.loss.action_weight = 1.0  # factor of the action loss
    c.loss.weighting = "bell"  # by noise level: bell, around t = 500, as published | uniform
    c.loss.action_average = "slots"  # slots: over all padded slots, as published | valid: over real dimensions

    c.data = ConfigDict()
    c.data.datasets = ConfigDict()  # name -> {source, path, weight, ...} or {weight, datasets}: launch/setup/mixture.py
    c.data.size_exponent = 0.0  # a dataset's share is its weight x size ** this: 0 weights alone, 1 by size, 1 / T
    c.data.unit = "windows"  # windows | tokens: what sizes and shares are counted in
    c.data.statistics = ""  # JSON from launch.statistics; empty: computed before step 0
    c.data.statistics_per = "dataset"  # dataset | embodiment: datasets of one robot share one normalisation
    c.data.cache = ""  # folder from launch.precompute: training reads latents instead of video
    c.data.crop = 1.0  # share of each view's height and width that is kept
    c.data.augment = ConfigDict()  # of training windows, one draw for all frames and views; from video alone
    c.data.augment.random_crop = False  # where data.crop lies: drawn | False: the centre
    c.data.augment.brightness = 0.0  # factor drawn from 1 - x to 1 + x
    c.data.augment.contrast = 0.0  # likewise
    c.data.augment.saturation = 0.0  # likewise
    c.data.augment.hue = 0.0  # drawn from -x to x, of a full turn
    c.data.holdout = 0.05  # fraction of episodes kept for evaluation, by hash of the episode id
    c.data.workers = 0  # loader processes per host; the order of batches does not depend on it
    c.data.prefetch = 4  # batches decoded ahead
    c.data.max_bad_fraction = 0.001  # share of unreadable windows that is skipped (and named) before the run stops

    c.train = ConfigDict()
    c.train.steps = 100_000  # optimizer steps
    c.train.global_batch_size = 128  # samples per optimizer step, over all hosts
    c.train.accumulation = 1  # microbatches per optimizer step
    c.train.compute_dtype = "bfloat16"  # float32 | bfloat16; weights, noise, targets, losses stay float32
    c.train.remat = "products"  # auto | none | full | lean | added | wide | dots | products (parallel/remat.py)
    c.train.matmul = "plain"  # products of the blocks' linears on the way forward: plain | int8 (layers/matmul.py)
    c.train.init_from = ""  # workdir of launch.import_weights or of a run: its newest weights start this one
    c.train.log_every = 10  # steps between log lines

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1e-5  # peak
    c.optimizer.warmup_fraction = 0.05  # of train.steps, linear
    c.optimizer.end_fraction = 0.0  # final learning rate as a fraction of the peak, cosine
    c.optimizer.b1 = 0.95  # AdamW
    c.optimizer.b2 = 0.999  # AdamW
    c.optimizer.eps = 1e-8  # AdamW
    c.optimizer.weight_decay = 1e-5  # decoupled
    c.optimizer.no_decay = r"(bias|scale|modulation)$"  # parameters without weight decay, regular expression
    c.optimizer.clip_norm = 1.0  # global gradient norm
    c.optimizer.trainable = r".*"  # parameters that train, regular expression; the rest are frozen
    c.optimizer.ema_decay = 0.0  # exponential moving average of the weights; 0 = off

    c.mesh = ConfigDict()
    c.mesh.data = 1  # replicas of the weights; 0 = chosen for the devices (launch/setup/fit.py)
    c.mesh.fsdp = -1  # weight shards; -1 = all remaining devices, 0 = chosen
    c.mesh.tensor = 1  # attention heads and MLP columns
    c.mesh.context = 1  # sequence; 0 = chosen

    c.hosts = ConfigDict()
    c.hosts.connect_seconds = 300  # to wait for the other hosts at the start
    c.hosts.heartbeat_seconds = 60  # of silence after which a host counts as dead and the others end
    c.hosts.stuck_factor = 20.0  # times the median step after which all stacks are written down; 0 = never

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps between checkpoints
    c.checkpoint.keep_last = 3  # newest checkpoints kept
    c.checkpoint.keep_every = 0  # steps whose multiples are kept for ever; 0 = none

    c.evaluate = ConfigDict()
    c.evaluate.windows = 32  # held-out windows
    c.evaluate.batch_size = 8  # windows per batch
    c.evaluate.solver_steps = 16  # denoising steps of the video per block or chunk
    c.evaluate.guidance = 1.0  # classifier-free guidance of the video; 1 = off
    c.evaluate.action_guidance = 1.0  # and of the actions

    c.log = ConfigDict()
    c.log.tensorboard = False  # also write TensorBoard events (extra: tensorboard)
    c.log.cloud_goodput = ""  # log of Google Cloud that also gets the ledger's events (extra: goodput); "" = none
    return c


def dreamzero(c: ConfigDict) -> None:
    """DreamZero's own."""
    c.model.concat_first_frame = True  # 14B: mask + first-frame latents joined on channels; 5B: False
    c.model.image_dim = 1280  # width of the first frame's image features (CLIP); 0 = none
    c.model.image_tokens = 257  # image feature tokens
    c.model.action_hidden_dim = 1024  # hidden width of the state encoder and action decoder
    c.model.rollout_visibility = "dreamzero"  # table of cached rollouts; dreamzero_state_sees_all as released
    c.model.window_blocks = 4  # blocks that a clean block may look back over, itself included; 0 = all
    c.model.lora_rank = 0  # of adapters in the blocks (train.init_from has their base); 0 = none
    c.model.lora_alpha = 4.0  # an adapter counts alpha / rank
    c.model.lora_pattern = r"(self|cross)_attn\.[qkvo]$|mlp\.fc[12]$"  # linears of a block that get one
    c.noise.schedule = "coupled"  # coupled | high_noise | decoupled (Flash)
    c.noise.video_alpha = 3.0  # Beta(alpha, beta) of high_noise and decoupled video; code 3, paper 7
    c.noise.video_beta = 1.0  # see video_alpha
    c.evaluate.solver = "unipc"  # unipc | euler
    c.evaluate.video_final_sigma = 0.0  # noise level at which the video is left; Flash 0.8


def lingbot_va(c: ConfigDict) -> None:
    """LingBot-VA's own. Actions are grouped by latent frame: layout.frames_per_block = 1."""
    c.model.update(visibility="lingbot_va", dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, latent_channels=48,
                   action_dim=30)
    c.layout.update(height=256, width=320, frames_per_block=1, actions_per_block=16)
    c.model.max_chunk_frames = 4  # K, latent frames per chunk, drawn from 1 to this in every step
    c.model.min_window_blocks = 4  # W, how far back is seen, drawn in every step; a chunk is two blocks
    c.model.max_window_blocks = 64  # largest W
    c.noise.action_shift = 1.0  # as shift, of the actions' levels; released LIBERO weights 0.05
    c.noise.history = 0.5  # probability that the clean copy of the video is noised
    c.noise.text_dropout = 0.1  # probability that the prompt gives way to the empty one
    c.noise.shared_levels = False  # one draw of levels for the whole batch, as in the reference's trainer
    c.noise.forward_dynamics = 0.0  # share of steps in which video sees its own chunk's actions (L_fdm)
    c.noise.given_first_frame = False  # the first frame has level 0 and no loss, as in rollouts; as released: denoised
    c.evaluate.action_steps = 50  # denoising steps of a chunk's actions
    c.evaluate.chunk_frames = 2  # K in rollouts
    c.evaluate.window_blocks = 30  # blocks in the cache, two a chunk
    c.evaluate.executed_steps = 0  # partial denoising: of solver_steps so many run; 0 = all


def lingbot_va_mot(c: ConfigDict) -> None:
    """LingBot-VA with an action stream of its own."""
    lingbot_va(c)
    c.model.action_stream_dim = 768  # width of the action stream; a multiple of dim / num_heads
    c.model.action_ffn_dim = 3584  # hidden width of its MLP
    c.model.action_init = "interpolated"  # from the video stream: interpolated | unscaled; or random (unstable)


# names as in world_model/families
FAMILIES = {"dreamzero": dreamzero, "lingbot_va": lingbot_va, "lingbot_va_mot": lingbot_va_mot}
