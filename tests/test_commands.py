"""What all commands share (launch/setup/flags.py)."""

import subprocess
import sys

import pytest

from launch.setup import flags


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


def test_commands_without_a_sampler_import_no_family():
    code = "import sys, launch.setup.flags; sys.exit('world_model' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
