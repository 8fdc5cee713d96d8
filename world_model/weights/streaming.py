"""Arrays that go into a checkpoint piece by piece and are never whole in memory.

A stacked parameter of the 14B model is 11 GB in float32; one layer of it is 0.3 GB. `Pieces` stands for such an array
in the state that `Checkpoints.save` is given. Orbax finds its handler below, which writes layer after layer into the
array's own file format, so that a restore sees nothing special.
"""

import asyncio
import dataclasses
from collections.abc import Callable

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from world_model import hashing

CHUNK_BYTES = 64 * 2**20  # what a restore reads at once, for each device that needs part of it


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """An array that is read while it is written: read(i) gives [i] of its leading axis where it is stacked, read(None)
    gives the whole elsewhere."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]
    stacked: bool
    sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))  # hash so far

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """The bytes of the whole array."""
        return self.size * self.dtype.itemsize

    @property
    def hash(self) -> str:
        """The hash of the array, once it is written."""
        return hashing.text(self.sums)

    def add(self, piece: np.ndarray, index: int | None) -> None:
        """Notes that a piece is being written."""
        self.sums[:] += hashing.sums_of(piece, (index or 0) * piece.size)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.whole(), dtype)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(index) if self.stacked else self.whole()[index]

    def whole(self) -> np.ndarray:
        """Reads all of it at once."""
        return np.stack([self.read(i) for i in range(self.shape[0])]) if self.stacked else self.read(None)


class PiecesHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Pieces`: one array at a time, one piece of it at a time, each from source to file before the next."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    def typestr(self) -> str:
        """The type's name in the checkpoint's metadata; a restore asks for the type that it wants."""
        return "wamax.Pieces"

    async def serialize(self, values, infos, args=None):
        """Does what the base class does, with chunks that hold one layer or less."""
        chunks = [ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if v.stacked else ()) for v in values]
        return await super().serialize(values, infos, chunks)

    async def _background_serialize(self, values, infos, args=None):
        self._turn = asyncio.Lock()  # belongs to this save's event loop; the base class starts all writes at once
        await super()._background_serialize(values, infos, args)

    async def _open_and_write(self, value: Pieces, tspec, ts_context):
        async with self._turn:
            array = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            for i in range(value.shape[0]) if value.stacked else [None]:
                piece = value.read(i)
                value.add(piece, i)
                await (array if i is None else array[i]).write(piece, can_reference_source_data_indefinitely=True)


ocp.type_handlers.register_type_handler(Pieces, PiecesHandler())
