"""What `python -m launch.serve` refuses before it loads or listens; SIGTERM and all else: tests/test_serve_trouble.py."""

import dataclasses
import types

import numpy as np
import pytest
from absl import flags

from data_pipelines.robots.embodiments import EMBODIMENTS, get_embodiment
from launch import serve
from launch.serving.engine import Answer
from launch.serving.messages import BadRequest, Observation
from launch.serving.servable import choose_robot
from launch.serving.sessions import LIVE, Sessions
from launch.setup import flags as launch_flags
from launch.setup import provenance
from launch.setup.restore import restore
from tests import tiny_policy
from world_model.batch import Layout

ANSWER = Answer(np.zeros((1, 2)), None, None, {})


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

    def start(prompt):
        return serve.make_protocol(types.SimpleNamespace(prompt=prompt, image_size=None, protocol="openpi", hold_gap=None), engine)

    assert start(None).metadata()["optional"]["prompt"]["default"] == default
    assert start(None).parse(observation | {"prompt": ""}).prompt == start("").parse(observation).prompt == ""
    assert start("press").parse(observation).prompt == "press"
    if default is None:
        with pytest.raises(BadRequest, match="lacks 'prompt', and this server has none for its robot: send what"):
            start(None).parse(observation)
    else:
        assert start(None).parse(observation).prompt == default


@pytest.mark.parametrize("given, said", [
    ({}, ["clients must send a prompt", "'metaworld' declares no maximum speed for any action"]),
    ({"hold_gap": 0.5, "host": "0.0.0.0"}, ["must send", "declares", "clients that send single frames give no gap", "no --tok"]),
    ({"hold_gap": 0.5, "imagines": False, "prompt": ""}, ["declares", "--hold_gap does nothing"]),
])
def test_what_is_said_at_start(given, said):
    args = types.SimpleNamespace(**{"hold_gap": None, "host": "127.0.0.1", "protocol": "openpi", "image_size": None,
                                    "prompt": None, "imagines": True} | given)
    robot = types.SimpleNamespace(embodiment=get_embodiment("metaworld"), layout=Layout(9, 8, 8, 1, 4, 1), horizon=4)
    engine = types.SimpleNamespace(robot=robot, embodiment=robot.embodiment, imagines_video=args.imagines)
    found = list(serve.warnings(args, engine, serve.make_protocol(args, engine), None))
    assert len(found) == len(said) and all(part in line for part, line in zip(said, found, strict=True))


def test_a_new_session_is_refused_where_all_others_are_live():
    """Of 72 clients on 64 sessions 64 are served; in place of every one losing its window again and again."""
    engine = types.SimpleNamespace(sessions=2, tokenize=lambda prompt: prompt, block_frames=4)
    sessions = Sessions(engine, per_connection=8, remembers=0)

    def ask(name, owner):
        return sessions.plan(Observation(name, True, "", None, {"image": [0]}, None, None), owner)[0]

    first = ask("first", "someone")
    second = ask("second", "someone")
    for session in (first, second):
        with pytest.raises(BadRequest, match="the server is full: all 2 sessions are live; try again later"):
            ask("third", "other")
        session.busy = False
    first.used -= 2 * LIVE  # nobody has used it for a while
    assert ask("third", "other").place == first.place and len(sessions) == 2 and sessions.evicted == 1
    assert ask("fourth", "someone").place == second.place  # a connection makes room for itself


@pytest.mark.parametrize("length, expected", [(4, [1, 2, 3, 4]), (8, [1, 1, 2, 2, 3, 3, 4, 4]), (2, [2, 4])])
def test_kept_frames_become_a_block_of_any_length_that_ends_at_the_newest(length, expected):
    engine = types.SimpleNamespace(sessions=1, tokenize=lambda prompt: prompt, block_frames=length, last_block=None)
    sessions = Sessions(engine, per_connection=1, remembers=4)
    for values in ([0], [1, 2, 3, 4]):
        observation = Observation("a", False, "", None, {"image": np.array(values)}, None, None)
        session, request = sessions.plan(observation, "someone")
        sessions.done(session, observation, request, ANSWER)
    assert request.views["image"].tolist() == expected


