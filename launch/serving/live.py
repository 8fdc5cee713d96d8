"""What the server's page shows: the request served last, and the gaps of the last while.

Where a family imagines no video, live.json has neither imagined frames nor gaps, and the page leaves both out."""

import base64
import collections
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launch.serving.engine import Engine, Request
from launch.serving.scheduler import Served

PAGE = Path(__file__).with_name("page.html")
GAPS = 120  # of the last requests


class Shown(NamedTuple):
    """An answered request."""

    session: str
    request: Request
    served: Served


class Live:
    """Notes every answer, and draws only when somebody looks."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.latest: Shown | None = None
        self._gaps: collections.deque[float] = collections.deque(maxlen=GAPS)

    def note(self, name: str, request: Request, served: Served) -> None:
        """A request has been answered."""
        self.latest = Shown(name, request, served)
        if served.answer.gap is not None:
            self._gaps.append(served.answer.gap)

    def json(self, shown: Shown | None, imagined: np.ndarray | None, **counts) -> str:
        """live.json; imagined: uint8 [n, H, W, 3], the answer's latents decoded (on the engine's thread), if any."""
        engine = self._engine
        state = {"embodiment": engine.embodiment.name, "step": engine.model.step, "latest": None, **counts}
        if engine.imagines_video:
            state["gaps"] = list(self._gaps)
        if shown is not None:
            name, request, served = shown
            changed = {kind: count for kind, count in served.answer.interventions.items() if count}
            canvas = engine.robot.canvas({view: frames[-1:] for view, frames in request.views.items()})
            facts = {"session": name, "block": f"{request.block} of {engine.last_block or 'a sliding window'}",
                     "in the queue": f"{served.queue_ms:.0f} ms", "in the model": f"{served.infer_ms:.0f} ms"}
            if engine.imagines_video:
                facts["gap"] = "no history" if served.answer.gap is None else f"{served.answer.gap:.3f}"
            facts["interventions"] = ", ".join(f"{n} {kind}" for kind, n in changed.items()) or "none"
            state["latest"] = latest = {
                "seen": _png(canvas[0]), "actions": served.answer.actions.round(4).tolist(),
                "names": [d.name for d in engine.embodiment.action], "facts": facts}
            if imagined is not None:
                latest["imagined"] = [_png(frame) for frame in imagined]
        return json.dumps(state)


def _png(image: np.ndarray) -> str:
    """As a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
