"""world_model/training/checkpoint.py and launch/checkpoint.py: whole or not at all, on any mesh, and nothing that does
not fit."""

import errno
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags

from launch import checkpoint as command
from tests import tiny_training as tiny
from world_model.parallel import sharding
from world_model.training import checkpoint, checkpoint_reader, state
from world_model.training.checkpoint_writer import TRASH, Checkpoints

EXPERIMENT = tiny.Experiment(tiny.config())
MODEL = EXPERIMENT.model
STATISTICS = {"toy": {"q01": [0.0, 1.0]}}


def make():
    return state.create(MODEL.init_params(jax.random.key(0)), EXPERIMENT.optimizer, seed=7, ema=True)


def target(devices=1, **sizes):
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:devices])
    return state.abstract_state(make, sharding.shardings(MODEL.axes(), MODEL.shapes(), mesh))


@pytest.fixture(scope="module")
def current():
    return state.init_state(make, target(8, fsdp=4, tensor=2))


FROZEN = {"codec": {"basis": np.arange(6, dtype=np.float32).reshape(2, 3), "mean": np.float32([4.0])}, "text": {}}


def meta_of(arrays, **changes):
    values = dict(family="tiny", config={"train": {"steps": 3}}, statistics=STATISTICS, statistics_hash="aa",
                  code_version="0")
    return checkpoint.make_meta(arrays, FROZEN, **values | changes)


def write(directory, arrays, *steps, keep_last=9, keep_every=0):
    with_close = Checkpoints(directory / "checkpoints", keep_last=keep_last, keep_every=keep_every)
    for step in steps:
        with_close.save(step, arrays, data={"step": step}, meta=meta_of(arrays), frozen=FROZEN)
    with_close.close()
    return directory / "checkpoints"


def test_the_same_bits_come_back_on_8_4_and_1_devices(tmp_path, current):
    there = write(tmp_path, current, 3)
    for aim in (target(8, fsdp=2, tensor=2, data=2), target(4), target(1)):
        found = checkpoint_reader.restore(there, 3, aim)
        jax.tree.map(np.testing.assert_array_equal, found, current)
        assert state.state_shardings(found) == state.state_shardings(aim)
    assert checkpoint.read_json(there, 3, "data") == {"step": 3}
    meta = checkpoint.read_json(there, 3, "meta")
    assert set(meta.pop("hashes")) == set(checkpoint.flatten(current)) and meta.pop("frozen_hashes").keys() == {
        "codec.basis", "codec.mean"}
    assert meta == meta_of(current)
    jax.tree.map(np.testing.assert_array_equal, checkpoint_reader.read_frozen(there, 3), FROZEN)


def test_one_component_and_one_array_can_be_read_alone(tmp_path, current):
    there = write(tmp_path, current, 3)
    found = checkpoint_reader.restore(there, 3, {"params": target()["params"]})
    jax.tree.map(np.testing.assert_array_equal, found, {"params": current["params"]})
    (name, array), = checkpoint_reader.read_arrays(there, 3, lambda name: name == "opt.mu.head.kernel")
    assert name == "opt.mu.head.kernel" and array.shape == (tiny.DIM, tiny.CHANNELS)


def test_the_newest_stay_and_multiples_stay_for_ever(tmp_path, current):
    small = {"step": current["step"]}
    there = write(tmp_path, small, 1, 2, 3, 4, 5, 6, 7, keep_last=2, keep_every=3)
    assert checkpoint.steps(there) == [3, 6, 7]
    assert not list((there / TRASH).iterdir())


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint.keep_last = 0"):
        Checkpoints(tmp_path, keep_last=0)


def test_a_half_written_step_is_never_taken_for_a_whole_one(tmp_path, current):
    there = write(tmp_path, {"step": current["step"]}, 1, 2, 3)
    (there / "3" / "state" / checkpoint.COMMIT_MARK).unlink()
    shutil.copytree(there / "2", there / "4.orbax-checkpoint-tmp-17")
    (there / "5").mkdir()
    assert checkpoint.steps(there) == [1, 2]
    assert checkpoint.locate(there) == 2
    with pytest.raises(checkpoint.CheckpointError, match=r"no whole checkpoint of step 3; there are \[1, 2\]"):
        checkpoint.locate(there, 3)
    write(tmp_path, {"step": current["step"]}, 3)  # the step can be written again
    assert checkpoint.steps(there) == [1, 2, 3]
    assert (there / "3.incomplete").is_dir() and not (there / "4.orbax-checkpoint-tmp-17").exists()


def test_no_checkpoint_is_said_so(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="is no directory of checkpoints"):
        checkpoint.locate(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(checkpoint.CheckpointError, match="holds no whole checkpoint"):
        checkpoint.locate(tmp_path / "checkpoints")


def test_a_damaged_array_is_an_error_with_its_path(tmp_path, current):
    there = write(tmp_path, current, 3)
    for part in (there / "3" / "state").rglob("*"):
        if part.is_file() and part.parent.name == "d":
            part.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*checkpoints/3/state: "):
        checkpoint_reader.restore(there, 3, target())


def test_a_flipped_bit_is_never_another_number(tmp_path, current):
    """It is found, or lies where nothing is read: a slow write leaves pages of a tree that later ones replace."""
    there, rng, found = write(tmp_path, current, 3), np.random.default_rng(0), 0
    parts = [(part, part.read_bytes()) for part in (there / "3/state").rglob("*") if part.parent.name == "d"]
    sizes = np.array([len(whole) for _, whole in parts])
    for _ in range(200):
        part, whole = parts[rng.choice(len(parts), p=sizes / sizes.sum())]
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        part.write_bytes(damaged)
        try:
            jax.tree.map(np.testing.assert_array_equal, checkpoint_reader.restore(there, 3, target()), current)
        except checkpoint.CheckpointError as error:
            found += "is damaged: its hash is" in str(error)
        part.write_bytes(whole)
        if found == 5:
            return
    pytest.fail(f"{found} of 200 flipped bits were found")


def test_damage_names_the_array_and_hashes_may_be_missing_or_not_asked_for(tmp_path, current):
    there = write(tmp_path, current, 3)
    checkpoint.add_hashes(there, 3, {"params.head.kernel": "0" * 16})
    for read in (lambda: checkpoint_reader.restore(there, 3, target()), lambda: list(checkpoint_reader.read_arrays(
            there, 3, lambda name: name == "params.head.kernel"))):
        with pytest.raises(checkpoint.CheckpointError, match="params.head.kernel is damaged: its hash is .* 0{16} was"):
            read()
    found = checkpoint_reader.restore(there, 3, target(), check=False)
    jax.tree.map(np.testing.assert_array_equal, found, current)
    with_close = Checkpoints(there, keep_last=9, hashes=False)
    with_close.save(4, current, data={}, meta=meta_of(current), frozen=FROZEN)
    with_close.close()
    assert "hashes" not in checkpoint.read_json(there, 4, "meta")
    jax.tree.map(np.testing.assert_array_equal, checkpoint_reader.restore(there, 4, target()), current)


@pytest.mark.parametrize("changes, sentence", [
    (dict(family="lingbot"), "another model family: 'tiny', this run's is 'lingbot'"),
    (dict(statistics_hash="bb", statistics={"toy": {"q01": [0.0, 2.0]}}),
     r"normalisation statistics: toy.q01 is \[0.0, 1.0\] in the checkpoint, \[0.0, 2.0\] in this run"),
    (dict(statistics_hash="bb"), "only their hash differs"),
    (dict(base={"format": "wan", "base_hash": "cc"}), "from other weights: it began with None, .*'base_hash': 'cc'"),
])
def test_another_family_base_or_other_statistics_are_refused(current, changes, sentence):
    with pytest.raises(checkpoint.CheckpointError, match=sentence):
        checkpoint.check_resume(meta_of(current), meta_of(current, **changes))


@pytest.mark.parametrize("change, sentence", [
    (lambda s: s["params"].pop("head.kernel"), "params.head.kernel is only in the checkpoint"),
    (lambda s: s["params"].update(bias=np.zeros(2)), "params.bias is only in this run"),
    (lambda s: s["params"].update({"head.kernel": np.zeros((2, 3), np.float32)}),
     r"params.head.kernel is \['float32', \[32, 8\]\] in the checkpoint, \['float32', \[2, 3\]\] in this run"),
    (lambda s: s.pop("ema"), "ema.blocks.fc1.bias is only in the checkpoint"),
])
def test_another_shape_or_structure_is_refused_by_name(current, change, sentence):
    other = {name: dict(part) if isinstance(part, dict) else part for name, part in current.items()}
    change(other)
    with pytest.raises(checkpoint.CheckpointError, match=f"another model shape or structure: {sentence}"):
        checkpoint.check_resume(meta_of(current), meta_of(other))
    checkpoint.check_resume(meta_of(current), meta_of(current, config={"train": {"steps": 9}}))  # may differ


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_stays(tmp_path, current):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        checkpoints = Checkpoints(disk, keep_last=9)
        with pytest.raises(checkpoint.CheckpointError, match=r"cannot write .*No space left on device") as failure:
            for step in range(1, 9):
                checkpoints.save(step, current, data={}, meta=meta_of(current), frozen=FROZEN)
            checkpoints.close()
        good = checkpoint.steps(disk)
        assert good == list(range(1, len(good) + 1))
        assert str(failure.value).endswith(f"the last good checkpoint is step {good[-1]}")
        jax.tree.map(np.testing.assert_array_equal, checkpoint_reader.restore(disk, good[-1], target()), current)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_failed_commit_surfaces_at_the_next_check(tmp_path, current, monkeypatch):
    from orbax.checkpoint._src.path import atomicity
    small = {"step": current["step"]}
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    checkpoints.save(1, small, data={}, meta=meta_of(small), frozen={})
    checkpoints._manager.wait_until_finished()

    async def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", full)
    checkpoints.save(2, small, data={}, meta=meta_of(small), frozen={})
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left on device; the last good .* is step 1"):
        for _ in range(1000):
            checkpoints.check()
            time.sleep(0.01)
    assert checkpoint.steps(tmp_path) == [1]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot open .*file/checkpoints: .*Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep_last=1)


