"""The import arrows of the design, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"torch", "tensorflow", "gym_pusht", "gymnasium", "metaworld", "mujoco", "pygame", "matplotlib", "tensorboardX", "websockets",
          "prometheus_client", "diffusers", "ftfy", "sentencepiece", "tokenizers", "transformers",
          "ml_goodput_measurement"}
# Modules that exist for an extra may import it at their top.
EXTRA_MODULES = {"world_model/families/base/torch_policy.py", "world_model/families/dreamzero/torch/",
                 "world_model/families/lingbot_va/torch/", "launch/reporting/figures.py", "launch/serving/server.py",
                 "launch/serving/telemetry.py", "data_pipelines/simulators/pusht/"}
ALLOWED = {
    "world_model": {"world_model"},
    "data_pipelines": {"data_pipelines", "world_model.batch"},
    "configs": {"configs"},
    "launch": {"launch", "data_pipelines", "world_model"},
}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(package: str, names: set[str]) -> set[str]:
    """Imports of our own packages that the package may not have."""
    inside = lambda name, allowed: any(name == a or name.startswith(a + ".") for a in allowed)
    return {n for n in names if n.split(".")[0] in {*ALLOWED, "tests", "benchmarks"} and not inside(n, ALLOWED[package])}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not violations(package, imports(path)), path


def test_a_wrong_arrow_is_seen():
    assert violations("world_model", {"data_pipelines.loader"}) and violations("data_pipelines", {"world_model.flops.x"})
    assert not violations("data_pipelines", {"world_model.batch.Layout", "numpy"})


def test_the_core_imports_no_extra_at_its_top():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(tuple(EXTRA_MODULES)):
                found = {n.split(".")[0] for n in imports(path, top_level_only=True)}
                assert not found & EXTRAS, name
