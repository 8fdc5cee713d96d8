"""One queue in front of one engine: requests of all sessions in batches, in the order of their coming."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import NamedTuple

from launch.serving.engine import Answer, Engine, ModelError, Request
from launch.serving.telemetry import Telemetry


class Refused(RuntimeError):
    """The server will not take the request now; a sentence for the client."""


class Served(NamedTuple):
    """An answer and what it took, in milliseconds."""

    answer: Answer
    queue_ms: float
    infer_ms: float


class _Job(NamedTuple):
    request: Request
    future: asyncio.Future
    came: float


class Scheduler:
    """Runs on the event loop; the engine in a thread of its own, so that connections go on meanwhile."""

    def __init__(self, engine: Engine, queue_size: int, telemetry: Telemetry, lost: Callable[[], None]):
        """lost: called when every window is gone."""
        self.engine, self.telemetry, self.draining, self._lost = engine, telemetry, False, lost
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(queue_size)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "engine")
        telemetry.queue.set_function(self._queue.qsize)

    async def submit(self, request: Request) -> Served:
        """Raises Refused where the queue is full or the server drains, ModelError where the model failed."""
        if self.draining:
            raise Refused("the server is shutting down: connect to another one")
        job = _Job(request, asyncio.get_running_loop().create_future(), time.monotonic())
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            raise Refused(f"the server is busy: {self._queue.maxsize} requests wait already; try again") from None
        return await job.future

    async def run(self) -> None:
        """Answers requests until cancelled. A batch is what waits when the engine is free; none waits to fill."""
        while True:
            jobs = [await self._queue.get()]
            while len(jobs) < self.engine.batch_sizes[-1] and not self._queue.empty():
                jobs.append(self._queue.get_nowait())
            await self._step(jobs)
            for _ in jobs:
                self._queue.task_done()

    async def on_engine(self, function: Callable, *args):
        """function(*args) on the engine's thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def drain(self) -> None:
        """Takes no more requests and waits until those taken are answered."""
        self.draining = True
        await self._queue.join()

    async def _step(self, jobs: list[_Job]) -> None:
        began = time.monotonic()
        try:
            answers = await self.on_engine(self.engine.step, [job.request for job in jobs])
        except Exception as error:  # the device failed in the middle of a step that donates: no window can be trusted
            await self.on_engine(self.engine.reset)
            self._lose(jobs, f"the model failed and all sessions begin again: {error}")
        else:
            taken = time.monotonic() - began
            self.telemetry.batch.observe(len(jobs))
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, ModelError):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(Served(answer, 1e3 * (began - job.came), 1e3 * taken))

    def _lose(self, jobs: list[_Job], sentence: str) -> None:
        """Fails these jobs and all that wait: they would go on with windows that are no longer there."""
        waiting = []
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
            self._queue.task_done()
        self.telemetry.lost.inc()
        self._lost()
        for job in jobs + waiting:
            job.future.set_exception(ModelError(sentence))
