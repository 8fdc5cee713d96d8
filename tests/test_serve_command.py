"""What `python -m launch.serve` refuses before it loads or listens; SIGTERM and all else: tests/test_serve_trouble.py."""

import types

import numpy as np
import pytest

from data_pipelines.robots.embodiments import get_embodiment
from launch import serve
from launch.serving.protocols import BadRequest, Observation
from launch.serving.sessions import Sessions
from world_model.batch import Layout


def test_an_empty_token_file_would_let_everybody_in(tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ValueError, match="--token_file=.*token is empty"):
        serve.serve(types.SimpleNamespace(token_file=tmp_path / "token"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        serve.serve(types.SimpleNamespace(token_file=tmp_path / "nowhere"))


def test_a_certificate_that_cannot_be_read(tmp_path):
    assert serve.tls_context(None, None) is None
    (tmp_path / "cert.pem").write_text("no certificate")
    for path in ("cert.pem", "nowhere.pem"):
        with pytest.raises(OSError):
            serve.tls_context(str(tmp_path / path), None)


@pytest.mark.parametrize("texts", [[], ["4", "x"], ["0"], ["-1"], ["1.5"]])
def test_sizes_are_whole_numbers(texts):
    assert serve.whole_numbers("batch_sizes", ["1", "4"]) == (1, 4)
    with pytest.raises(ValueError, match="--batch_sizes: expected whole numbers from 1 on, found"):
        serve.whole_numbers("batch_sizes", texts)


@pytest.mark.parametrize("embodiment, default", [("pusht", "push the T onto the green target"), ("metaworld_20hz", None)])
def test_a_robot_of_many_tasks_needs_the_clients_prompt(embodiment, default):
    """Unless the one who starts the server gives one, an empty one too."""
    engine = types.SimpleNamespace(robot=types.SimpleNamespace(
        embodiment=get_embodiment(embodiment), layout=Layout(9, 8, 8, 1, 4, 1), horizon=4))
    robot = engine.robot.embodiment
    observation = {f"observation/{view}": np.zeros((8, 8, 3), np.uint8) for view in robot.views} | {
        "observation/state": np.zeros(len(robot.state))}
    start = lambda prompt: serve.make_protocol(
        types.SimpleNamespace(prompt=prompt, image_size=None, protocol="openpi"), engine)
    assert start(None).metadata()["optional"]["prompt"]["default"] == default
    assert start(None).parse(observation | {"prompt": ""}).prompt == start("").parse(observation).prompt == ""
    assert start("press").parse(observation).prompt == "press"
    if default is None:
        with pytest.raises(BadRequest, match="lacks 'prompt', and this server has none for its robot: send what"):
            start(None).parse(observation)
    else:
        assert start(None).parse(observation).prompt == default


def test_a_flood_is_refused_where_every_session_has_a_request_on_its_way():
    """Nobody who is being answered makes room; one that is idle does."""
    engine = types.SimpleNamespace(slots=2, tokenize=lambda prompt: prompt, block_frames=4)
    sessions = Sessions(engine, per_connection=8, remembers=False)
    ask = lambda name, owner: sessions.plan(Observation(name, True, "", None, {"image": [0]}, None, None), owner)[0]
    first = ask("first", "someone")
    ask("second", "someone")
    with pytest.raises(BadRequest, match="the server is full: 2 of 2 sessions have requests on their way; try again"):
        ask("third", "other")
    first.busy = False
    assert ask("third", "other").slot == first.slot and len(sessions) == 2 and sessions.evicted == 1
