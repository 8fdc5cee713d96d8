"""Readers of robot episodes and video clips; each yields `data_pipelines.episode.Episode`."""

from collections.abc import Sequence

from data_pipelines.episode import Source
from data_pipelines.sources.conventions import Conventional
from data_pipelines.sources.filters import Filters

KINDS = ("rlds", "lerobot", "video_files")


def make_source(kind: str, name: str, *, conventions: Sequence[str] = (), **options) -> Source:
    """Opens a source of that kind. `options` are the filters successful, described, where and keep
    (sources/filters.py), and what its constructor takes; conventions: sources/conventions.py. Raises ValueError on an
    unknown kind."""
    source = _open(kind, name, **options)
    return Conventional(name, source, tuple(conventions)) if conventions else source


def _open(kind: str, name: str, *, successful: bool = False, described: bool = False, where: dict | None = None,
          keep: str = "", **options) -> Source:
    options["filters"] = Filters(successful, described, where or {}, keep)
    if kind == "rlds":
        from data_pipelines.sources.rlds import RldsSource

        return RldsSource(name, **options)
    if kind == "lerobot":
        from data_pipelines.sources.lerobot import LeRobotSource

        return LeRobotSource(name, **options)
    if kind == "video_files":
        from data_pipelines.sources.video_files import VideoFilesSource

        return VideoFilesSource(name, **options)
    raise ValueError(f"dataset {name!r}: source = {kind!r} is unknown; there are {KINDS}")
