"""The policy server, spoken to by the public client as it is: what is announced, sessions, refusals, pages."""

import base64
import contextlib
import io
import json
import time

import numpy as np
import pytest
import websockets
from PIL import Image
from websockets.sync.client import connect

from launch.serving.live import SECONDS
from tests.serving import client, eventually, get, observation, serving, without_video


@pytest.fixture
def server(engine):
    with serving(engine) as (port, server):
        yield port, server


def test_the_public_client_needs_only_what_is_announced(server, engine):
    policy = client(server[0])
    announced = policy.get_server_metadata()["observation"]
    assert announced == {"observation/image": {"shape": [32, 32, 3], "dtype": "uint8"},
                         "observation/state": {"shape": [2], "dtype": "float32"}}
    assert policy.get_server_metadata()["guard"] == {
        "limits": {name: {"low": 0, "high": 512} for name in ("target_x", "target_y")}, "hold_gap": None,
        "warning": "embodiment 'pusht' declares no maximum speed for any action "
                       "(the simulated disc follows its target at a speed of its own): there the guard changes nothing"}
    reply = policy.infer({key: np.ones(each["shape"], each["dtype"]) for key, each in announced.items()})
    assert reply["actions"].shape == (4, 2) and reply["actions"].dtype == np.float32
    assert reply["interventions"].keys() == {"limit", "speed", "held"}
    assert set(reply["server_timing"]) == {"queue_ms", "infer_ms"}
    # Robot units: normalised actions would lie about 0, these about the training data's 100 to 400.
    assert reply["actions"].mean() > 50


def test_the_cache_goes_on_with_the_frames_that_were_seen(server, engine):
    """The second chunk depends on the first frame and on the frames since; a full window begins again."""
    def history(seed, later):
        return [client(server[0]), observation(seed), observation(later, frames=4)]

    def second(seed, later):
        policy, first, then = history(seed, later)
        policy.infer(first | {"session_id": "same noise", "reset": True})
        actions = policy.infer(then | {"session_id": "same noise"})["actions"]
        with contextlib.closing(policy._ws):
            return actions

    plain = second(1, 2)
    np.testing.assert_allclose(second(1, 2), plain, rtol=1e-5)
    assert np.abs(second(3, 2) - plain).max() > 0.1  # another first frame
    policy, first, then = history(1, 2)
    policy.infer(first)
    policy.infer(then)
    assert policy.infer(observation(5, frames=4))["actions"].shape == (4, 2)  # third of two blocks: a new window
    policy.infer(observation(6))


BAD = [
    ({"observation/image": np.zeros((31, 32, 3), np.uint8)}, r"'observation/image' should be uint8 \[32, 32, 3\].*found "
                                                             r"uint8 \[31, 32, 3\]"),
    ({"observation/image": np.zeros((32, 32, 3), np.float32)}, r"found float32 \[32, 32, 3\]"),
    ({"observation/image": np.zeros((32, 32), np.uint8)}, r"found uint8 \[32, 32\]"),
    ({"observation/image": np.zeros((0, 32, 32, 3), np.uint8)}, r"found uint8 \[0, 32, 32, 3\]"),
    ({"observation/image": "a picture"}, "found 'a picture'"),
    ({"observation/wrist": np.zeros((32, 32, 3), np.uint8)}, "'observation/wrist', which nobody reads"),
    ({"observation/state": np.float32([1, np.nan])}, "agent_y is nan; a state must be finite"),
    ({"observation/state": np.float32([1, 2, 3])}, r"float32 \[2\] \(agent_x, agent_y\), found float32 \[3\]"),
    ({"observation/state": np.int64([1, 2])}, r"found int64 \[2\]"),
    ({"prompt": "push " * 17}, "has 17 tokens, model.text_length = 16"),
    ({"prompt": "x" * 3000}, "at most 2000 characters, found 3000"),
    ({"prompt": 5}, "'prompt' should be a text"),
    ({"session_id": "x" * 200}, "at most 128 characters"),
    ({"reset": "yes"}, "'reset' should be true or false"),
    ({"actions_in_flight": np.zeros((5, 2), np.float32)}, r"\[at most 4, 2\] and finite, found float32 \[5, 2\]"),
    ({"step": -1}, "'step' should be a whole number"),
]


