"""Readers of robot episodes and video clips; each yields `data_pipelines.episode.Episode`."""

from data_pipelines.episode import Source

KINDS = ("rlds", "lerobot", "video_files")


def make_source(kind: str, name: str, **options) -> Source:
    """The source of that kind; `options` as its constructor takes them. Raises ValueError on an unknown kind."""
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
