"""The loader: one order whatever workers, hosts and interruptions; unreadable recordings named and
limited."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import once
from data_pipelines.loader import Loader
from data_pipelines.samples import SampleMaker
from tests.fake_source import BATCH, LAYOUT, FakeSource, clips, robots, tokenize
from world_model.batch import Layout, batch_spec, check_batch

MIX = dict(layout=LAYOUT, tokenize=tokenize, fields=BATCH, seed=3, global_batch_size=4)


def make_loader(datasets=None, **changes) -> Loader:
    return Loader([robots(weight=3), clips()] if datasets is None else datasets, **{**MIX, **changes})


def take(loader: Loader, steps: int) -> list[dict]:
    with loader:
        return [next(loader) for _ in range(steps)]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_keep_the_contract_and_number_their_rows():
    loader = make_loader()
    for step, batch in enumerate(take(loader, 3)):
        check_batch(batch, BATCH, 4)
        np.testing.assert_array_equal(batch["sample_index"], step * 4 + np.arange(4))
        clip = batch["dataset_id"] == 1
        assert clip.sum() == 1
        assert not batch["action_mask"][clip].any() and not batch["actions"][clip].any()
        assert (batch["embodiment_id"] == np.where(clip, 0, 7)).all()
        # every number in a fake episode says where it came from
        np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 0], batch["start"])
        np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 1], batch["episode_index"])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_do_not_change_batches(workers):
    datasets = [robots(weight=3, lengths=(40, 60, 50, 30), unreadable=(2,)), clips()]
    expected = take(make_loader(datasets, max_bad_fraction=1.0, prefetch=0), 5)
    loader = make_loader(datasets, max_bad_fraction=1.0, workers=workers)
    batches = take(loader, 5)
    assert_same(batches, expected)
    assert all(type(value) is np.ndarray for batch in batches for value in batch.values())
    assert loader.state()["bad"]["fake/2"]["count"] > 0  # counted in the worker, told here


@pytest.mark.parametrize("batch", [1, 2])
def test_the_stream_does_not_depend_on_the_batch_size(batch):
    whole = np.concatenate([each["start"] for each in take(make_loader(), 2)])
    parts = take(make_loader(global_batch_size=batch), 8 // batch)
    np.testing.assert_array_equal(np.concatenate([each["start"] for each in parts]), whole)


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 7), (3, [3, 3, 1]), (16, [7])])
def test_each_window_comes_once_whatever_the_batch_size(batch_size, sizes):
    makers = [SampleMaker(dataset, i, LAYOUT, tokenize, fields=BATCH)
              for i, dataset in enumerate([robots(weight=1000), clips()])]  # the second is hardly ever drawn
    every = once.each_once(makers, 3, 10**6)
    assert sorted((draw.dataset, draw.window) for draw in every) == [
        (i, window) for i in (0, 1) for window in range(len(makers[i].windows))]
    draws = once.each_once(makers, 3, 7)
    assert draws == every[:7]
    found = list(once.batches(makers, draws, batch_size, 0.0))
    assert [len(batch["start"]) for batch in found] == sizes
    assert np.concatenate([batch["sample_index"] for batch in found]).tolist() == [draw.position for draw in draws]


def test_an_unreadable_window_is_left_out_of_an_evaluation():
    dataset = robots(lengths=(40, 60, 50, 30), unreadable=(2,))
    maker = SampleMaker(dataset, 0, LAYOUT, tokenize, fields=BATCH)
    draws = once.each_once([maker], 3, 10**6)
    bad = sum(maker.windows[draw.window][0] == 2 for draw in draws)
    found = np.concatenate([batch["episode_index"] for batch in once.batches([maker], draws, 8, 1.0)])
    assert bad and len(found) == len(draws) - bad and 2 not in found
    with pytest.raises(ValueError, match="are unreadable, more than data.max_bad_fraction = 0.0"):
        list(once.batches([maker], draws, 8, 0.0))


KILLED = """
import multiprocessing, os, signal
from tests.test_loader import make_loader