def test_each_mistake_is_a_sentence_and_the_connection_lives(server):
    policy = client(server[0])
    good = policy.infer(observation())["actions"]
    for change, sentence in BAD:
        with pytest.raises(RuntimeError, match=sentence):
            policy.infer(observation() | change)
    with pytest.raises(RuntimeError, match="the observation lacks 'observation/state'"):
        policy.infer({"observation/image": observation()["observation/image"]})
    with pytest.raises(RuntimeError, match=r"found 3 frames: send 1, .* or the 4 of a block, every 1 control steps"):
        policy.infer(observation(frames=3))
    with pytest.raises(RuntimeError, match="an observation is a map of names to values, found list"):
        policy.infer([1, 2])
    for message, sentence in ((b"\xc1", "not msgpack"), ("hello", "should be binary")):
        policy._ws.send(message)
        assert sentence in policy._ws.recv()
    assert policy.infer(observation())["actions"].shape == good.shape


def test_order_of_messages(server):
    policy = client(server[0])
    with pytest.raises(RuntimeError, match="first message should be a reset or hold one frame, found 4 frames"):
        policy.infer(observation(frames=4))
    policy.infer(observation(step=100))
    with pytest.raises(RuntimeError, match="of step 96, older than the cache, which holds step 100"):
        policy.infer(observation(frames=4, step=96))
    with pytest.raises(RuntimeError, match="of step 108, the cache goes on at step 104"):
        policy.infer(observation(frames=4, step=108))
    policy.infer(observation(frames=4, step=104))
    policy.infer(observation(frames=4, step=0, reset=True))


def test_a_session_flood_evicts_its_own_and_says_so(server):
    flood, victim = client(server[0]), client(server[0])
    before = server[1].sessions.evicted
    victim.infer(observation(session_id="victim"))
    for i in range(8):
        flood.infer(observation(session_id=f"flood {i}"))
    assert len(server[1].sessions) == 4 and server[1].sessions.evicted > before
    victim.infer(observation(frames=4, session_id="victim"))
    with pytest.raises(RuntimeError, match="session 'flood 0' is new here, or was evicted"):
        flood.infer(observation(frames=4, session_id="flood 0"))
    with pytest.raises(RuntimeError, match="session 'flood 7' is in use by another connection"):
        victim.infer(observation(session_id="flood 7"))
    flood._ws.close()
    assert eventually(lambda: victim.infer(observation(frames=4, session_id="flood 7"))["actions"].shape == (4, 2))


def test_pages(server):
    url = f"http://127.0.0.1:{server[0]}"
    assert get(f"{url}/healthz") == (200, "ready\n")
    client(server[0]).infer(observation())
    status, text = get(f"{url}/metrics")
    assert status == 200 and 'wamax_requests_total{outcome="answered"}' in text and "wamax_request_seconds_bucket" in text
    assert get(f"{url}/else")[0] == 404
    assert get(f"{url}/")[1].startswith("<!doctype html>")
    client(server[0]).infer(observation(7, session_id="shown", reset=True))
    time.sleep(SECONDS)
    live = json.loads(get(f"{url}/live.json")[1])
    latest = live["latest"]
    assert "no maximum speed for any action" in live["guard"]
    assert live["embodiment"] == "pusht" and latest["facts"]["session"] == "id:shown"
    assert latest["names"] == ["target_x", "target_y"] and np.shape(latest["actions"]) == (4, 2)
    seen = np.array(Image.open(io.BytesIO(base64.b64decode(latest["seen"].partition(",")[2]))))
    np.testing.assert_array_equal(seen, observation(7)["observation/image"])
    assert len(latest["imagined"]) == 4
    with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{server[0]}", origin="http://elsewhere.example")


def test_a_family_without_video_is_served_like_the_others(engine, server):
    """The same actions; answers, pages and counts hold nothing that was imagined."""
    messages = [observation(1, reset=True), observation(2, frames=4), observation(3, frames=4)]
    policy = client(server[0])
    expected = [policy.infer(message | {"session_id": "same noise"})["actions"] for message in messages]
    with without_video(engine), serving(engine) as (port, blind):
        engine.warm()
        url, policy = f"http://127.0.0.1:{port}", client(port)
        assert "latest" in json.loads(get(f"{url}/live.json")[1])  # before the first request, too
        for message, actions in zip(messages, expected, strict=True):
            np.testing.assert_allclose(policy.infer(message | {"session_id": "same noise"})["actions"], actions, rtol=1e-5)
        assert blind.live.latest.served.answer.gap is blind.live.latest.served.answer.latents is None
        time.sleep(SECONDS)
        live, counts = json.loads(get(f"{url}/live.json")[1]), get(f"{url}/metrics")[1]
    assert "gaps" not in live and live["latest"].keys() == {"seen", "actions", "names", "facts"}
    assert live["latest"]["facts"].keys() == {"session", "block", "in the queue", "in the model", "interventions"}
    assert "wamax_imagination_gap_count 0.0" in counts and 'wamax_requests_total{outcome="answered"} 3.0' in counts
