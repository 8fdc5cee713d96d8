"""Reads damaged and hostile inputs with every reader: each is read, or refused by the reader's own error, in time.

    python -m benchmarks.fuzz --cases=100000 [--seed=0] [--only=READER] [--case=NUMBER]

A case is a number: of a reader of benchmarks/fuzz_readers.py, it makes the same input again from small valid ones. Each
reader runs in a process of its own, in which a case may take --seconds, and no more memory than --megabytes beyond what
the reader's packages take. Another kind of error, an error that does not say where, a hang or a crash is a failure: it
is printed with its case, which --only and --case run alone. Prints one JSON object; exits 1 after a failure.
"""

import collections
import copy
import faulthandler
import json
import math
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgpack
from absl import app, flags

from benchmarks.fuzz_readers import READERS, Reader

BRACKETS = 100_000
VALUES = (None, True, False, 0, -1, 1, 2, 0.5, -0.5, 2**31, 2**40, 2**63, -2**63, 10**30, math.inf, -math.inf, math.nan,
          "", "x", "0", "-1", "\u2028", "\x00", "../x", "/etc/passwd", "{episode_index:0300000000d}", "{0.__class__}",
          "F8_E4M3", "F4", "BF16", "a" * 5000, [], {}, [None], [[]], [{}], {"": None}, [0] * 300,
          {"a": {"b": {"c": [1]}}})


def change_value(rng: random.Random, value):
    """The value with one of its parts replaced, left out, repeated or joined by another."""
    places = list(_places(value))
    container, key = rng.choice(places) if places else (None, None)
    if container is None or rng.random() < 0.03:
        return _any(rng)
    act = rng.randrange(6)
    if act == 0:
        del container[key]
    elif act == 1 and isinstance(container, list):
        container.insert(key, container[key])
    elif act == 2 and isinstance(container, dict):
        container[rng.choice(("x", "", "a" * 300, str(key) + "x"))] = _any(rng)
    elif act == 3:
        other, place = rng.choice(places)
        container[key] = copy.deepcopy(other[place])
    else:
        container[key] = _any(rng)
    return value


def _any(rng: random.Random):
    return copy.deepcopy(rng.choice(VALUES))


