"""Recipes: from public data to a running job (docs/recipes.md). Here is what they share.

A recipe also says, for `python -m launch.recipe NAME`, where its data come from (GET) and what a step costs (COST).
"""

from ml_collections import ConfigDict

WAN21, WAN22 = "weights/wan21", "weights/wan22"  # folders with vae/, text_encoder/, tokenizer/, transformer/, ...
MINIATURES = ".cache/miniatures"  # from `python -m launch.record_miniatures`

# Folder or file -> how it is got.
GET = {
    WAN21: f"hf download Wan-AI/Wan2.1-I2V-14B-480P-Diffusers --local-dir {WAN21}",
    WAN22: f"hf download Wan-AI/Wan2.2-TI2V-5B-Diffusers --local-dir {WAN22}",
    "runs/wan14b": f"python -m launch.import_weights --format=diffusers --source={WAN21}/transformer "
                   "--config=configs/dreamzero_14b.py --out=runs/wan14b",
    "runs/wan5b": f"python -m launch.import_weights --format=diffusers --source={WAN22}/transformer "
                  "--config=configs/dreamzero_5b.py --out=runs/wan5b",
    MINIATURES: "python -m launch.record_miniatures",
}


def full_size(c: ConfigDict, codec: str) -> None:
    """The frozen encoders of a codec "wan21" or "wan22". First frames' features are those of Wan2.1's CLIP for both."""
    c.encoders.update(video=codec, video_weights=f"weights/{codec}/vae", text="umt5",
                      text_weights=f"weights/{codec}/text_encoder",
                      tokenizer=f"weights/{codec}/tokenizer/tokenizer.json")
    if c.model.get("image_dim"):
        c.encoders.update(image="clip", image_weights=f"{WAN21}/image_encoder")


def miniature(c: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:debug` arm: the same entries on miniatures of their sets, a tiny model, a few steps."""
    for entry in entries(c.data.datasets):
        name = entry.path.split("/")[1]  # data/NAME/...
        entry.path = f"{MINIATURES}/{name}"
        if entry.get("keep"):
            entry.keep = f"{MINIATURES}/{name}_keep.json"
    c.encoders.update(video="patch_pca", text="hash", image="none", fit_clips=4, video_weights="", text_weights="",
                      image_weights="", tokenizer="")
    c.model.update(dim=32, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=32, text_length=160,
                   latent_channels=16, attention="blockwise")
    if "image_dim" in c.model:
        c.model.update(image_dim=0, action_hidden_dim=32)
    c.layout.update(frames=9, height=48, width=64)
    c.data.holdout = 0.0
    c.mesh.update(data=0, fsdp=0, tensor=1, context=0)
    c.train.update(steps=3, global_batch_size=8, accumulation=1, compute_dtype="float32", remat="none", init_from="",
                   log_every=1)
    c.checkpoint.update(every=3, keep_last=1)
    c.evaluate.update(every=0, rollout_every=0)
    return c


def entries(datasets: ConfigDict) -> list[ConfigDict]:
    """Every dataset of a mixture, those in groups too."""
    groups = (entries(entry.datasets) if "datasets" in entry else [entry] for entry in datasets.values())
    return [entry for group in groups for entry in group]


def check_arm(name: str, arg: str, arms: tuple[str, ...]) -> None:
    """Raises ValueError where a recipe has no such arm."""
    if arg not in arms:
        raise ValueError(f"configs/recipes/{name}.py:{arg}: arms are {arms}")