def test_digests_do_not_depend_on_the_mesh_and_see_every_component(tmp_path, current):
    write(tmp_path / "a", current, 3)
    write(tmp_path / "b", checkpoint_reader.restore(tmp_path / "a" / "checkpoints", 3, target(4)), 3)
    digests = command.digest(tmp_path / "a")
    assert digests == command.digest(tmp_path / "b")
    assert set(digests) == {"params", "opt", "ema", "step", "key", "frozen", "data", "config", "statistics"}
    write(tmp_path / "c", current | {"step": current["step"] + 1}, 3)
    other = command.digest(tmp_path / "c")
    assert {name for name in digests if digests[name] != other[name]} == {"step"}


def test_diff_names_what_differs(tmp_path, current):
    changed = current | {"params": {**current["params"], "head.kernel": current["params"]["head.kernel"] + 0.5}}
    del changed["ema"]
    write(tmp_path / "a", current, 3)
    write(tmp_path / "b", changed, 3, 4)
    found = command.diff(tmp_path / "a", tmp_path / "b", 3, 3)
    assert len([line for line in found if line.startswith("ema.")]) == len(MODEL.shapes())
    (line,) = [line for line in found if not line.startswith("ema.")]
    assert line == "params.head.kernel: max abs difference 0.5, 256 of 256 elements"
    assert command.diff(tmp_path / "b", tmp_path / "b", 4, 4) == []
    (line,) = command.diff(tmp_path / "b", tmp_path / "b", 3, 4)
    assert line.startswith("data.step is 3 in ")


def test_the_command_lists_and_tells_by_its_exit_code(tmp_path, current, capsys):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
    small = {"step": current["step"]}
    write(tmp_path / "a", small, 3, 5)
    write(tmp_path / "b", small, 5)
    assert command.main(["", "list", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == "3\n5\n"
    assert command.main(["", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    write(tmp_path / "b", {"step": current["step"] + 1}, 6)
    assert command.main(["", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    with pytest.raises(SystemExit, match=r"error: .*is no directory of checkpoints"):
        command.main(["", "digest", str(tmp_path / "nowhere")])
