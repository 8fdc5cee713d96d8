"""What the server's page shows: the request served last, and the gaps of the last requests.

Where a family imagines no video, live.json has neither imagined frames nor gaps, and the page leaves both out."""

import asyncio
import base64
import collections
import concurrent.futures
import functools
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launch.reporting import figures
from launch.serving.engine import Engine, Request
from launch.serving.safety import unlimited
from launch.serving.scheduler import Served

PAGE = Path(__file__).with_name("page.html")
GAPS = 120  # gaps that are shown, of the last requests
SECONDS = 0.4  # between two renderings; the page asks twice a second


class Shown(NamedTuple):
    """An answered request."""

    session: str
    request: Request
    served: Served


class Live:
    """Notes every answer, and renders in a thread of its own, at most once in SECONDS however many look."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.latest: Shown | None = None
        self._gaps: collections.deque[float] = collections.deque(maxlen=GAPS)
        self._thread, self._lock = concurrent.futures.ThreadPoolExecutor(1, "live"), asyncio.Lock()
        self._text, self._made = "", -math.inf

    def note(self, name: str, request: Request, served: Served) -> None:
        """A request has been answered."""
        self.latest = Shown(name, request, served)
        if served.answer.gap is not None and math.isfinite(served.answer.gap):  # JSON has no other numbers
            self._gaps.append(served.answer.gap)

    async def json(self, **counts) -> str:
        """live.json, not older than SECONDS."""
        async with self._lock:
            if time.monotonic() - self._made > SECONDS:
                make = functools.partial(self._render, self.latest, list(self._gaps), counts)
                self._text = await asyncio.get_running_loop().run_in_executor(self._thread, make)
                self._made = time.monotonic()
            return self._text

    def _render(self, shown: Shown | None, gaps: list[float], counts: dict) -> str:
        engine = self._engine
        state = {"embodiment": engine.embodiment.name, "step": engine.model.step, "latest": None,
                 "guard": unlimited(engine.embodiment), **counts}
        if engine.imagines_video:
            state["gaps"] = gaps
        if shown is not None:
            state["latest"] = self._latest(*shown)
        return json.dumps(state)

    def _latest(self, name: str, request: Request, served: Served) -> dict:
        engine, answer = self._engine, served.answer
        changed = {kind: count for kind, count in answer.interventions.items() if count}
        canvas = engine.robot.canvas({view: frames[-1:] for view, frames in request.views.items()})
        facts = {"session": name, "block": f"{request.block} of {engine.last_block or 'a sliding window'}",
                 "in the queue": f"{served.queue_ms:.0f} ms", "in the model": f"{served.infer_ms:.0f} ms"}
        if engine.imagines_video:
            facts["gap"] = "no history" if answer.gap is None else f"{answer.gap:.3f}"
        facts["interventions"] = ", ".join(f"{n} {kind}" for kind, n in changed.items()) or "none"
        latest = {"seen": _png(canvas[0]), "actions": answer.actions.round(4).tolist(),
                  "names": [d.name for d in engine.embodiment.action], "facts": facts}
        if answer.latents is not None:
            latest["imagined"] = [_png(frame) for frame in engine.decode(answer.latents)]
        return latest


def _png(image: np.ndarray) -> str:
    """Encodes a picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(figures.png(image)).decode()
