"""Draws docs/architecture.svg, the way of a batch through the packages, from the sources.

    python docs/draw_architecture.py

The tables below say which modules are on the way and who follows whom. The rest is read from the code by `ast`: a box
carries the first sentence of its module's docstring and the rooms that it imports, and an arrow is drawn only where
imports bear it out. tests/test_architecture.py holds the committed picture to what this script makes.
"""

import ast
import fnmatch
import textwrap
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
COLOURS = {"data_pipelines": "#d9ead3", "world_model": "#d6e4f5", "launch": "#fbe5cd"}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 240, 116, 74, 44, 20  # pixels
LETTERS = 36  # of a line of text in a box


class Box(NamedTuple):
    """A step on the way: where it stands and which modules it is. A package stands for all that is in it."""

    column: int
    row: int
    modules: str  # dotted name; * is one part of it


class Arrow(NamedTuple):
    """From the middle of one box's side (l, r, t, b) to that of the next. `by` imports both where neither imports the
    other."""

    start: str
    end: str
    sides: str = "rl"
    by: str = ""
    aside: int = 0  # pixels by which the end is off the middle


BOXES = {
    "sources": Box(1, 0, "data_pipelines.sources"),
    "windows": Box(2, 0, "data_pipelines.windows"),
    "mixture": Box(3, 0, "data_pipelines.mixture"),
    "robots": Box(0, 1, "data_pipelines.robots"),
    "samples": Box(1, 1, "data_pipelines.samples"),
    "loader": Box(2, 1, "data_pipelines.loader"),
    "latent cache": Box(3, 1, "data_pipelines.cache"),
    "batch": Box(0, 2, "world_model.batch"),
    "frozen encoders": Box(1, 2, "world_model.encoders"),
    "loss": Box(2, 2, "world_model.families.*.loss"),
    "gradients": Box(3, 2, "world_model.training.train_step"),
    "noise and solvers": Box(1, 3, "world_model.diffusion"),
    "model": Box(2, 3, "world_model.families.*.model"),
    "optimizer": Box(3, 3, "world_model.training.optimizer"),
    "sampler": Box(2, 4, "world_model.families.*.sampler"),
    "checkpoint": Box(3, 4, "world_model.training.checkpoint"),
    "server": Box(1, 5, "launch.serving"),
    "policy": Box(2, 5, "world_model.families.*.policy"),
    "export": Box(3, 5, "launch.exporting"),
}
ARROWS = [
    Arrow("sources", "windows", by="launch.setup"), Arrow("windows", "mixture"),
    Arrow("mixture", "samples", "bt", by="data_pipelines.host_batch"),
    Arrow("robots", "samples"), Arrow("samples", "loader"), Arrow("latent cache", "loader", "lr"),
    Arrow("loader", "batch", "bt"), Arrow("batch", "frozen encoders", by="launch.setup"),
    Arrow("frozen encoders", "loss"), Arrow("model", "loss", "tb"), Arrow("noise and solvers", "loss", "tb", aside=-60),
    Arrow("loss", "gradients", by="launch.setup"), Arrow("gradients", "optimizer", "bt"),
    Arrow("optimizer", "checkpoint", "bt", by="launch.setup"), Arrow("checkpoint", "sampler", "lr", by="launch.report"),
    Arrow("model", "sampler", "bt"), Arrow("noise and solvers", "sampler", "bt", aside=-60),
    Arrow("sampler", "policy", "bt"), Arrow("policy", "server", "lr"), Arrow("checkpoint", "export", "bt"),
    Arrow("export", "server", "bb", by="launch.serve"),
]


def read(root: Path = ROOT) -> dict[str, ast.Module]:
    """{dotted name: syntax tree} of every module of the three packages."""
    found = {}
    for path in sorted(path for package in COLOURS for path in (root / package).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """{module: the modules of ours that it imports}."""
    def named(tree: ast.Module):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                each = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in trees else node.module for name in each)

    return {module: {name for name in named(tree) if name in trees} - {module} for module, tree in trees.items()}


def members(names, pattern: str) -> list[str]:
    """The modules that a pattern means, those that it names itself first. Raises ValueError where there is none."""
    parts = len(pattern.split("."))
    found = [name for name in names if fnmatch.fnmatchcase(".".join(name.split(".")[:parts]), pattern)]
    if not any(len(name.split(".")) == parts for name in found):
        raise ValueError(f"docs/draw_architecture.py: there is no module {pattern}")
    return sorted(found, key=lambda name: (len(name.split(".")), name))


def reach(graph: dict[str, set[str]], start: list[str]) -> set[str]:
    """Those modules, what they import, and what that imports. Further on, every command reaches everything."""
    found = set(start)
    for _ in range(2):
        found = found.union(*(graph[name] for name in found))
    return found


def check(graph: dict[str, set[str]], arrow: Arrow) -> None:
    """Raises ValueError for an arrow that no import bears out."""
    start, end = (members(graph, BOXES[name].modules) for name in (arrow.start, arrow.end))
    if arrow.by:
        joined = reach(graph, members(graph, arrow.by))
        known = bool(joined & set(start)) and bool(joined & set(end))
    else:
        known = bool(reach(graph, start) & set(end)) or bool(reach(graph, end) & set(start))
    if not known:
        raise ValueError(f"docs/draw_architecture.py: no import joins {arrow.start!r} and {arrow.end!r}"
                         + (f" by {arrow.by}" if arrow.by else ""))


