"""Published layouts that hold a LingBot-VA network: DIR/transformer/diffusion_pytorch_model*.safetensors beside a
config.json (released_format.py)."""

from world_model.families.lingbot_va.weights.released_format import FOLDER, STEM, VARIANTS, check_config
from world_model.weights.formats import PublishedFormat

IMPORTS = {family: PublishedFormat(STEM, (FOLDER,), ("",), variant.table, check=check_config)
           for family, variant in VARIANTS.items()}
