"""One Meta-World table: physics by MuJoCo, small pictures by a software renderer (extra: sim).

A command [4] is held for REPEAT steps of the simulator, which makes 20 commands a second. It is a difference of the
hand's position, -1 to 1 for 1 cm a step of the simulator, and the force of the gripper. A state [4] is the hand's
position in m and the gripper's opening, 0 to 1; where the object stands has to be seen.
"""

import atexit
import copy
import dataclasses
import functools
import os
import warnings

import numpy as np

REPEAT = 4  # steps of the simulator (80 Hz) that a command is held
RATE = 20.0  # commands per second
OVERSAMPLED = 2  # pictures are rendered larger and averaged, so that moving edges change the pixels smoothly


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what is asked for, and from where it is seen."""

    instruction: str
    camera: str  # the simulator has topview, corner, corner2, corner3 and corner4


# The positions of object and goal are random in every episode. In none of them does the expert's gripper move.
TASKS = {
    "button-press-topdown-v3": Task("press the button from above", "topview"),
    "reach-v3": Task("reach the red ball", "corner2"),
    "drawer-close-v3": Task("close the drawer", "topview"),
    "door-close-v3": Task("close the door", "topview"),
    "handle-press-v3": Task("press the handle down", "corner3"),
}

# Looks give colours (RGBA) to the simulator's materials, where a world has them, and "light", the lamps' strength.
# Positions and physics are the same in all.
LOOKS = {
    "plain": {},
    "green": {"table_wood": (0.3, 0.6, 0.4, 1), "btn_yellow": (0.2, 0.2, 0.6, 1), "btn_red": (0.9, 0.7, 0.1, 1),
              "light": 0.15},
}


class DisplayError(ValueError):
    """Nothing can be rendered here; the message says what to install."""


class Simulator:
    """One world of a task. `seed` decides where everything stands; `look` is a name in LOOKS."""

    def __init__(self, task: str, seed: int, look: str = "plain"):
        self.task, self._env = TASKS[task], _new_world(task)
        _paint(self._env.model, LOOKS[look])
        self._expert = _expert(task)
        self._env.seed(seed)
        self._observation, _ = self._env.reset()
        self.reward, self.solved = 0.0, False  # after the last command; reward 0 to 1

    @property
    def state(self) -> np.ndarray:
        """The hand's x, y and z in m, and the opening of the gripper: float64 [4]."""
        return self._observation[:4].copy()

    def expert(self) -> np.ndarray:
        """The command that the task's scripted controller, which knows where everything stands, would give now: float64
        [4]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that commands above 1 are cut off
            return np.clip(self._expert.get_action(self._observation), -1.0, 1.0).astype(np.float64)

    def step(self, action: np.ndarray) -> None:
        """Holds a command [4] for 50 ms, or less where the task is done."""
        for _ in range(REPEAT):
            self._observation, reward, _, _, info = self._env.step(np.asarray(action, np.float32))
            self.reward, self.solved = float(reward) / 10, bool(info["success"])
            if self.solved:
                return

    def render(self, size: int) -> np.ndarray:
        """The picture uint8 [size, size, 3] from the task's camera. Raises DisplayError where nothing can be
        rendered."""
        return _renderer(size).render(self._env.model, self._env.data, self.task.camera)


def _expert(task: str):
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]()


@functools.cache
def _loaded_world(task: str):
    """The world of the task that is read from XML and meshes, which takes longer than an episode."""
    from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # every reset is random, by the world's own generator
    return env


def _new_world(task: str):
    """A new world of the task. The environment's own way of copying would read everything again."""
    import mujoco

    loaded = _loaded_world(task)
    env = loaded.__class__.__new__(loaded.__class__)
    env.__dict__.update(loaded.__dict__)
    env.model = copy.copy(loaded.model)
    env.data = mujoco.MjData(env.model)
    return env


def _paint(model, look: dict) -> None:
    """Gives a world's own model the colours of a look."""
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
        self._model = None  # the model whose meshes are loaded
        try:
            self._context = _context()(self._side, self._side)
            self._context.make_current()
        except (ImportError, AttributeError, RuntimeError, OSError) as error:  # AttributeError: PyOpenGL without it
            raise DisplayError(
                "Meta-World renders without a display by OSMesa, which is missing here: apt-get install libosmesa6 "
                "(Debian), or set MUJOCO_GL=egl where there is a GPU or Mesa's EGL") from error

    def render(self, model, data, name: str) -> np.ndarray:
        """The picture uint8 [size, size, 3] of a world through the camera of that name."""
        import mujoco

        self._context.make_current()
        if self._model is None or self._model.names != model.names:
            self._load(model)
        camera = mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(name).id
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
