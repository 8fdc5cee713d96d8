"""Small pictures of MuJoCo's worlds by a software renderer, without a display (extra: sim)."""

import atexit
import functools
import os
from typing import Any

import numpy as np

from data_pipelines.simulators.tabletop.tasks import Camera

OVERSAMPLED = 2  # pictures are rendered larger and averaged, so that moving edges change the pixels smoothly


class DisplayError(ValueError):
    """Nothing can be rendered here; the message says what to install."""


def render(model, data, camera: Camera, size: int) -> np.ndarray:
    """The picture uint8 [size, size, 3] of a world. Raises DisplayError where nothing can be rendered."""
    return _renderer(size).render(model, data, camera)


def paint(model, look: dict) -> None:
    """Gives a world's own model the colours of a look (tasks.py)."""
    there = {model.mat(i).name for i in range(model.nmat)}
    for material in look.keys() & there:
        model.mat(material).rgba[:] = look[material]
    if "light" in look:
        model.light_diffuse[:] = look["light"]


@functools.cache
def _renderer(size: int) -> "_Renderer":
    return _Renderer(size)


atexit.register(_renderer.cache_clear)  # contexts are freed while OpenGL's own module is still whole


class _Renderer:
    """Renders every world of a process, because OpenGL's contexts are dear and the software renderer allows but one."""

    def __init__(self, size: int):
        self._size, self._side = size, size * OVERSAMPLED
        self._model: Any = None  # the model whose meshes are loaded
        try:
            self._context = _context()(self._side, self._side)
            self._context.make_current()
        except (ImportError, AttributeError, RuntimeError, OSError) as error:  # AttributeError: PyOpenGL without it
            raise DisplayError(
                "MuJoCo renders without a display by OSMesa, which is missing here: apt-get install libosmesa6 "
                "(Debian), or set MUJOCO_GL=egl where there is a GPU or Mesa's EGL") from error

    def render(self, model, data, seen_by: Camera) -> np.ndarray:
        """The picture uint8 [size, size, 3] of a world."""
        import mujoco

        self._context.make_current()
        if self._model is None or self._model.names != model.names:
            self._load(model)
        camera = mujoco.MjvCamera()
        if isinstance(seen_by, str):
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(seen_by).id
        else:
            camera.lookat[:] = seen_by.lookat
            camera.distance, camera.azimuth, camera.elevation = seen_by[1:]
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        pixels, rect = np.empty((self._side, self._side, 3), np.uint8), mujoco.MjrRect(0, 0, self._side, self._side)
        mujoco.mjr_render(rect, self._scene, self._meshes)
        mujoco.mjr_readPixels(pixels, None, rect, self._meshes)
        parts = pixels[::-1].reshape(self._size, OVERSAMPLED, self._size, OVERSAMPLED, 3)
        return np.round(parts.mean((1, 3))).astype(np.uint8)

    def _load(self, model) -> None:
        import mujoco

        # Shadows and multisampling are off: they take fifteen times as long as the rest.
        quality = model.vis.quality
        quality.shadowsize = quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = self._side
        self._model, self._scene = model, mujoco.MjvScene(model, 1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._meshes = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._meshes)


def _context():
    """The class of OpenGL contexts that MUJOCO_GL names; that of OSMesa where it names none."""
    if os.environ.get("MUJOCO_GL"):
        from mujoco.gl_context import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext
