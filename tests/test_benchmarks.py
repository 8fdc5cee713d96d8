"""A benchmark beside somebody's own implementation of the step."""

import itertools
import json
import statistics
import time

import pytest

from benchmarks import reference

THEIRS = '''
import json, pathlib

def make_step(shape, device):
    told = pathlib.Path(__file__).with_name("told.json")
    steps = []

    def step():
        steps.append(device)
        told.write_text(json.dumps([shape, steps]))

    return step
'''


def test_the_reference_is_given_the_shape_and_compared(tmp_path):
    (tmp_path / "theirs.py").write_text(THEIRS)
    theirs = reference.load_step(str(tmp_path / "theirs.py"), {"dim": 64, "layout": {"frames": 33}})
    ours, their_times = reference.alternate(2, lambda: time.sleep(0.05), theirs)
    shape, steps = json.loads((tmp_path / "told.json").read_text())
    assert shape == {"dim": 64, "layout": {"frames": 33}} and steps == ["cpu"] * (2 + reference.NOT_TIMED)
    line = reference.compare(ours, their_times)
    assert line["times_as_fast"] == pytest.approx(line["reference_median_seconds"] / statistics.median(ours))


def test_steps_are_taken_in_turn_and_the_first_ones_not_timed():
    taken = []
    ours, theirs = reference.alternate(3, lambda: taken.append("ours"), lambda: taken.append("theirs"))
    assert len(ours) == len(theirs) == 3
    assert taken == list(itertools.islice(itertools.cycle(["ours", "theirs"]), 2 * (3 + reference.NOT_TIMED)))


def test_a_file_without_a_step_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py defines no make_step"):
        reference.load_step(str(tmp_path / "empty.py"), {})
    with pytest.raises(ValueError, match="nowhere.py: no such file"):
        reference.load_step(str(tmp_path / "nowhere.py"), {})
