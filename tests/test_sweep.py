"""launch/sweep.py: variants, their check before anything runs, and the comparison over seeds."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs import quickstart
from data_pipelines.storage import files
from launch import sweep
from launch.reporting import comparison
from launch.setup.experiment import Experiment
from launch.supervision import child, sweep_runs
from world_model.training import checkpoint

DEBUG = quickstart.get_config("debug")


def test_a_grid_and_a_list_give_named_variants():
    grid = sweep.variants({"get_sweep": lambda: {"noise.schedule": ["coupled", "decoupled"], "seed": [1]}})
    assert grid == {"schedule_coupled-seed_1": {"noise.schedule": "coupled", "seed": 1},
                    "schedule_decoupled-seed_1": {"noise.schedule": "decoupled", "seed": 1}}
    listed = sweep.variants({"get_sweep": lambda: [{"name": "base"}, {"name": "wide", "model.dim": 64}]})
    assert listed == {"base": {}, "wide": {"model.dim": 64}}


@pytest.mark.parametrize("module, sentence", [
    ({}, "defines no get_sweep"),
    ({"get_sweep": lambda: [{"name": "a"}, {"name": "a"}]}, "variant 'a'"),
    ({"get_sweep": lambda: [{"name": "../a"}]}, r"variant '\.\./a': names are of letters"),
])
def test_sweeps_that_make_no_sense(module, sentence):
    with pytest.raises(sweep.SweepError, match=sentence):
        sweep.variants(module)


def test_a_wrong_key_is_answered_with_the_nearest():
    with pytest.raises(sweep.SweepError, match="noise.shedule is no key of the config; the nearest is noise.schedule"):
        sweep.apply(DEBUG, {"noise.shedule": "coupled"})
    with pytest.raises(sweep.SweepError, match="model.dim = 'wide'"):
        sweep.apply(DEBUG, {"model.dim": "wide"})


def test_every_variant_is_traced_before_the_first_starts():
    facts = sweep.check(sweep.apply(DEBUG, {"model.num_layers": 3, "train.global_batch_size": 8}))
    assert facts["parameters"] > 0 and facts["flops"] > 0
    with pytest.raises(ValueError, match="model.num_heads = 3"):
        sweep.check(sweep.apply(DEBUG, {"model.num_heads": 3, "train.global_batch_size": 8}))
    with pytest.raises(ValueError, match="noise.schedule = 'loud'"):
        sweep.check(sweep.apply(DEBUG, {"noise.schedule": "loud", "train.global_batch_size": 8}))


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("configs/ablations/[a-z]*.py")),
                         ids=lambda file: file.stem)
def test_the_ablations_that_we_ship_make_runs_that_differ(file):
    module = runpy.run_path(str(file))
    starts = sweep.bases(module, str(file), module["get_config"]())
    configs = [sweep.apply(starts[name][1], overrides) for name, overrides in sweep.variants(module).items()]
    assert all(sweep.measurements(module).values())
    assert all(Experiment(config).model.spec for config in configs)  # which checks sizes and names
    assert len({config.to_json() for config in configs}) == len(configs) > 1


def whole(path, video, action):
    path.mkdir(parents=True, exist_ok=True)
    evaluation = {"video": {"video_psnr_db": video, "copy_last_psnr_db": 20.0}, "action": {"error_ratio": action}}
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    (path / "config.json").write_text(json.dumps({"train": {"global_batch_size": 8}}))
    (path / "metrics.jsonl").write_text('{"step": 10, "samples_per_second": 8.0}\n'
                                        '{"step": 30, "samples_per_second": 16.0}\n')


def test_results_are_means_with_intervals_and_differences_from_the_base(tmp_path):
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        whole(tmp_path / f"base/seed_{seed}", 20 + gain, 0.5)
        whole(tmp_path / f"other/seed_{seed}", 24 + gain, 0.4)
    facts = {"parameters": 1, "steps": 30, "flops": 2e15}
    checked = {"base": facts, "other": facts | {"flops": 3e15}}
    finished = {name: [tmp_path / f"{name}/seed_{seed}" for seed in range(3)] for name in checked}
    rows = comparison.results(checked, {name: [comparison.OPEN_LOOP] for name in checked}, finished, {})
    base, other = rows
    assert (base["seeds"], base["seconds"], base["equal"]) == (3, 3 * (10 * 8 / 8 + 20 * 8 / 16), ["steps"])
    video = base["video gain, dB"]
    assert video["mean"] == pytest.approx(2.0) and video["half"] == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert other["difference"]["video gain, dB"]["mean"] == pytest.approx(4.0)
    assert other["difference"]["video gain, dB"]["half"] == pytest.approx(2.776 * (2 / 3) ** 0.5, rel=1e-3)
    text = comparison.table(rows)
    assert "equal steps;" in text and "+4.000 ± 2.267" in text
    assert comparison.plot(rows).startswith(b"<?xml")


def runs_of(module, seeds, out, **changes):
    config = sweep.apply(DEBUG, {"train.steps": 30, "train.global_batch_size": 8, **changes})
    return sweep.runs_of(sweep.bases(module, "f.py", config), sweep.variants(module), sweep.measurements(module), seeds,
                         out)


def measured(run, *names):
    """The run as it is after those of its measurements."""
    (run.workdir / "config.json").write_text(json.dumps(run.config))
    files.write_json(str(run.workdir / "measured.json"), {m.file: run.hash_of(m) for m in run.measured
                                                          if not names or m.file.split("/")[0] in names})


NOISE = {"get_sweep": lambda: {"noise.schedule": ["coupled", "high_noise", "decoupled"]}}


def test_what_is_whole_is_not_run_again(tmp_path, capsys):
    whole(tmp_path / "schedule_coupled/seed_0", 21.0, 0.5)
    runs = runs_of(NOISE, [0], tmp_path)
    measured(runs[0])
    facts = {run.name: {"parameters": 1, "steps": 30, "flops": 1e15} for run in runs}
    rows = sweep_runs.run(runs, facts, dry_run=True)
    printed = capsys.readouterr().out
    assert "schedule_coupled, seed 0: whole" in printed and "schedule_decoupled, seed 0: to run" in printed
    assert "--config.noise.schedule=decoupled --config.seed=0" in printed and printed.count("launch.train") == 2
    assert [row["seeds"] for row in rows] == [1, 0, 0]


@pytest.mark.parametrize("changes, sentence", [
    ({"train.steps": 60}, "seed_0 holds a run with train.steps = 30, and this sweep's is 60: give another --out"),
    ({"optimizer.learning_rate": 1.0}, "optimizer.learning_rate = 0.003, and this sweep's is 1.0"),
    ({"train.log_every": 7, "mesh.fsdp": 1, "checkpoint.every": 9}, None)])
def test_old_numbers_do_not_stand_under_new_settings(tmp_path, changes, sentence):
    whole(tmp_path / "schedule_coupled/seed_0", 21.0, 0.5)
    measured(runs_of(NOISE, [0], tmp_path)[0])
    if sentence:
        with pytest.raises(sweep.SweepError, match=sentence):
            runs_of(NOISE, [0], tmp_path, **changes)
    else:
        assert not runs_of(NOISE, [0], tmp_path, **changes)[0].missing()


def test_what_was_measured_otherwise_is_measured_again(tmp_path):
    module = {"get_sweep": lambda: [{"name": "base"}], "get_rollouts": lambda: {"fast": ["--solver_steps=1"]}}
    whole(tmp_path / "base/seed_0", 21.0, 0.5)
    solved(tmp_path / "base/seed_0", "fast", 0.5)
    commit(tmp_path / "base/seed_0", 30)
    measured(runs_of(module, [0], tmp_path)[0])
    assert not runs_of(module, [0], tmp_path)[0].missing()
    module["get_rollouts"] = lambda: {"fast": ["--solver_steps=9"]}
    (run,) = runs_of(module, [0], tmp_path)
    (command, _), = run.missing()
    assert not sweep_runs.trainings([run]) and command[0] == "launch.rollout" and "--solver_steps=9" in command


def test_a_run_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """One diverges in training; the other trains and is measured."""
    def run(commands):
        for command in commands:
            if command[0] == "launch.train" and "schedule=high" in " ".join(command):
                return ["error: loss is nan at step 6"]
            if command[0] == "launch.evaluate":
                whole(Path(command[1].partition("=")[2]), 21.0, 0.5)
        return [None] * len(commands)

    monkeypatch.setattr(child, "run", run)
    runs = runs_of(NOISE, [0], tmp_path)
    facts = {run.name: {"parameters": 1, "steps": 30, "flops": 1e15} for run in runs}
    rows = sweep_runs.run(runs, facts, dry_run=False)
    assert [(row["seeds"], row["failed"]) for row in rows] == [
        (1, []), (0, ["seed 0: error: loss is nan at step 6"]) if "high" in rows[1]["variant"] else (1, []),
        (0, ["seed 0: error: loss is nan at step 6"]) if "high" in rows[2]["variant"] else (1, [])]
    failed = next(row["variant"] for row in rows if row["failed"])
    assert f"| {failed} | 0, 1 failed | - |" in comparison.table(rows)
    assert f"Failed: {failed}, seed 0: error: loss is nan at step 6" in comparison.table(rows)
    assert comparison.plot(rows).startswith(b"<?xml")


def test_who_stops_a_sweep_stops_its_training(tmp_path):
    """The child gets SIGTERM and ends in its own time; the parent waits for it and exits with 143."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.3); pathlib.Path('saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('ready').touch()\ntime.sleep(60)\n")
    code = "from launch.supervision import child; child.run([['slow']])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path,
                              env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}:{tmp_path}"})
    while not (tmp_path / "ready").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.terminate()
    assert parent.wait(30) == 143 and (tmp_path / "saved").exists()