def test_a_robot_that_a_config_has_registered_is_known_to_who_serves(tmp_path, monkeypatch, caplog):
    """Without its config: checkpoints and exports bring it along. One of that name is kept, and a difference said."""
    registered = EMBODIMENTS[tiny_policy.DROID]
    tiny_policy.write(tmp_path, tiny_policy.DROID)
    monkeypatch.delitem(EMBODIMENTS, tiny_policy.DROID)
    assert choose_robot(restore(tmp_path), None, None).embodiment == registered
    changed = dataclasses.replace(registered, rate=30.0)
    monkeypatch.setitem(EMBODIMENTS, tiny_policy.DROID, changed)
    saved = provenance.as_json(tiny_policy.config(tiny_policy.DROID))
    saved["robots"][tiny_policy.DROID]["rate"] = 15.0
    assert "robots" not in provenance.from_json(saved) and EMBODIMENTS[tiny_policy.DROID] is changed
    assert "registered otherwise than it was when the run was trained: rate is 15.0 in the run, 30.0 in this process" in caplog.text
    saved["robots"][tiny_policy.DROID]["wings"] = 2
    with pytest.raises(ValueError, match="saved robot 'test_droid': wings is unknown"):
        provenance.from_json(saved)
    assert "robots" not in provenance.as_json(tiny_policy.config())


def parsed(*arguments: str) -> flags.FlagValues:
    """A command that has a --window_blocks of its own, and the sampler's flags."""
    args = flags.FlagValues()
    flags.DEFINE_integer("window_blocks", 7, "of the command", flag_values=args)
    launch_flags.define_sampling(args)
    args(["command", *arguments])
    return args


def test_every_setting_of_every_family_is_a_flag_and_those_given_are_read():
    assert launch_flags.sampling(parsed()) == {}
    with pytest.raises(ValueError, match="--guidance=nan: expected a finite number"):
        launch_flags.sampling(parsed("--guidance=nan"))
    found = launch_flags.sampling(parsed(
        "--solver=euler", "--solver_steps=4", "--guidance=2", "--action_guidance=1.5", "--branch_devices=2",
        "--skipping=adaptive", "--skip_thresholds=0.95:3,0.93:1", "--action_steps=3", "--window_blocks=9"))
    assert found == {"solver": "euler", "solver_steps": 4, "guidance": 2.0, "action_guidance": 1.5, "branch_devices": 2,
                     "skipping": "adaptive", "skip_thresholds": ((0.95, 3), (0.93, 1)), "action_steps": 3}
    assert launch_flags.sampling(parsed("--skip_thresholds=((0.9, 2),)")) == {"skip_thresholds": ((0.9, 2),)}
    with pytest.raises(flags.IllegalFlagValueError, match="solver_steps"):
        parsed("--solver_steps=many")
    for text in ("often", "0.9:"):
        with pytest.raises(ValueError, match=f"--skip_thresholds={text} cannot be read: give what Python reads, or pairs"):
            launch_flags.sampling(parsed(f"--skip_thresholds={text}"))


def test_settings_of_a_family_that_nobody_knows(monkeypatch):
    """Families may differ in the type of a setting of one name: then what Python reads is taken."""
    families = [types.SimpleNamespace(name=name, config=config) for name, config in (
        ("first", {"evaluate": {"depth": 1, "windows": 3}}), ("second", {"evaluate": {"depth": 0.5, "quiet": False}}),
        ("third", {}))]
    monkeypatch.setattr("world_model.families.all_families", lambda: families)
    assert launch_flags.sampler_settings() == {"depth": (object, ["first", "second"]), "quiet": (bool, ["second"])}
    assert launch_flags.sampling(parsed("--depth=0.25", "--quiet")) == {"depth": 0.25, "quiet": True}