if __name__ == "__main__":
    loader = make_loader(workers=1)
    next(loader)
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)  # as when a whole process group is told to stop
    for _ in range(8):
        next(loader)
    print("still reading", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_outlive_sigterm_but_not_a_killed_parent(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = os.path.dirname(os.path.dirname(__file__))
    # returns when nobody holds its standard output any more, the worker included
    done = subprocess.run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL and "still reading" in done.stdout, done.stderr


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_window_once_per_epoch_over_all_hosts(hosts):
    dataset = robots(lengths=(40, 50, 37, 10))  # 8 + 18 + 5 + 1 windows
    loaders = [make_loader([dataset], process_index=h, process_count=hosts) for h in range(hosts)]
    rows = [row for loader in loaders for batch in take(loader, 8)
            for row in zip(batch["episode_index"].tolist(), batch["start"].tolist())]
    everything = {(e, s) for e, n in enumerate((8, 18, 5, 1)) for s in range(n)}
    assert len(rows) == 32 and set(rows) == everything


def test_hosts_share_the_global_batch_in_order():
    whole = take(make_loader(), 2)
    shares = [take(make_loader(process_index=h, process_count=2), 2) for h in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares)]
    assert_same(joined, whole)


def test_resume_is_the_same_as_going_on():
    loader = make_loader()
    everything = take(loader, 6)
    first = make_loader()
    take(first, 2)
    saved = json.loads(json.dumps(first.state()))
    assert saved["step"] == 2 and saved["positions"] == {"fake": 6, "clips": 2}
    resumed = make_loader(start_step=saved["step"])
    resumed.check_resume(saved)
    assert_same(take(resumed, 4), everything[2:])
    assert resumed.state() == loader.state()


def test_prefetched_batches_do_not_count_as_seen():
    with make_loader(prefetch=8) as loader:
        next(loader)
        assert loader.state()["step"] == 1


def test_a_closed_loader_says_so():
    loader = make_loader()
    take(loader, 1)
    loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        next(loader)


@pytest.mark.parametrize("changes, named", [
    (dict(seed=4), r"data\.seed is 3 in the checkpoint, 4 in this run"),
    (dict(start_step=1), r"data\.step is 0 in the checkpoint, 1 in this run"),
    (dict(global_batch_size=8), r"data\.global_batch_size"),
    (dict(datasets=[robots(weight=2), clips()]), r"data\.mixture\.fake\.weight is 3 in the checkpoint, 2 in this run"),
    (dict(datasets=[robots(weight=3)]), r"data\.mixture\.clips is only in the checkpoint"),
    (dict(datasets=[robots(weight=3, lengths=(41, 60, 50)), clips()]), r"data\.mixture\.fake\.episodes_hash"),
    (dict(layout=dataclasses.replace(LAYOUT, frames=33)), r"data\.layout\.frames is 17 in the checkpoint, 33 in this run"),
])
def test_resume_refuses_another_stream(changes, named):
    saved = make_loader().state()
    with pytest.raises(ValueError, match=named):
        make_loader(**changes).check_resume(saved)


def test_resume_refuses_other_statistics():
    other = robots(weight=3)
    other.statistics["action"]["q99"][0] += 1
    with pytest.raises(ValueError, match=r"data\.statistics"):
        make_loader([other, clips()]).check_resume(make_loader().state())


def test_unreadable_recordings_are_replaced_counted_and_carried_over():
    dataset = robots(lengths=(40, 40, 40, 40), unreadable=(1,))
    loader = make_loader([dataset], max_bad_fraction=0.5)
    batches = take(loader, 8)  # one epoch of 32 windows, 8 of them in the torn file
    assert all(1 not in b["episode_index"] for b in batches)
    np.testing.assert_array_equal(np.concatenate([b["sample_index"] for b in batches]), np.arange(32))
    entry = loader.state()["bad"]["fake/1"]
    assert entry["count"] >= 8 and "torn file" in entry["reason"]
    resumed = make_loader([dataset], max_bad_fraction=0.5, start_step=8)
    resumed.check_resume(loader.state())
    assert resumed.state()["bad"] == loader.state()["bad"]


def test_too_many_unreadable_recordings_stop_the_run_and_name_them():
    dataset = robots(lengths=(40, 40, 40, 40), unreadable=(1, 2))
    named = r"max_bad_fraction = 0.001:\n(.*\n)?.*fake/[12], met \d+ times: .*torn file"
    with pytest.raises(ValueError, match=named):
        take(make_loader([dataset]), 8)


def test_a_dataset_without_one_readable_recording_is_fatal_at_once():
    dataset = robots(lengths=(40, 40))
    dataset.source.unreadable = (0, 1)
    with pytest.raises(ValueError, match=r"dataset 'fake': 32 windows in a row are unreadable"):
        take(make_loader([dataset], max_bad_fraction=1.0), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_long_prompt_is_an_error_not_bad_data(workers):
    dataset = robots(embodiment=dataclasses.replace(robots().embodiment, prompt="please {instruction}"))
    with pytest.raises(ValueError, match=r"fake episode \d: prompt 'please task \d'... has 13 tokens"):
        take(make_loader([dataset], workers=workers), 1)


@pytest.mark.parametrize("changes, named", [
    (dict(datasets=[]), "mixture is empty"),
    (dict(datasets=[robots(), robots()]), "in the mixture twice"),
    (dict(datasets=[robots(weight=0.0)]), "'fake': weight = 0.0"),
    (dict(datasets=[robots(), clips(weight=-1.0)]), "'clips': weight = -1.0"),
    (dict(datasets=[robots(), clips(weight=float("nan"))]), "'clips': weight = nan"),
    (dict(global_batch_size=5, process_count=2), "5 does not divide among 2 hosts"),
    (dict(datasets=[dataclasses.replace(robots(), statistics=None)]), "'fake' has no statistics"),
    (dict(datasets=[dataclasses.replace(robots(), episodes=np.arange(0))]), "'fake' has no episodes"),
    (dict(datasets=[dataclasses.replace(robots(), source=FakeSource([40, 40], rate=5.0))]),
     "episode 0 is recorded at 5 Hz, but embodiment 'fake' acts at 10 Hz"),
    (dict(fields=batch_spec(LAYOUT, action_dim=4, state_dim=64, text_length=8)),
     "'grip' lies in slot 7, but model.action_dim = 4"),
    (dict(layout=dataclasses.replace(LAYOUT, actions_per_block=8)), "those of actions_per_block = 16"),
])
def test_what_cannot_be_loaded_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        make_loader(**changes)


@pytest.mark.parametrize("changes, named", [
    (dict(frames=18), r"needs 4k \+ 1 raw frames; the nearest is 17"),
    (dict(frames=21), r"1 \+ 5 latent frames, which do not divide into blocks"),
    (dict(temporal_stride=6), r"needs 6k \+ 1 raw frames; the nearest is 13"),
    (dict(temporal_stride=16), r"1 \+ 1 latent frames, which do not divide into blocks"),
    (dict(temporal_stride=0), r"layout\.temporal_stride = 0: expected at least 1 raw frame"),
])
def test_windows_divide_into_blocks(changes, named):
    with pytest.raises(ValueError, match=named):
        Layout(**{**dataclasses.asdict(LAYOUT), **changes})


def test_actions_per_frame_must_be_whole():
    with pytest.raises(ValueError, match="must be a multiple of the 8 raw frames"):
        make_loader([clips()], layout=dataclasses.replace(LAYOUT, actions_per_block=12))
    wide = dataclasses.replace(LAYOUT, frames=33, temporal_stride=8, actions_per_block=24)
    with pytest.raises(ValueError, match="must be a multiple of the 16 raw frames"):
        make_loader([clips()], layout=wide)


@pytest.mark.parametrize("frames, stride, blocks, block_frames", [(17, 4, 2, 8), (33, 8, 2, 16), (17, 8, 1, 16), (17, 1, 8, 2)])
def test_the_codecs_stride_makes_the_blocks(frames, stride, blocks, block_frames):
    """A latent frame after the first stands for `stride` raw ones; actions are spread over the raw frames of a block."""
    layout = dataclasses.replace(LAYOUT, frames=frames, temporal_stride=stride)
    assert (layout.num_blocks, layout.latent_frames, layout.block_frames) == (blocks, 1 + 2 * blocks, block_frames)
    assert layout.num_actions == 16 * blocks and layout.frame_stride == 16 // block_frames
    assert batch_spec(layout, action_dim=3, state_dim=2, text_length=8)["state"][0] == (2 * blocks, 2)


def test_a_layout_without_another_stride_is_written_as_before_there_was_one():
    """Checkpoints, exports and counted statistics of then compare equal: no file knows the codec's stride of 4."""
    written = {"frames": 17, "height": 6, "width": 8, "frames_per_block": 2, "actions_per_block": 16, "states_per_block": 2}
    assert LAYOUT.as_json() == written and Layout(**written) == LAYOUT
    assert repr(LAYOUT) == ("Layout(frames=17, height=6, width=8, frames_per_block=2, actions_per_block=16, "
                            "states_per_block=2)")
    saved = json.loads(json.dumps(make_loader().state()))
    assert saved["layout"] == written
    make_loader().check_resume(saved)
    other = dataclasses.replace(LAYOUT, temporal_stride=8)
    assert other.as_json() == written | {"temporal_stride": 8} and "temporal_stride=8)" in repr(other)
    with pytest.raises(ValueError, match=r"data\.layout\.temporal_stride is only in this run"):
        make_loader(layout=other).check_resume(saved)


class Deadly(FakeSource):
    """Episode 1 kills the process that reads it."""

    def __getitem__(self, index: int):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_reported_with_its_sample():
    dataset = dataclasses.replace(robots(), source=Deadly([40, 60, 50]))
    with make_loader([dataset], workers=1) as loader, \
            pytest.raises(ValueError, match=r"a loader process died.*\n  process \d+: dataset 'fake' episode 1 step \d+\n"):
        for _ in range(20):
            next(loader)
    assert not os.path.exists(loader._status._folder)