def test_the_last_words_of_a_child_that_fails_are_kept(capfd):
    good, bad = child.run([["json.tool", "--help"], ["json.tool", "none"]])
    assert good is None and bad.endswith("No such file or directory: 'none'")
    assert "'none'" in capfd.readouterr().err


def test_children_count_the_cores_that_they_are_given():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from launch.supervision import child; print(child.cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def commit(workdir, step):
    for part in ("", "state", "data", "meta"):
        folder = workdir / "checkpoints" / str(step) / part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.COMMIT_MARK).write_text("{}")


ROLLED_OUT = {"get_sweep": lambda: [{"name": "base"}, {"name": "wide", "model.dim": 64, "rollouts": ["fast"]}],
              "get_rollouts": lambda: {"slow": ["--solver_steps=4"], "fast": ["--solver_steps=1", "--baselines="]}}


def solved(workdir, name, share):
    (workdir / f"closed_loop_{name}").mkdir(parents=True)
    result = {"policies": {"model": {"success_rate": share, "each": []}}}
    (workdir / f"closed_loop_{name}/closed_loop.json").write_text(json.dumps(result))


def test_rollouts_are_measured_instead_each_of_the_variants_that_ask_for_it(tmp_path, capsys):
    """Seed 0 is whole but for one rollout of the base, which is trained already."""
    assert sweep.variants(ROLLED_OUT) == {"base": {}, "wide": {"model.dim": 64}}
    for name in ("base", "wide"):
        whole(tmp_path / f"{name}/seed_0", 21.0, 0.5)
        solved(tmp_path / f"{name}/seed_0", "fast", 0.5)
    commit(tmp_path / "base/seed_0", 30)
    checked = {name: {"parameters": 1, "steps": 30, "flops": 1e15} for name in ("base", "wide")}
    for run in runs_of(ROLLED_OUT, [0], tmp_path):
        measured(run, "closed_loop_fast")
    sweep_runs.run(runs_of(ROLLED_OUT, [0, 1], tmp_path), checked, dry_run=True)
    printed = capsys.readouterr().out.splitlines()
    runs = [line.split(",")[0] + line.partition(":")[2].partition(",")[0] for line in printed if ", seed" in line]
    assert runs == ["base to run", "wide whole", "base to run", "wide to run"]
    started = [line.split()[2] for line in printed if line.startswith("  ")]
    assert started == ["launch.rollout", *["launch.train", "launch.rollout", "launch.rollout"],
                       *["launch.train", "launch.rollout"]]
    slow = next(line for line in printed if line.startswith("  "))
    assert f"--out={tmp_path}/base/seed_0/closed_loop_slow --solver_steps=4" in slow


