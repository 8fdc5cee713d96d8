"""Readers of robot episodes and video clips; each yields `data_pipelines.episode.Episode`."""

import inspect
from collections.abc import Callable, Sequence

from data_pipelines.episode import Source
from data_pipelines.robots.embodiment import check_known
from data_pipelines.sources.conventions import Conventional
from data_pipelines.sources.filters import Filters

KINDS = ("rlds", "lerobot", "video_files")
ANY_SOURCE = ("successful", "described", "where", "keep", "conventions")  # options of every kind


def make_source(kind: str, name: str, *, conventions: Sequence[str] = (), **options) -> Source:
    """Opens a source of that kind. `options` are the filters successful, described, where and keep
    (sources/filters.py), and what its constructor takes; conventions: sources/conventions.py. Raises ValueError on an
    unknown kind or option, or one that is missing."""
    source = _open(kind, name, **options)
    return Conventional(name, source, tuple(conventions)) if conventions else source


def _open(kind: str, name: str, *, successful: bool = False, described: bool = False, where: dict | None = None,
          keep: str = "", **options) -> Source:
    made: Callable
    if kind == "rlds":
        from data_pipelines.sources.rlds import RldsSource as made
    elif kind == "lerobot":
        from data_pipelines.sources.lerobot import LeRobotSource as made
    elif kind == "video_files":
        from data_pipelines.sources.video_files import VideoFilesSource as made
    else:
        raise ValueError(f"dataset {name!r}: source = {kind!r} is unknown; there are {KINDS}")
    taken = inspect.signature(made).parameters
    known = [*(key for key in taken if key not in ("name", "filters")), *ANY_SOURCE]
    for key in options:
        check_known(f"dataset {name!r}, source {kind!r}: key", key, known)
    if missing := [key for key, each in taken.items() if each.default is each.empty and key not in ("name", *options)]:
        raise ValueError(f"dataset {name!r}: source {kind!r} needs {missing[0]!r}")
    return made(name, filters=Filters(successful, described, where or {}, keep), **options)
