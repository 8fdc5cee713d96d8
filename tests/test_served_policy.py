"""LeRobot's episodes acted by a server over loopback: the actions of the model in this process, and what can go wrong."""

import contextlib
import threading

import jax
import numpy as np
import pytest
from websockets.sync.server import serve

from launch import export
from launch.exporting import lerobot
from launch.exporting.exported import open_export
from launch.serving import wire
from launch.serving.engine import Engine
from launch.serving.protocols import LingBotVLA, OpenPi
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from launch.simulation.lerobot import ask_server, check_action, open_episodes
from launch.simulation.served import ServerError
from tests import tiny_policy
from tests.serving import serving
from tests.test_lerobot_policy import CAMERA, seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(an export for LeRobot, the same without its weights)."""
    out, light = (tmp_path_factory.mktemp("out") / name for name in ("folder", "light"))
    jax.config.update("jax_disable_most_optimizations", True)
    export.export(restore(tiny_policy.write(tmp_path_factory.mktemp("run"))), out, format_name="lerobot")
    jax.config.update("jax_disable_most_optimizations", False)
    light.mkdir()
    (light / "config.json").write_text((out / "config.json").read_text())
    return out, light


@pytest.fixture(scope="module")
def engine(folder):
    model = open_export(folder[0])
    return Engine(model, choose_robot(model, None, None), sessions=4, batch_sizes=(1,))


def ask(light, port, execute: int = 0, token_file: str = "", seed: int = 0):
    return ask_server(light, f"127.0.0.1:{port}", token_file, sessions=2, seed=seed, execute=execute)


@contextlib.contextmanager
def saying(first: bytes, reply: bytes | None = None):
    """Port of a server that says this first, and that to whatever it is asked."""
    def answer(connection):
        connection.send(first)
        for _ in connection:
            connection.send(reply)

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("execute", [0, 3])
def test_actions_are_those_of_the_model_in_this_process(folder, engine, execute):
    """Two episodes at once, whole chunks whose windows go on and parts of them, and two more after a reset."""
    out, light = folder
    here = open_episodes(out, "cpu", sessions=2, seed=0, execute=execute)
    with serving(engine, OpenPi(engine.robot, (32, 32), engine.embodiment.instruction)) as (port, _):
        there, found, expected = ask(light, port, execute), [], []
        for batch in [seen(2, seed) for seed in range(9)]:
            found.append(there.act(batch, ["", "push"]))
            expected.append(here.act(batch, ["", "push"]))
        for episodes, acted in ((there, found), (here, expected)):
            episodes.reset()
            acted.append(episodes.act(seen(2), ["", "push"]))
        check_action(there.robot, (2,))
        there.policy.close()
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=0.03)  # of 300: 1e-4
    assert np.abs(found[-1] - found[0]).max() > 0.3  # other noise in later episodes


def test_two_that_ask_at_once_need_a_seed_each(folder, engine):
    with serving(engine) as (port, _):
        first, same, other = (ask(folder[1], port, seed=seed) for seed in (0, 0, 1))
        found = first.act(seen(1), [""])
        with pytest.raises(ServerError, match="refuses: session '0' is in use by another connection"):
            same.act(seen(1), [""])
        assert np.abs(other.act(seen(1), [""]) - found).max() > 0.3
        for each in (first, other):
            each.policy.close()


def test_a_server_that_is_not_there_or_has_gone(folder, engine):
    with serving(engine) as (port, _):
        episodes = ask(folder[1], port)
        episodes.act(seen(1), [""])
    episodes.reset()
    with pytest.raises(ServerError, match=rf"ws://127.0.0.1:{port} has ceased to answer \(.*\): start it again"):
        episodes.act(seen(1), [""])
    episodes.reset()
    with pytest.raises(ServerError, match=rf"no policy server answers at ws://127.0.0.1:{port} \(.*refused.*\): start "
                                          "`python -m launch.serve` there"):
        episodes.act(seen(1), [""])
    with serving(engine) as (port, _):
        episodes.policy.address = f"ws://127.0.0.1:{port}"
        episodes.reset()
        assert episodes.act(seen(1), [""]).shape == (1, 2)  # a new episode asks the server that is there again
        episodes.policy.close()


def test_a_token(folder, engine, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with serving(engine, token="secret") as (port, _):
        with pytest.raises(ServerError, match="turned us away: a bearer token is needed"):
            ask(folder[1], port)
        episodes = ask(folder[1], port, token_file=str(tmp_path / "token"))
        assert episodes.act(seen(1), [""]).shape == (1, 2)
        episodes.policy.close()


def test_another_server_than_was_meant_is_named(folder, engine, tmp_path):
    metadata = OpenPi(engine.robot, (32, 32)).metadata()
    for first, sentence in (
            (b"no msgpack", "cannot be asked: the message is not msgpack"),
            (wire.pack({"server": "another"}), "cannot be asked: its first message has no 'protocol'"),
            (wire.pack(metadata | {"version": 2}), "its messages are of version 2, and ours of version 1; use the same"),
            (wire.pack({k: v for k, v in metadata.items() if k != "version"}), "messages are of version None, and ours"),
            (wire.pack(metadata | {"actions": {}}), "its metadata: actions has no 'shape'"),
            (wire.pack(metadata | {"embodiment": "droid"}), r"drives robot 'droid' with cameras \['image'\], and .*light is "
                                                            r"for 'pusht' with \['image'\]: serve that export")):
        with saying(first) as port, pytest.raises(ServerError, match=sentence):
            ask(folder[1], port)
    with serving(engine, LingBotVLA(engine.robot)) as (port, _), \
            pytest.raises(ServerError, match="it speaks the form 'lingbot_vla'; start it with --protocol=openpi"):
        ask(folder[1], port)
    (tmp_path / "config.json").write_text('{"type": "wamax", "wamax": {"version": 2}}')
    with pytest.raises(lerobot.WeightsError, match="wamax is for version 2 of lerobot_policy_wamax, and this is version 1"):
        ask(tmp_path, 1)


def test_what_the_server_cannot_use_is_named(folder, engine):
    with serving(engine) as (port, _):
        episodes = ask(folder[1], port)
        with pytest.raises(ValueError, match="lacks 'observation.images.image', which is camera 'image' of robot 'pusht'"):
            episodes.act({"observation.image": seen(1)[CAMERA]}, [""])
        with pytest.raises(ValueError, match="'observation.state' has 1 dimensions.*LeRobot lacks agent_y"):
            episodes.act(seen(1, **{"observation.state": np.zeros((1, 1))}), [""])
        with pytest.raises(ServerError, match=r"camera 'image' gives pictures of 48x48, and ws://127.0.0.1:\d+ takes 32x32:"
                                              " start it with --image_size=48x48"):
            episodes.act(seen(1, height=48), [""])
        with pytest.raises(ServerError, match="refuses: 'observation/state': agent_x is nan; a state must be finite"):
            episodes.reset()
            episodes.act(seen(1, **{"observation.state": np.full((1, 2), np.nan)}), [""])
        with pytest.raises(ValueError, match="n_action_steps = 5: a chunk has 4 actions"):
            ask(folder[1], port, execute=5)


def test_a_reply_that_is_no_chunk_is_refused(folder, engine):
    metadata = wire.pack(OpenPi(engine.robot, (32, 32), "push").metadata())
    for reply, sentence in ((wire.pack({"actions": np.zeros((4, 3), np.float32)}), r"4 actions of 2 numbers, found \(4, 3\)"),
                            (wire.pack([1]), r"4 actions of 2 numbers, found \[1\]"), (b"\xc1", "has ceased to answer .the message is not")):
        with saying(metadata, reply) as port:
            episodes = ask(folder[1], port)
            with pytest.raises(ServerError, match=sentence):
                episodes.act(seen(1), [""])
