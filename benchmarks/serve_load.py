"""Load test of the policy server on loopback: many clients, some of them hostile, every answer checked.

    python -m benchmarks.serve_load --checkpoint=runs/quickstart [--clients=32 --seconds=120]

Starts `python -m launch.serve` and speaks to it with the public openpi-client. Every well-behaved client has an
episode of its own (first frame, then a block of frames, again and again) whose answers were recorded before the load,
one client at a time: any other answer under load is a mix-up. One client in ten does all of hostile_client.py:
malformed, oversized, truncated, unfinished or out-of-order messages, some of nothing but lists, floods of sessions and
pings, half handshakes, hanging up, not reading. Prints one JSON line; exits 1 where the server crashed, an answer was
wrong, a request failed, or the server's memory grew by more than MEMORY_GROWTH after everything was done once.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import WebSocketException

from benchmarks.hostile_client import Hostile
from launch.serving.server import Limits

TOLERANCE = 0.05  # robot units: batches of another size round differently
MEMORY_GROWTH = 0.05  # of the resident size, from the first quarter of the time to the last
ASKING = 0.8 * Limits.messages_per_second  # rate of a well-behaved client; the server refuses more than its limit


class Client:
    """A well-behaved client with frames, states and a session of its own."""

    def __init__(self, port: int, number: int):
        self.policy = WebsocketClientPolicy("127.0.0.1", port)
        metadata = self.policy.get_server_metadata()
        rng = np.random.default_rng(number)
        self._requests = [self._observation(metadata, rng, frames)
                          | {"session_id": f"load {number}", "reset": first, "prompt": "go"}
                          for frames, first in ((1, True), (metadata["frames"]["continue"], False))]
        self.latencies, self.refused, self.wrong, self.failed = [], 0, 0, []

    def _observation(self, metadata: dict, rng, frames: int) -> dict:
        observation = {}
        for key, each in metadata["observation"].items():
            image = each["dtype"] == "uint8"
            observation[key] = rng.integers(0, 255, (frames, *each["shape"])).astype(np.uint8) if image else \
                rng.uniform(100, 400, each["shape"]).astype(np.float32)
        return observation

    def episode(self) -> list[np.ndarray] | None:
        """Asks for both chunks and returns their actions; None where the server was too busy."""
        chunks = []
        for request in self._requests:
            began = time.monotonic()
            try:
                chunks.append(self.policy.infer(request)["actions"])
            except RuntimeError as error:
                if "busy" in str(error) or "full" in str(error):
                    self.refused += 1
                    time.sleep(0.05)
                else:
                    self.failed.append(str(error))
                return None
            self.latencies.append(time.monotonic() - began)
            time.sleep(max(0.0, 1 / ASKING - self.latencies[-1]))
        return chunks

    def run(self, stop: threading.Event) -> None:
        """Plays episodes until `stop` and compares each with the first."""
        while not stop.is_set():
            try:
                chunks = self.episode()
            except (WebSocketException, OSError) as error:
                self.failed.append(repr(error))
                return
            if chunks and not np.allclose(chunks, self.expected, rtol=0, atol=TOLERANCE):
                self.wrong += 1


class Probe:
    """Asks for /healthz ten times a second: how long the event loop keeps a stranger waiting."""

    def __init__(self, port: int):
        self.url, self.seconds = f"http://127.0.0.1:{port}/healthz", []

    def run(self, stop: threading.Event) -> None:
        """Asks until `stop`."""
        while not stop.wait(0.1):
            began = time.monotonic()
            with urllib.request.urlopen(self.url, timeout=60) as page:
                page.read()
            self.seconds.append(time.monotonic() - began)


@contextlib.contextmanager
def server(workdir: Path, *options: str):
    """Serves a checkpoint and yields (process, port); sends SIGTERM at the end."""
    process = subprocess.Popen([sys.executable, "-m", "launch.serve", f"--checkpoint={workdir}", "--port=0", *options],
                               stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        line = next((line for line in process.stdout if "serving on" in line), None)
        if line is None:
            raise RuntimeError(f"the server ended with {process.wait()} before it served")
        yield process, int(line.rsplit(":", 1)[1])
        process.terminate()
        process.wait(60)
    finally:
        process.kill()


def run(workdir: Path, clients: int, seconds: float, batch_sizes: str = "1,4,16") -> dict:
    """Runs the load and returns the result as JSON values."""
    hostile = max(1, clients // 10)
    with server(workdir, f"--sessions={2 * clients}", f"--queue={2 * clients}",
                f"--batch_sizes={batch_sizes}") as (process, port):
        good = [Client(port, i) for i in range(clients - hostile)]
        for client in good:
            client.expected = client.episode()
            client.latencies.clear()
        bad = [Hostile(port, i, {key: value for key, value in good[0]._requests[0].items()
                                 if isinstance(value, np.ndarray)}) for i in range(hostile)]
        for each in bad:
            each.rehearse()
        stop, memory, watched, probe = threading.Event(), [], psutil.Process(process.pid), Probe(port)
        threads = [threading.Thread(target=each.run, args=(stop,), daemon=True) for each in [*good, *bad, probe]]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - began < seconds and process.poll() is None:
            time.sleep(min(1.0, seconds / 20))
            memory.append(watched.memory_info().rss / 2**20)
        stop.set()
        for thread in threads:
            thread.join(60)
        took, alive = time.monotonic() - began, process.poll() is None
    waits = {f"healthz_p{q}_ms": round(1e3 * float(np.percentile(probe.seconds, q)), 1) for q in (50, 99)}
    return result(good, bad, memory, took, alive and process.returncode == 0) | waits


def result(good: list[Client], bad: list[Hostile], memory: list[float], seconds: float, alive: bool) -> dict:
    """Sums up what clients and server did."""
    latencies = np.concatenate([client.latencies for client in good]) * 1e3
    quarter = max(1, len(memory) // 4)
    start, end = float(np.median(memory[:quarter])), float(np.median(memory[-quarter:]))
    apart = min(np.abs(np.subtract(a.expected, b.expected)).max() for i, a in enumerate(good) for b in good[:i])
    acts = {}
    for each in bad:
        for name, count in each.done.items():
            acts[name] = acts.get(name, 0) + count
    failed = [sentence for client in good for sentence in client.failed]
    wrong = sum(client.wrong for client in good)
    passed = alive and not failed and not wrong and apart > 2 * TOLERANCE and end < start * (1 + MEMORY_GROWTH)
    return {"clients": len(good) + len(bad), "hostile": len(bad), "seconds": round(seconds, 1),
            "requests": len(latencies), "requests_per_second": round(len(latencies) / seconds, 2),
            **{f"p{q}_ms": round(float(np.percentile(latencies, q)), 1) for q in (50, 99)},
            "refused": sum(client.refused for client in good), "mixups": wrong,
            "least_difference": round(float(apart), 3),
            "failed": failed[:5], "hostile_acts": acts, "memory_start_mb": round(start), "memory_end_mb": round(end),
            "ended_well": alive, "passed": bool(passed)}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    outcome = run(args.checkpoint, args.clients, args.seconds)
    print(json.dumps(outcome))
    sys.exit(not outcome["passed"])


if __name__ == "__main__":
    main()
