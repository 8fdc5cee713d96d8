"""Single objects of a config, by name: layout, encoders, model family."""

from data_pipelines.augmentation import Augmentation
from world_model import encoders
from world_model.batch import Layout
from world_model.encoders.weights import WeightsFile
from world_model.families import Family, make_family


def layout_of(config) -> Layout:
    """Raises ValueError where frames, blocks and actions do not divide."""
    return Layout(**config.layout)


def augmentation(config) -> Augmentation:
    """Raises ValueError where a number is out of range."""
    return Augmentation(crop=config.data.crop, **config.data.augment)


def _from_file(config, path: str) -> dict:
    """What encoders take whose weights are in files."""
    return {"weights": WeightsFile(path, config.encoders.allow_pickle), "dtype": config.encoders.dtype}


def video_codec(config) -> encoders.VideoCodec:
    """The codec by name; its arrays come from `frozen`."""
    c = config.encoders
    return encoders.make_video_codec(c.video, channels=config.model.latent_channels, chunk=c.chunk, tile=c.tile,
                                     **_from_file(config, c.video_weights))


def text_encoder(config) -> encoders.TextEncoder:
    """The text encoder by name."""
    return encoders.make_text_encoder(config.encoders.text, text_length=config.model.text_length,
                                      text_dim=config.model.text_dim, tokenizer=config.encoders.tokenizer,
                                      **_from_file(config, config.encoders.text_weights))


def image_encoder(config) -> encoders.ImageEncoder | None:
    """The image encoder by name; None where there is none, or its features come precomputed."""
    sizes = {name: config.model.get(name, 0) for name in ("image_tokens", "image_dim")}
    return encoders.make_image_encoder(config.encoders.image, **sizes,
                                       **_from_file(config, config.encoders.image_weights))


def model(config) -> Family:
    """The model family at the config's sizes."""
    layout, stride = layout_of(config), video_codec(config).spatial_stride
    sizes = {key: value for key, value in config.model.items() if key != "family"}
    return make_family(config.model.family, layout=layout, latent_height=layout.height // stride,
                       latent_width=layout.width // stride, remat=config.train.remat, matmul=config.train.matmul,
                       **sizes)
