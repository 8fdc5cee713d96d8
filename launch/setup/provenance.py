"""What made a result: the config as JSON and the version of this code."""

import importlib.metadata
import json
import subprocess
from pathlib import Path


def as_json(config) -> dict:
    """The config as plain JSON values."""
    return json.loads(config.to_json())


def code_version() -> str:
    """The release, and the commit where there is one."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                         capture_output=True, check=False)
    try:
        release = importlib.metadata.version("wamax")
    except importlib.metadata.PackageNotFoundError:
        release = "uninstalled"
    return " ".join([release, git.stdout.strip()]).strip()
