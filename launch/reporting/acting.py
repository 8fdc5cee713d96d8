"""The report's section on a model that acted in a simulator: how often it solved its task, beside which policies."""

from pathlib import Path
from typing import NamedTuple

from launch.reporting import report_page
from world_model import kinds

FOLDER = "closed_loop"  # where launch.rollout writes by default
_INTERVAL = kinds.list_of(kinds.number())
_SCORES = kinds.fields({"episodes": kinds.whole(1), "success_rate": kinds.number(0, 1), "success_rate_ci": _INTERVAL,
                        "coverage": kinds.number(), "coverage_ci": _INTERVAL, "steps": kinds.number()},
                       ("episodes", "success_rate", "success_rate_ci", "coverage", "coverage_ci", "steps"))
RESULT = kinds.fields({"task": kinds.text, "measure": kinds.text, "step": kinds.whole(), "execute": kinds.whole(1),
                       "policies": kinds.map_of(_SCORES)}, ("task", "measure", "step", "execute", "policies"))


class Acted(NamedTuple):
    """What launch.rollout wrote of a checkpoint."""

    result: dict  # closed_loop.json
    strip: bytes | None  # PNG of the best episode, where pictures were taken

    @property
    def success_rate(self) -> float:
        """The model's share of solved episodes."""
        return self.result["policies"]["model"]["success_rate"]


def read(workdir: Path, step: int) -> Acted | None:
    """Reads WORKDIR/closed_loop; None where there is none of this step."""
    folder = workdir / FOLDER
    if not (folder / "closed_loop.json").exists():
        return None
    result = kinds.read(folder / "closed_loop.json", RESULT)
    strip = folder / "strip.png"
    return Acted(result, strip.read_bytes() if strip.exists() else None) if result["step"] == step else None


def section(acted: Acted) -> str:
    """Makes the card: a table of policies with 95% intervals, and the best episode."""
    result = acted.result
    rows = [[name, _with_interval("{:.0%}", found["success_rate"], found["success_rate_ci"]),
             _with_interval("{:.2f}", found["coverage"], found["coverage_ci"]), f"{found['steps']:.0f}"]
            for name, found in result["policies"].items()]
    episodes = result["policies"]["model"]["episodes"]
    strip = [] if acted.strip is None else [
        report_page.image(acted.strip, "png", "the best episode: seen, and imagined where it is", pixels=True, caption=(
            "The best episode from left to right: what happened above and, if the family imagines video, what was "
            "imagined when the chunk was chosen below."))]
    return report_page.section(
        "In the simulator", report_page.text(
            f"{result['task']}: {episodes} fresh episodes, the same for every policy. The model looks, predicts a "
            f"chunk, and {result['execute']} of its commands are executed before it looks again. The expert knows "
            "where everything stands; random commands hold for a chunk. Intervals are 95%: Wilson's, and a bootstrap "
            "over episodes."),
        report_page.table(["policy", "solved", f"best {result['measure']}", "steps"], rows), *strip)


def _with_interval(form: str, value: float, interval: list[float]) -> str:
    return f"{form.format(value)} [{', '.join(map(form.format, interval))}]"