def test_seeds_at_once_are_one_training_each_measured_apart(tmp_path, monkeypatch):
    """Of four seeds 0 is whole and 3 stands elsewhere; in the program of 1 and 2 the latter diverges."""
    module = {"get_sweep": lambda: [{"name": "base"}]}
    whole(tmp_path / "base/seed_0", 21.0, 0.5)
    runs, started = runs_of(module, [0, 1, 2, 3], tmp_path), []
    measured(runs[0])
    commit(tmp_path / "base/seed_3", 10)

    def run(commands):
        started.append([" ".join(command) for command in commands])
        for command in commands:
            if command[-1] == "--seeds=1,2":
                commit(tmp_path / "base/seed_1", 30)
                return ["error: loss is nan"]
            if command[0] == "launch.evaluate":
                whole(Path(command[1].partition("=")[2]), 21.0, 0.5)
        return [None] * len(commands)

    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(child, "cores", lambda: 2)
    (row,) = sweep_runs.run(runs, {"base": {"parameters": 1, "steps": 30, "flops": 1e15}}, False, at_once=4)
    assert row["seeds"] == 3 and row["failed"] == ["seed 2: error: loss is nan"]
    assert started[:2] == [[f"launch.train --config=f.py --workdir={tmp_path}/base --seeds=1,2"],
                           [f"launch.train --config=f.py --config.seed=3 --workdir={tmp_path}/base/seed_3"]]
    assert [[command.split()[0] for command in some] for some in started[2:]] == [["launch.evaluate"] * 2]
    assert sweep_runs.group_seeds(runs, 3) == [runs[:3], runs[3:]]