def _places(value):
    """(container, key) of everything inside."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with bits flipped, a stretch cut out, repeated or replaced, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) + 1)
        stretch, act = slice(at, at + rng.randint(1, 40)), rng.randrange(6)
        if act < 2 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif act == 2:
            del out[stretch]
        elif act == 3:
            out[at:at] = out[stretch]
        elif act == 4:
            out[stretch] = rng.choice((b"\xff", b"\0", b"[", b"{", b'"', b"9" * 20, b"e999", b"null"))
        else:
            del out[at + rng.randrange(4):]
    return bytes(out)


def changed(rng: random.Random, data: bytes, form: str) -> bytes:
    """An input that differs from a valid one. form: json, lines (of JSON), msgpack, safetensors or bytes."""
    if form == "bytes" or rng.random() < 0.25:
        return change_bytes(rng, data)
    if form == "safetensors":  # a length, a header in JSON, numbers
        end = 8 + int.from_bytes(data[:8], "little")
        header = changed(rng, data[8:end], "json")
        return len(header).to_bytes(8, "little") + header + data[end:]
    if rng.random() < 0.01:
        return data[:rng.randrange(len(data))] + b"\x91" * BRACKETS if form == "msgpack" else b'{"a":' + b"[" * BRACKETS
    value = msgpack.unpackb(data, strict_map_key=False) if form == "msgpack" else json.loads(
        b"[" + data.strip().replace(b"\n", b",") + b"]" if form == "lines" else data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = change_value(rng, value)
    if form == "msgpack":
        try:
            return msgpack.packb(value)
        except (OverflowError, ValueError):
            return change_bytes(rng, data)
    lines = value if form == "lines" and isinstance(value, list) else [value]
    return "\n".join(json.dumps(each) for each in lines).encode("utf-8", "surrogatepass")


def run_case(reader: Reader, folder: Path, seed: int, number: int) -> str:
    """Runs one case. Returns "read" or "refused"; raises what the reader should not have."""
    rng = random.Random(f"{seed}/{reader.name}/{number}")
    name, form = rng.choice(reader.inputs)
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(changed(rng, original, form))
    try:
        if reader.prepare:
            reader.prepare(folder, name)
        reader.read(folder)
    except reader.errors as error:
        if not any(word in str(error) for word in (*reader.says, str(folder))):
            raise AssertionError(f"the message does not say where: {error}") from error
        return "refused"
    finally:
        reader.restore(folder, name, original)
    return "read"


def work(name: str, seed: int, numbers: range, megabytes: int, pipe, at) -> None:
    """Runs a reader's cases in this process; at: the case that is being run, for who watches."""
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as temporary:
        reader, folder = READERS[name], Path(temporary)
        reader.make(folder)
        reader.read(folder)  # valid: what is imported on the way is not counted
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20,) * 2)
        outcomes = collections.Counter()
        for number in numbers:
            at.value = number
            try:
                outcomes[run_case(reader, folder, seed, number)] += 1
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                pipe.send((number, f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"))
        pipe.send(dict(outcomes))


def watch(name: str, seed: int, numbers: range, seconds: float, megabytes: int) -> tuple[dict, dict]:
    """(outcomes, {case: what went wrong}) of a reader's cases, in as many processes as it takes."""
    outcomes, failures, spawn = collections.Counter(), {}, multiprocessing.get_context("spawn")
    while numbers:
        ours, theirs = spawn.Pipe(False)
        at = spawn.Value("q", -1)
        process = spawn.Process(target=work, args=(name, seed, numbers, megabytes, theirs, at))
        process.start()
        theirs.close()
        case, since, ended, hung = -1, time.monotonic(), False, False
        while not ended and not hung:
            try:
                while not ended and ours.poll(0.2):
                    said = ours.recv()
                    ended = isinstance(said, dict)
                    if ended:
                        outcomes.update(said)
                    else:
                        failures[said[0]] = said[1]
            except EOFError:
                break
            if at.value != case:
                case, since = at.value, time.monotonic()
            hung = case >= 0 and time.monotonic() - since > seconds
        if hung:
            process.kill()
        process.join()
        if ended:
            return dict(outcomes), failures
        if case < 0:
            raise RuntimeError(f"{name}: cannot be started")
        failures[at.value] = f"took more than {seconds} s" if hung else f"the process ended with {process.exitcode}"
        numbers = range(at.value + 1, numbers.stop)
    return dict(outcomes), failures


def main(_) -> None:
    """The command."""
    args, failed = flags.FLAGS, 0
    names = [args.only] if args.only else list(READERS)
    each = -(-args.cases // len(names))
    numbers = range(each) if args.case is None else range(args.case, args.case + 1)
    report = {}
    for name in names:
        began = time.monotonic()
        outcomes, failures = watch(name, args.seed, numbers, args.seconds, args.megabytes)
        report[name] = {"cases": len(numbers), **outcomes, "failures": len(failures),
                        "seconds": round(time.monotonic() - began)}
        print(f"{name}: {report[name]}", file=sys.stderr, flush=True)
        for number, said in list(failures.items())[:20]:
            print(f"  --only={name} --seed={args.seed} --case={number}: {said}", file=sys.stderr, flush=True)
        failed += len(failures)
    print(json.dumps({"cases": sum(each["cases"] for each in report.values()), "failures": failed, "readers": report}))
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    flags.DEFINE_integer("cases", 100_000, "over all readers")
    flags.DEFINE_integer("seed", 0, "of the inputs")
    flags.DEFINE_enum("only", None, sorted(READERS), "one reader")
    flags.DEFINE_integer("case", None, "one case, of --only")
    flags.DEFINE_float("seconds", 20.0, "that a case may take")
    flags.DEFINE_integer("megabytes", 1024, "that a reader may take beside its packages")
    app.run(main)
