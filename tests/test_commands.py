"""What all commands share (launch/setup/flags.py)."""

import subprocess
import sys

import pytest

from configs import base
from launch.setup import flags
from launch.setup.experiment import SHIFTS, Experiment
from world_model import families


class Unwell(RuntimeError):
    """An error of one command's own."""


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError("no"), ModuleNotFoundError("no"), Unwell("no")])
def test_an_error_that_people_can_put_right_ends_a_command_with_its_sentence(monkeypatch, error):
    def main(_):
        raise error

    monkeypatch.setattr(flags.app, "run", lambda main, flags_parser: main(["/there/launch/export.py"]))
    with pytest.raises(SystemExit, match="^export: no$"):
        flags.run(main, Unwell)


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
