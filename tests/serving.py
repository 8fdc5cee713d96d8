"""A policy server in a thread and clients for it, for the tests of serving."""

import asyncio
import contextlib
import dataclasses
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from launch.serving.access import bind
from launch.serving.engine import Engine
from launch.serving.protocols import OpenPi
from launch.serving.servable import choose_robot
from launch.serving.server import Limits, Server
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests import tiny_policy


def make_engine(directory, embodiment: str, **options) -> Engine:
    restored = restore(tiny_policy.write(directory, embodiment))
    return Engine(restored, choose_robot(restored, None, None), **options)


class WithoutVideo:
    """A policy that imagines no video."""

    def __init__(self, policy):
        self._policy = policy

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def observe(self, *of_block):
        self._policy.observe(*of_block)

    def act(self, *asked):
        return self._policy.act(*asked)._replace(latents=None)

    def decode(self, latents):
        raise AssertionError("there is nothing to decode")


@contextlib.contextmanager
def without_video(engine):
    """The engine as one of a family that imagines no video."""
    family = dataclasses.replace(engine.model.experiment.family, imagines_video=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "family", family)
        patch.setattr(engine, "policy", WithoutVideo(engine.policy))
        yield


@contextlib.contextmanager
def serving(engine, protocol=None, limits=None, **options):
    """(port, server) of a server in a thread."""
    protocol = protocol or OpenPi(engine.robot, (32, 32), "push the T")
    server, started, port = Server(engine, protocol, limits or Limits(), say=str, **options), threading.Event(), []

    async def main():
        server.stop, server.loop = asyncio.Event(), asyncio.get_running_loop()
        await server.run(bind("127.0.0.1", 0), server.stop, lambda p: (port.append(p), started.set()))

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield port[0], server
    finally:
        with contextlib.suppress(RuntimeError):  # the loop of a server that a test has stopped is closed
            server.loop.call_soon_threadsafe(server.stop.set)
        thread.join(120)
        assert not thread.is_alive()


def observation(seed: int = 0, frames: int | None = None, **more) -> dict:
    rng = np.random.default_rng(seed)
    shape = (32, 32, 3) if frames is None else (frames, 32, 32, 3)
    return {"observation/image": rng.integers(0, 255, shape).astype(np.uint8),
            "observation/state": rng.uniform(100, 400, 2).astype(np.float32), **more}


def client(port: int, **options) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", port, **options)


def get(url: str, **headers) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def eventually(act, seconds: float = 60.0):
    """act() once it no longer raises RuntimeError (the server learns of a closed connection a moment later)."""
    end = time.monotonic() + seconds
    while True:
        try:
            return act()
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def wait_for(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