def test_a_variant_may_be_another_arm_of_the_file(tmp_path):
    module = {"get_sweep": lambda: [{"name": "base"}, {"name": "va", "arm": "lingbot_va_debug"}],
              "get_config": quickstart.get_config}
    runs = runs_of(module, [0], tmp_path)
    assert [run.config["model"]["family"] for run in runs] == ["dreamzero", "lingbot_va"]
    commands = [command for run in runs for command, _ in sweep_runs.trainings([run])]
    assert [command[1] for command in commands] == ["--config=f.py", "--config=f.py:lingbot_va_debug"]


def test_solved_shares_are_compared_where_both_were_rolled_out(tmp_path):
    for seed, share in enumerate((0.4, 0.6)):
        for name, rollouts in (("base", {"slow": share, "fast": 0.2}), ("wide", {"fast": share})):
            whole(tmp_path / f"{name}/seed_{seed}", 21.0, 0.5)
            for rollout, value in rollouts.items():
                solved(tmp_path / f"{name}/seed_{seed}", rollout, value)
    checked = {name: {"parameters": 1, "steps": 30, "flops": 1e15} for name in ("base", "wide")}
    finished = {name: [tmp_path / f"{name}/seed_{seed}" for seed in (0, 1)] for name in checked}
    base, wide = rows = comparison.results(checked, sweep.measurements(ROLLED_OUT), finished, {})
    assert base["solved, slow"]["mean"] == pytest.approx(0.5) and wide["solved, slow"] is None
    assert wide["difference"]["solved, fast"]["mean"] == pytest.approx(0.3) and "video gain, dB" not in wide
    assert "| wide | 2 | - | - | 0.500 ± " in comparison.table(rows)
    assert comparison.plot(rows).startswith(b"<?xml")


def test_a_rollout_that_is_not_defined_is_named():
    module = ROLLED_OUT | {"get_sweep": lambda: [{"name": "base", "rollouts": ["fats"]}]}
    with pytest.raises(sweep.SweepError, match="variant 'base': .* no 'fats', only slow, fast"):
        sweep.measurements(module)


def test_pods_get_a_job_for_each_run():
    """As a command: what it was given beside the file holds for all, and nothing is started where one job cannot be."""
    command = [sys.executable, "-m", "launch.sweep", "--config=configs/ablations/size.py:debug", "--seeds=0,1",
               "--config.train.global_batch_size=8", "--submit", "--dry-run", "--topology=v5p:2x2x1", "--bucket=b", "--image=i"]
    done = subprocess.run([*command, "--out=/runs/size"], capture_output=True, text=True, check=True)
    jobs = [yaml.safe_load(text) for text in done.stdout.split("# kubectl apply -f -\n")[1:]]
    assert [job["metadata"]["name"] for job in jobs] == [
        f"wamax-{name}-{seed}" for seed in (0, 1) for name in ("base", "half", "shallow")]
    started = jobs[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert started[4:] == ["launch.train", "--config=configs/ablations/size.py:debug", "--config.train.global_batch_size=8",
                           "--config.model.num_layers=2", "--config.seed=1", "--workdir=/runs/size/shallow/seed_1"]
    done = subprocess.run([*command, "--out=runs/size"], capture_output=True, text=True)
    assert done.returncode == 1 and "is no folder below /runs" in done.stderr and not done.stdout