def rooms(graph: dict[str, set[str]], modules: list[str]) -> list[str]:
    """Other folders of the same package that those modules import and that are no boxes."""
    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    boxes = {name for box in BOXES.values() for name in members(graph, box.modules)}
    package = modules[0].split(".")[0]
    found = {room(name) for module in modules for name in graph[module] - boxes if name.startswith(package + ".")}
    folders = {room(name) for name in graph if name.count(".") > 1}
    return sorted(name.split(".")[1] for name in (found & folders) - {room(name) for name in modules})


def sentence(trees: dict[str, ast.Module], pattern: str) -> str:
    """The first sentence of the docstring; of several families without a base, the words with which each begins."""
    parts = len(pattern.split("."))
    meant = [name for name in members(trees, pattern) if len(name.split(".")) == parts]
    firsts = [" ".join((ast.get_docstring(trees[name]) or "").split("\n\n")[0].split()) for name in meant]
    if len(meant) > 1 and ".base." not in meant[0]:
        return ", ".join(first.split(":")[0] for first in firsts)
    return firsts[0].split(". ")[0].rstrip(".")


def place(box: Box, side: str = "") -> tuple[float, float]:
    """The top left corner of a box, or the middle of a side, in pixels."""
    x, y = MARGIN + box.column * (WIDTH + GAP_X), MARGIN + box.row * (HEIGHT + GAP_Y)
    dx, dy = {"": (0, 0), "l": (0, .5), "r": (1, .5), "t": (.5, 0), "b": (.5, 1)}[side]
    return x + dx * WIDTH, y + dy * HEIGHT


def text(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(words)}</text>'


def draw_box(title: str, box: Box, trees: dict, graph: dict) -> list[str]:
    """The box with its title, modules, first sentence and the rooms that it rests on."""
    modules, (x, y) = members(graph, box.modules), place(box)
    lines = textwrap.wrap(sentence(trees, box.modules), LETTERS, max_lines=4, placeholder=" ...")
    rests = rooms(graph, modules)
    return [f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="{COLOURS[modules[0].split(".")[0]]}" stroke="#555"/>',
            text(x + 10, y + 20, title, "title"), text(x + 10, y + 35, box.modules, "module"),
            *(text(x + 10, y + 52 + 14 * i, line, "words") for i, line in enumerate(lines)),
            *([text(x + 10, y + HEIGHT - 8, "on " + ", ".join(rests), "module")] if rests else [])]


def draw_arrow(arrow: Arrow) -> list[str]:
    """A line of right angles, with the name of what joins both ends."""
    (x, y), (x2, y2) = (place(BOXES[name], side) for name, side in zip((arrow.start, arrow.end), arrow.sides))
    x2 += arrow.aside
    level = y + 26 if arrow.sides == "bb" else (y + y2) / 2
    path = f"H{x2:g}" if arrow.sides in ("rl", "lr") else f"V{level:g} H{x2:g} V{y2:g}"
    name = [text((x + x2) / 2, level - 5, arrow.by, "by")] if arrow.by else []
    return [f'<path d="M{x:g} {y:g} {path}" class="arrow"/>', *name]


def draw_rest(graph: dict) -> list[str]:
    """What stands around the boxes: recordings, colours, what the star means."""
    x, y = place(Box(0, 0, ""))
    side = [text(x + 20, y + 50, "recordings", "title"),
            text(x + 20, y + 67, "robot episodes and video clips,", "words"),
            text(x + 20, y + 81, "in files or a bucket", "words"),
            f'<path d="M{x + 215:g} {y + HEIGHT / 2:g} H{x + WIDTH + GAP_X:g}" class="arrow"/>']
    x, y = place(Box(0, 3, ""))
    families = [name.split(".")[2] for name in members(graph, "world_model.families.*.model")]
    words = ["Of two boxes that an arrow joins, one", "imports the other, or what is written on",
             "the arrow imports both.", "on ...: further folders that a box imports",
             "*: base, " + ", ".join(families)]
    for i, (package, colour) in enumerate(COLOURS.items()):
        side += [f'<rect x="{x}" y="{y + 24 * i:g}" width="18" height="16" rx="3" fill="{colour}" stroke="#555"/>',
                 text(x + 26, y + 13 + 24 * i, package, "module")]
    return side + [text(x, y + 96 + 16 * i, line, "words") for i, line in enumerate(words)]


def draw(trees: dict[str, ast.Module] | None = None) -> str:
    """The picture as SVG. Raises ValueError where the tables above name what the code does not have."""
    trees = read() if trees is None else trees
    graph = imports(trees)
    for arrow in ARROWS:
        check(graph, arrow)
    width, height = (2 * MARGIN + (n + 1) * size + n * gap for n, size, gap in (
        (3, WIDTH, GAP_X), (max(box.row for box in BOXES.values()), HEIGHT, GAP_Y)))
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20}" font-family="sans-serif">',
            "<style>.title{font-size:15px;font-weight:bold}.words{font-size:11px}.module{font-size:11px;fill:#555}"
            ".by{font-size:10px;fill:#555;text-anchor:middle}.arrow{fill:none;stroke:#333;stroke-width:1.4;"
            "marker-end:url(#head)}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#333"/></marker></defs>',
            f'<rect width="{width}" height="{height + 20}" fill="white"/>']
    boxes = [line for title, box in BOXES.items() for line in draw_box(title, box, trees, graph)]
    arrows = [line for arrow in ARROWS for line in draw_arrow(arrow)]
    return "\n".join([*head, *arrows, *boxes, *draw_rest(graph), "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
