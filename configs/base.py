"""Every configuration field once, with its unit: here those that all families read; a family's own stand in its folder
(world_model/families/*/config.py). Variants import this and say only what differs; a key that the family does not read
is not there, so that setting it is an error.

Read by `launch` alone, which hands plain values down; a layer never sees a config.
"""

from ml_collections import ConfigDict

from world_model.families import get_family


def get_config(family: str = "dreamzero") -> ConfigDict:
    """The shape of the family's largest model on an empty mixture; every experiment starts from here. Raises
    FamilyError on a family that is not installed."""
    c = common(family)
    for section, keys in get_family(family).config.items():
        if section not in c:
            c[section] = ConfigDict()
        c[section].update(keys)
    return c


def common(family: str) -> ConfigDict:
    """What every family reads."""
    c = ConfigDict()
    c.seed = 0  # root of every random draw: initialisation, noise, data order

    c.model = ConfigDict()
    c.model.family = family  # a name in world_model/families, or an installed plug-in's (docs/add_a_family.md)
    c.model.attention = "blockwise"  # kernel: reference | blockwise | cudnn (GPU, bfloat16) | flash (TPU)

    c.encoders = ConfigDict()  # its family's

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
    c.data.max_bad_fraction = 0.001  # share of unreadable windows that is skipped (and named) before the run stops

    c.train = ConfigDict()
    c.train.steps = 100_000  # optimizer steps
    c.train.global_batch_size = 128  # samples per optimizer step, over all hosts
    c.train.accumulation = 1  # microbatches per optimizer step
    c.train.compute_dtype = "bfloat16"  # float32 | bfloat16; weights, noise, targets, losses stay float32
    c.train.float32_products = "default"  # default: JAX's, TF32 on GPUs, bfloat16 on TPUs | highest: float32
    c.train.remat = "products"  # auto | none | full | lean | added | wide | dots | products (parallel/remat.py)
    c.train.matmul = "plain"  # products of the blocks' linears on the way forward: plain | int8 (layers/matmul.py)
    c.train.init_from = ""  # workdir of launch.import_weights or a run; its newest weights start this one; {seed}: its
    c.train.init_weights = "average"  # average | raw: which of them, where there is an average
    c.train.log_every = 10  # steps between log lines

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw | muon (and adamw for what is no matrix) | adafactor | lion
    c.optimizer.learning_rate = 1e-5  # peak
    c.optimizer.schedule = "cosine"  # cosine | linear | constant | wsd: after the warm-up; wsd falls in the last fifth
    c.optimizer.warmup_fraction = 0.05  # of train.steps, linear
    c.optimizer.end_fraction = 0.0  # final learning rate as a fraction of the peak
    c.optimizer.b1 = 0.95  # momentum
    c.optimizer.b2 = 0.999  # of AdamW's second moments, of Lion's momentum
    c.optimizer.eps = 1e-8  # AdamW's
    c.optimizer.moments_dtype = "float32"  # float32 | bfloat16, rounded by chance (docs/training.md)
    c.optimizer.weight_decay = 1e-5  # decoupled
    c.optimizer.no_decay = r"(bias|scale|modulation)$"  # parameters without weight decay, regular expression
    c.optimizer.clip_norm = 1.0  # global gradient norm
    c.optimizer.trainable = r".*"  # parameters that train, regular expression; the rest are frozen
    c.optimizer.rate_factors = ()  # (pattern, factor), ...: the first that matches a trained parameter scales its rate
    c.optimizer.ema_decay = 0.0  # of the weights' average: 0 = none, from 1 on the exponent of a power law

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
    c.checkpoint.hashes = True  # a hash of every array, checked where it is read; False: neither, for very large states
    c.checkpoint.keep_every = 0  # steps whose multiples are kept for ever; 0 = none
    c.checkpoint.keep_best = False  # keep the one with the least held-out loss too

    c.evaluate = ConfigDict()
    c.evaluate.every = 0  # steps between held-out losses inside a run; 0 = none
    c.evaluate.rollout_every = 0  # steps between rolled-out video and actions inside a run; 0 = none
    c.evaluate.windows = 32  # held-out windows; inside a run, of each dataset
    c.evaluate.batch_size = 8  # windows per batch

    c.log = ConfigDict()
    c.log.also = ()  # beside metrics.jsonl: "tensorboard", "wandb" (the extras of these names)
    c.log.cloud_goodput = ""  # log of Google Cloud that also gets the ledger's events (extra: goodput); "" = none
    return c


def student(c: ConfigDict) -> None:
    """Adds the keys that a few-step student alone has; its teacher is the model of train.init_from
    (world_model/families/base/student.py)."""
    c.distill = ConfigDict()
    c.distill.streams = "apart"  # consistency of video and actions: apart, one of each | together, one of both
    c.distill.levels = 16  # an answer is held to that at a noise level one of so many lower
    c.distill.teacher = ""  # hash of the teacher's weights; empty: noted at the start, of those that are there
