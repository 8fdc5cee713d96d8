"""Policy server: a trained checkpoint behind a WebSocket, for the public clients as they are (extra: serve).

    python -m launch.serve --checkpoint=runs/quickstart [--port=8000] [--protocol=openpi]
    python -m launch.serve --export=DIR [--device=cuda]     # of launch.export, in PyTorch (extra: torch)

    policy = openpi_client.websocket_client_policy.WebsocketClientPolicy("127.0.0.1", 8000)
    policy.get_server_metadata()["observation"]    # {key: {shape, dtype}} of what `infer` wants
    policy.infer(observation)["actions"]           # float32 [horizon, dims], absolute, robot units

GET / is a page with what is seen, imagined and done; /healthz says "ready", /metrics counts. SIGTERM answers what has
been asked and ends. It listens on this machine alone unless --host says otherwise; then use --token_file, and
--tls_cert with --tls_key.
"""

import asyncio
import math
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from launch.exporting.exported import open_export
from launch.serving.access import bind
from launch.serving.engine import Engine, ModelError
from launch.serving.messages import Protocol
from launch.serving.protocols import PROTOCOLS
from launch.serving.safety import unlimited
from launch.serving.servable import choose_robot
from launch.setup import flags as launch_flags
from launch.setup.restore import restore
from world_model.training.checkpoint import CheckpointError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_engine(args) -> Engine:
    """Restored, not yet compiled."""
    model = open_export(args.export, args.device) if args.export else restore(args.checkpoint, args.step)
    robot = choose_robot(model, args.embodiment, args.dataset)
    return Engine(model, robot, sessions=args.sessions, seed=args.seed,
                  batch_sizes=whole_numbers("batch_sizes", args.batch_sizes),
                  hold_gap=args.hold_gap, fixed_noise=args.fixed_noise, sampling=launch_flags.sampling(args))


def whole_numbers(flag: str, texts: list[str]) -> tuple[int, ...]:
    """Raises ValueError where one is not a number from 1 on."""
    if not texts or not all(text.isdigit() and int(text) for text in texts):
        raise ValueError(f"--{flag}: expected whole numbers from 1 on, found {texts}")
    return tuple(map(int, texts))


def make_protocol(args, engine: Engine) -> Protocol:
    """The protocol of --protocol. Raises ValueError where the embodiment does not fit it."""
    robot = engine.robot
    options = {"prompt": args.prompt if args.prompt is not None else robot.embodiment.instruction or None,
               "hold_gap": args.hold_gap}
    if args.image_size:
        options["image_size"] = whole_numbers("image_size", args.image_size.split("x"))
    elif args.protocol == "openpi":
        options["image_size"] = robot.layout.height, robot.layout.width
    return PROTOCOLS[args.protocol](robot, **options)


def warnings(args, engine: Engine, protocol: Protocol, token: str | None) -> Iterator[str]:
    """What whoever starts the server should know."""
    if protocol.prompt is None:
        yield "no --prompt, and the robot has no instruction of its own: clients must send a prompt"
    if gaps := unlimited(engine.embodiment):
        yield f"warning: {gaps}"
    if args.hold_gap is not None and not engine.imagines_video:
        yield "warning: --hold_gap does nothing: the model imagines no video, so that there is no gap"
    elif args.hold_gap is not None and protocol.no_gap:
        yield f"warning: --protocol={args.protocol}: {protocol.no_gap} give no gap, so that --hold_gap never holds them"
    if args.host not in LOOPBACK and not token:
        yield f"warning: {args.host} may be reached from elsewhere, and there is no --token_file"


def tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Raises OSError where the files cannot be used, ValueError where there is a key alone."""
    if not cert:
        if key:
            raise ValueError(f"--tls_key={key} without --tls_cert would serve in the clear: give both, or neither")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def serve(args) -> None:
    """Serves until SIGTERM. Raises CheckpointError, ValueError or OSError before it listens."""
    from launch.serving.server import Limits, Server

    token = Path(args.token_file).read_text().strip() if args.token_file else None
    if args.token_file and not token:
        raise ValueError(f"--token_file={args.token_file} is empty")
    tls, bound = tls_context(args.tls_cert, args.tls_key), bind(args.host, args.port)
    engine = make_engine(args)
    protocol = make_protocol(args, engine)
    limits = Limits(connections=args.connections, queue=args.queue, messages_per_second=args.rate,
                    message_bytes=int(args.message_mb * 2**20) if args.message_mb else None)
    engine.tokenize(protocol.prompt or "")
    for warning in warnings(args, engine, protocol, token):
        say(warning)
    began = time.monotonic()
    engine.warm()
    say(f"{engine.embodiment.name}, step {engine.model.step}: warm after {time.monotonic() - began:.1f} s")
    where = f"{'wss' if tls else 'ws'}://{args.host}"
    server = Server(engine, protocol, limits, token=token, names=(args.host,), tls=tls, say=say)
    asyncio.run(until_signal(
        lambda stop: server.run(bound, stop, lambda port: say(f"serving on {where}:{port}"))))
    say("stopped")


def say(text: str) -> None:
    """A line for whoever started the server, at once."""
    print(text, flush=True)


async def until_signal(run) -> None:
    """Awaits run(stop); SIGTERM and SIGINT set `stop`."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await run(stop)


def main(_) -> None:
    serve(flags.FLAGS)


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("checkpoint", None, "directory of the training run: served in JAX")
    flags.DEFINE_string("export", None, "directory of launch.export: served in PyTorch")
    flags.DEFINE_string("device", "cpu", "PyTorch's, of --export")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    flags.DEFINE_integer("port", 8000, "port; 0: any that is free", lower_bound=0, upper_bound=65535)
    flags.DEFINE_enum("protocol", "openpi", sorted(PROTOCOLS), "whose clients")
    flags.DEFINE_string("embodiment", None, "robot to drive, where the checkpoint knows several")
    flags.DEFINE_string("dataset", None, "whose statistics, where several are of that robot")
    flags.DEFINE_string("prompt", None, "where a client sends none; default: the embodiment's instruction, and "
                        "where it has none clients must send theirs")
    flags.DEFINE_string("image_size", None, "HEIGHTxWIDTH of a view; default: the protocol's own, or the canvas")
    flags.DEFINE_integer("sessions", 64, "episodes at once; those that nobody has used for a minute make "
                         "room", lower_bound=1)
    flags.DEFINE_list("batch_sizes", ["1", "4", "8", "16"], "episodes per step of the model that are compiled")
    flags.DEFINE_integer("seed", 0, "of the noise")
    flags.DEFINE_float("hold_gap", None, "hold the robot above this gap between imagined and observed latents")
    flags.DEFINE_bool("fixed_noise", False, "the same noise for every chunk, as the reference does")
    flags.DEFINE_integer("connections", 128, "open connections", lower_bound=1)
    flags.DEFINE_integer("queue", 64, "requests that may wait for the model", lower_bound=1)
    flags.DEFINE_float("message_mb", None, "largest message, MiB; default: four times what the protocol's largest "
                       "takes", lower_bound=0.001)
    flags.DEFINE_float("rate", 50.0, "messages per second of a connection", lower_bound=0.001)
    flags.DEFINE_string("token_file", None, "file with the bearer token that clients must send")
    flags.DEFINE_string("tls_cert", None, "PEM certificate chain: wss:// in place of ws://")
    flags.DEFINE_string("tls_key", None, "its PEM private key")
    launch_flags.define_sampling()
    flags.register_multi_flags_validator(
        ["hold_gap", "message_mb", "rate"], lambda given: all(math.isfinite(value or 0) for value in given.values()),
        "--hold_gap, --message_mb and --rate are finite numbers")
    flags.mark_flags_as_mutual_exclusive(["checkpoint", "export"], required=True)
    flags.mark_flags_as_mutual_exclusive(["step", "export"])
    launch_flags.run(main, CheckpointError, ModelError)
