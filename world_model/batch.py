"""The batch contract: the only thing that data pipelines and models share.

Shape letters, fixed for the whole repository:
    B samples   T raw video frames   F latent frames   H, W pixels   h, w latent pixels
    C channels  L tokens  D model width  N actions per window  S states per window  V cameras
T = s (F - 1) + 1, s the temporal stride of the video codec. All shapes are static; what is missing is masked, never
dropped.
"""

import dataclasses

import numpy as np
from ml_dtypes import bfloat16

ONE_FRAME = {"frames": 1, "frames_per_block": 1, "states_per_block": 1}  # a layout's fields where a config does not say


@dataclasses.dataclass(frozen=True, repr=False)
class Layout:
    """How one window is cut into autoregressive blocks. Block 0 is the first latent frame alone."""

    frames: int  # T
    height: int  # pixels
    width: int  # pixels
    frames_per_block: int  # latent frames
    actions_per_block: int
    states_per_block: int
    temporal_stride: int = 4  # raw frames of a latent frame after the first: the video codec's

    def __post_init__(self):
        stride = self.temporal_stride
        if stride < 1:
            raise ValueError(f"layout.temporal_stride = {stride}: expected at least 1 raw frame per latent frame")
        if self.frames < 1 or (self.frames - 1) % stride:
            raise ValueError(f"layout.frames = {self.frames}: a window needs {stride}k + 1 raw frames; "
                             f"the nearest is {max(1, (self.frames - 1) // stride * stride + 1)}")
        latent = (self.frames - 1) // stride
        if self.frames_per_block < 1 or latent % self.frames_per_block:
            raise ValueError(
                f"layout.frames = {self.frames} gives 1 + {latent} latent frames, which do not divide into blocks "
                f"of layout.frames_per_block = {self.frames_per_block}")
        if self.states_per_block and self.actions_per_block % self.states_per_block:
            raise ValueError(f"layout.states_per_block = {self.states_per_block} must divide "
                             f"layout.actions_per_block = {self.actions_per_block}")

    def as_json(self) -> dict[str, int]:
        """{field: value}, without a temporal stride of 4, so that files from before there was another one compare
        equal."""
        found = dataclasses.asdict(self)
        if self.temporal_stride == 4:
            del found["temporal_stride"]
        return found

    def __repr__(self) -> str:
        return f"Layout({', '.join(f'{name}={value}' for name, value in self.as_json().items())})"

    @property
    def latent_frames(self) -> int:
        """F = 1 + num_blocks * frames_per_block."""
        return (self.frames - 1) // self.temporal_stride + 1

    @property
    def block_frames(self) -> int:
        """The number of raw frames that a block stands for."""
        return self.temporal_stride * self.frames_per_block

    @property
    def num_blocks(self) -> int:
        """The number of blocks after the first frame."""
        return (self.latent_frames - 1) // self.frames_per_block

    @property
    def chunks(self) -> int:
        """The number of runs of actions: one per block, and one for a single frame, which is a single-step VLA's
        window."""
        return max(1, self.num_blocks)

    @property
    def num_actions(self) -> int:
        """N, over all chunks."""
        return self.chunks * self.actions_per_block

    @property
    def num_states(self) -> int:
        """S, over all chunks."""
        return self.chunks * self.states_per_block

    @property
    def frame_stride(self) -> int:
        """The control steps between two raw video frames of a window. Raises ValueError where that is no whole
        number."""
        if self.frames == 1:
            return self.actions_per_block  # the next frame would follow the actions
        stride, rest = divmod(self.actions_per_block, self.block_frames)
        if rest or not stride:
            raise ValueError(
                f"layout.actions_per_block = {self.actions_per_block} must be a multiple of the "
                f"{self.block_frames} raw frames of a block (actions per raw frame is a whole number)")
        return stride


