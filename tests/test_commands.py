"""What all commands share (launch/setup/flags.py)."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from configs import base
from launch import report
from launch.setup import flags, provenance
from launch.setup.experiment import SHIFTS, Experiment
from world_model import families

ROOT = Path(__file__).parent.parent


class Unwell(RuntimeError):
    """An error of one command's own."""


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError("no"), ModuleNotFoundError("no"), Unwell("no")])
def test_an_error_that_people_can_put_right_ends_a_command_with_its_sentence(monkeypatch, error):
    def main(_):
        raise error

    monkeypatch.setattr(flags.app, "run", lambda main, flags_parser: main(["/there/launch/export.py"]))
    with pytest.raises(SystemExit, match="^export: no$"):
        flags.run(main, Unwell)


def test_what_is_no_flag_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(flags.app, "run", lambda main, flags_parser: main(["/there/launch/evaluate.py", "500"]))
    with pytest.raises(SystemExit, match="^evaluate: '500' is no flag, and nothing else is read$"):
        flags.run(lambda argv: None)
    flags.run(lambda argv: None, arguments=True)


def test_a_report_of_one_run_has_no_other_folder(monkeypatch):
    monkeypatch.setattr(report.flags, "FLAGS", types.SimpleNamespace(out="there", compare=False, workdir="run"))
    with pytest.raises(ValueError, match="--out is of --compare"):
        report.main([])


def test_other_errors_keep_their_traces(monkeypatch):
    def main(_):
        raise Unwell

    monkeypatch.setattr(flags.app, "run", lambda main, flags_parser: main(["export.py"]))
    with pytest.raises(Unwell):
        flags.run(main)


def test_there_is_a_flag_for_every_setting_of_a_sampler_and_for_nothing_else():
    found = flags.sampler_settings()
    for name in families.BUILT_IN:
        experiment = Experiment(base.get_config(name))
        assert {flag for flag, (_, having) in found.items() if name in having} == {
            "solver_steps" if key == "steps" else key for key in experiment.sampler_settings()} - set(SHIFTS)


def test_commands_without_a_sampler_import_no_family():
    code = "import sys, launch.setup.flags; sys.exit('world_model' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given, sentence", [(["a"], "'a' is no whole number"), (["0", "-1"], "'-1' is no whole number"),
                                             (["0", "3", "0"], "0 comes twice")])
def test_seeds_that_are_none(given, sentence):
    assert flags.seeds(["0", " 3"]) == [0, 3]
    with pytest.raises(ValueError, match=f"--seeds: {sentence}"):
        flags.seeds(given)


def test_a_config_that_refuses_its_arm_says_so_without_a_trace():
    code = "from launch.setup import flags; flags.define_config(); flags.run(print)"
    for arm, steps, said in (("nope", 2, "--config: configs/quickstart.py:nope: arms are ('', 'debug'"), ("debug", 2, ""),
                             ("debug", "two", "flag --config.train.steps=two: invalid literal")):
        flags = [f"--config=configs/quickstart.py:{arm}", f"--config.train.steps={steps}"]
        found = subprocess.run([sys.executable, "-c", code, *flags], check=False, capture_output=True, text=True)
        assert found.stderr.startswith(said) and "Traceback" not in found.stderr and found.returncode == bool(said)


def test_code_has_a_version_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.code_version()


def test_the_image_is_built_without_what_git_ignores():
    """Environments, caches and runs of whoever builds it."""
    ignored, unsent = (set((ROOT / name).read_text().split()) for name in (".gitignore", ".dockerignore"))
    assert {"runs/", ".cache/", ".venv/"} <= ignored and {f"**/{each}" for each in ignored} <= unsent
