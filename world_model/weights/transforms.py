"""How a tensor changes between a published PyTorch layout and our native one, and which tensors a kind of module has.

Published linears are [out, in], convolutions have their channels first, and matrices of one category a leading axis of
one; native kernels are [in, out] with channels last. Where published self-attention interleaves the halves of a rotary
pair, our queries and keys are half-split (world_model/layers/rotary.py), so columns are permuted inside each head.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one tensor changes on the way: functions of (numpy or JAX array, head_dim)."""

    to_published: Callable
    to_native: Callable


def _patch_to_published(kernel):
    """[4 C, D], rows (ph, pw, c) with c fastest -> Conv3d weight [D, C, 1, 2, 2]."""
    rows, dim = kernel.shape
    return kernel.reshape(2, 2, rows // 4, dim).transpose(3, 2, 0, 1)[:, :, None]


def _patch_to_native(weight):
    """The inverse of _patch_to_published."""
    return weight[:, :, 0].transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _interleave(x, head_dim):
    """Last axis of each head: (first half, second half) -> pairs (2i, 2i + 1)."""
    return x.reshape(*x.shape[:-1], -1, 2, head_dim // 2).swapaxes(-1, -2).reshape(x.shape)


def _half_split(x, head_dim):
    """The inverse of _interleave."""
    return x.reshape(*x.shape[:-1], -1, head_dim // 2, 2).swapaxes(-1, -2).reshape(x.shape)


def _channels_first(kernel):
    """[4 C, D], rows (ph, pw, c) with c fastest -> linear weight [D, 4 C] over (c, ph, pw)."""
    rows, dim = kernel.shape
    return kernel.reshape(4, rows // 4, dim).transpose(2, 1, 0).reshape(dim, rows)


def _channels_last(weight):
    """The inverse of _channels_first."""
    dim, rows = weight.shape
    return weight.reshape(dim, rows // 4, 4).transpose(2, 1, 0).reshape(rows, dim)


def _reshaped(leading: int, trailing: int) -> Transform:
    """The transform of an array that is published with axes of one around it."""
    return Transform(lambda x, d: x.reshape((1,) * leading + x.shape + (1,) * trailing),
                     lambda x, d: x.reshape(x.shape[leading:x.ndim - trailing]))


def _patches_to_weight(kernel):
    """[p p 3, D], rows (row, column, channel) -> weight [D, 3, p, p]."""
    side = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _video_patch(kernel):
    """[3 2 p p, D], rows (channel, frame, row, column) -> Conv3d weight [D, 3, 2, p, p]."""
    side = round((kernel.shape[0] // 6) ** 0.5)
    return kernel.T.reshape(-1, 3, 2, side, side)


SAME = Transform(lambda x, d: x, lambda x, d: x)
TRANSPOSE = Transform(lambda x, d: x.T, lambda x, d: x.T)
PATCH = Transform(lambda x, d: _patch_to_published(x), lambda x, d: _patch_to_native(x))
PATCH_LINEAR = Transform(lambda x, d: _channels_first(x), lambda x, d: _channels_last(x))
ROTARY = Transform(_interleave, _half_split)
ROTARY_TRANSPOSE = Transform(lambda x, d: _interleave(x, d).T, lambda x, d: _half_split(x.T, d))
CONV = Transform(lambda x, d: x.transpose(4, 3, 0, 1, 2), lambda x, d: x.transpose(2, 3, 4, 1, 0))
PICTURE_CONV = Transform(lambda x, d: x[0].transpose(3, 2, 0, 1), lambda x, d: x.transpose(2, 3, 1, 0)[None])
POINT_3D = Transform(lambda x, d: x.T[..., None, None, None], lambda x, d: x[..., 0, 0, 0].T)
POINT_2D = Transform(lambda x, d: x.T[..., None, None], lambda x, d: x[..., 0, 0].T)
PICTURE_PATCH = Transform(lambda x, d: _patches_to_weight(x), lambda x, d: x.transpose(2, 3, 1, 0).reshape(-1, len(x)))
VIDEO_PATCH = Transform(lambda x, d: _video_patch(x), lambda x, d: x.reshape(len(x), -1).T)
EXPERT_TRANSPOSE = Transform(lambda x, d: x.swapaxes(-1, -2), lambda x, d: x.swapaxes(-1, -2))

# kind of module -> (published suffix, native suffix, transform) of each of its tensors
KINDS = {
    "linear": ((".weight", ".kernel", TRANSPOSE), (".bias", ".bias", SAME)),
    "matrix": ((".weight", ".kernel", TRANSPOSE),),
    "layer_norm": ((".weight", ".scale", SAME), (".bias", ".bias", SAME)),
    "norm": ((".weight", ".scale", SAME),),
    "rotary_linear": ((".weight", ".kernel", ROTARY_TRANSPOSE), (".bias", ".bias", ROTARY)),
    "rotary_norm": ((".weight", ".scale", ROTARY),),
    "patch": ((".weight", ".kernel", PATCH), (".bias", ".bias", SAME)),
    "patch_linear": ((".weight", ".kernel", PATCH_LINEAR), (".bias", ".bias", SAME)),
    "picture_patch": (("", "", PICTURE_PATCH),),
    "category": ((".W", ".kernel", _reshaped(1, 0)), (".b", ".bias", _reshaped(1, 0))),
    "conv": ((".weight", ".kernel", CONV), (".bias", ".bias", SAME)),
    "picture_conv": ((".weight", ".kernel", PICTURE_CONV), (".bias", ".bias", SAME)),
    "point_3d": ((".weight", ".kernel", POINT_3D), (".bias", ".bias", SAME)),
    "point_2d": ((".weight", ".kernel", POINT_2D), (".bias", ".bias", SAME)),
    "gamma_3d": ((".gamma", ".scale", _reshaped(0, 3)),),
    "gamma_2d": ((".gamma", ".scale", _reshaped(0, 2)),),
    "video_patch": ((".weight", ".kernel", VIDEO_PATCH),),
    "biased_video_patch": ((".weight", ".kernel", VIDEO_PATCH), (".bias", ".bias", SAME)),
    "embedding": ((".weight", "", SAME),),
    "transposed": ((".weight", "", TRANSPOSE),),
    "expert_matrices": (("", "", EXPERT_TRANSPOSE),),
    "array": (("", "", SAME),),
    "leading_1": (("", "", _reshaped(1, 0)),),
    "leading_2": (("", "", _reshaped(2, 0)),),
}