def batch_spec(layout: Layout, *, action_dim: int, state_dim: int, text_length: int,
               views: int = 0) -> dict[str, tuple]:
    """name -> (shape without B, dtype) of the fields that a loader can make; a family may ask for fewer.

    video          uint8 pixels of the views, tiled into one canvas
    frame_mask     False on frames past the end of a short episode (they repeat its last frame)
    views          in place of these two where views > 0: uint8 pixels of each camera apart, in the embodiment's order,
                   at the window's first frame; zero where a robot has fewer cameras than V = views
    view_mask      beside views: True where a robot has a camera
    text_ids       token ids of the prompt, 0 past text_length
    state          normalised to [-1, 1], zero in unused slots; one per states_per_block at the block's start
    actions        normalised to [-1, 1], zero where action_mask is False
    action_mask    True on real dimensions of real steps; all False on a clip without actions
    sample_index   position in the global stream, step * global_batch_size + row; the sample's noise depends on it
    dataset_id, embodiment_id, episode_index, start   where the sample came from, to name it in errors

    Raises ValueError where views > 0 and a window has more than one frame.
    """
    if views and layout.frames != 1:
        raise ValueError(f"layout.frames = {layout.frames}: batches with separate views hold one frame of each; "
                         f"set layout.frames = 1")
    size = (layout.height, layout.width, 3)
    if views:
        pictures = {"views": ((views, *size), np.uint8), "view_mask": ((views,), np.bool_)}
    else:
        pictures = {"video": ((layout.frames, *size), np.uint8), "frame_mask": ((layout.frames,), np.bool_)}
    return pictures | {
        "text_ids": ((text_length,), np.int32),
        "text_length": ((), np.int32),
        "state": ((layout.num_states, state_dim), np.float32),
        "actions": ((layout.num_actions, action_dim), np.float32),
        "action_mask": ((layout.num_actions, action_dim), np.bool_),
        "embodiment_id": ((), np.int32),
        "dataset_id": ((), np.int32),
        "episode_index": ((), np.int32),
        "start": ((), np.int32),
        "sample_index": ((), np.uint32),
    }


def encoded_batch_spec(layout: Layout, *, action_dim: int, state_dim: int, text: tuple[int, int], latent: tuple,
                       image: tuple[int, int] | None = None, concat_first_frame: bool = False) -> dict[str, tuple]:
    """`batch_spec` where the encoders' outputs are stored: bfloat16 features stand in for pixels and tokens.

    latents         normalised latents [F, h, w, C] = (F, *latent)
    first_latents   those of the first frame followed by mid-grey ones; only with concat_first_frame
    text_features   [text tokens, width] = text, zero past the prompt
    image_features  [image tokens, width] = image, the first frame's
    """
    spec = batch_spec(layout, action_dim=action_dim, state_dim=state_dim, text_length=text[0])
    for name in ("video", "text_ids", "text_length"):
        del spec[name]
    shapes = {"latents": (layout.latent_frames, *latent), "text_features": text}
    shapes |= {"first_latents": shapes["latents"]} if concat_first_frame else {}
    shapes |= {"image_features": image} if image else {}
    return spec | {name: (shape, bfloat16) for name, shape in shapes.items()}


def check_batch(batch: dict, spec: dict[str, tuple], batch_size: int) -> None:
    """Raises ValueError naming the first field whose presence, shape or dtype is off."""
    for name, (shape, dtype) in spec.items():
        if name not in batch:
            raise ValueError(f"batch has no field {name!r}; it has {sorted(batch)}")
        found = batch[name]
        if tuple(found.shape) != (batch_size, *shape) or found.dtype != dtype:
            raise ValueError(f"batch[{name!r}]: expected {(batch_size, *shape)} {np.dtype(dtype).name}, "
                             f"found {tuple(found.shape)} {found.dtype}")
    extra = sorted(set(batch) - set(spec))
    if extra:
        raise ValueError(f"batch has fields outside the contract: {extra}")
