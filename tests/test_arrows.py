"""The import arrows of the design, folder by folder, read from the sources."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"torch", "tensorflow", "gym_pusht", "gymnasium", "metaworld", "ogbench", "mujoco", "pygame", "matplotlib", "tensorboardX", "wandb",
          "websockets", "prometheus_client", "diffusers", "ftfy", "sentencepiece", "tokenizers", "transformers",
          "ml_goodput_measurement"}
# Modules that exist for an extra may import it at their top.
TORCH_MODULES = ("world_model/original_side.py", "world_model/families/base/torch_policy.py",
                 "world_model/families/wan/torch_layers.py",
                 "world_model/families/dreamzero/torch/", "world_model/families/lingbot_va/torch/",
                 "world_model/families/lingbot_vla/torch/", "launch/policy_check/", "launch/check_policy.py")
EXTRA_MODULES = (*TORCH_MODULES, "launch/reporting/figures.py", "data_pipelines/simulators/pusht/",
                 "launch/serving/server.py", "launch/serving/intake.py", "launch/serving/telemetry.py",
                 "launch/simulation/served.py")
# Functions elsewhere that import torch when they are called.
TORCH_CALLERS = {"world_model/weights/tensor_files.py", "launch/exporting/exported.py",
                 *(f"world_model/families/{name}/parity/export_check.py"
                   for name in ("dreamzero", "lingbot_va", "lingbot_vla"))}

CORE = ("batch", "functional", "kinds", "parallel", "attention", "analysis", "layers", "diffusion", "weights", "encoders",
        "training", "original_side")
FAMILIES = "world_model.families"


def of_world_model(*names: str) -> set[str]:
    return {f"world_model.{name}" for name in names}


# What each folder or module may import beside itself. The longest name that fits a file is the one that counts.
ALLOWED = {
    "world_model": set(),
    "world_model.parallel": set(),
    "world_model.diffusion": set(),
    "world_model.attention": of_world_model("batch", "parallel"),
    "world_model.analysis": of_world_model("attention"),
    "world_model.layers": of_world_model("functional", "parallel", "attention"),
    "world_model.weights": of_world_model("layers", "hashing", "kinds"),
    "world_model.encoders": of_world_model("functional", "parallel", "attention", "layers", "weights"),
    "world_model.training": of_world_model("parallel", "analysis", "differences", "hashing", "kinds"),
    FAMILIES: {f"{FAMILIES}.base"},  # the list of families; each is imported when it is asked for
    f"{FAMILIES}.base": of_world_model(*CORE),
    f"{FAMILIES}.wan": of_world_model(*CORE) | {f"{FAMILIES}.base"},
    f"{FAMILIES}.dreamzero": of_world_model(*CORE) | {f"{FAMILIES}.base", f"{FAMILIES}.wan"},
    f"{FAMILIES}.lingbot_va": of_world_model(*CORE) | {f"{FAMILIES}.base", f"{FAMILIES}.wan"},
    f"{FAMILIES}.lingbot_vla": of_world_model(*CORE) | {f"{FAMILIES}.base"},
    "data_pipelines": of_world_model("batch", "differences", "kinds"),
    "configs": {FAMILIES},
    "launch": {"configs", "data_pipelines", "world_model"},
}
PACKAGES = sorted({name.partition(".")[0] for name in ALLOWED})
NOT_OURS_TO_IMPORT = ("tests", "benchmarks")
# The families that have names; nothing outside them and configs/ may know one.
NAMED = re.compile(r"dreamzero|lingbot", re.IGNORECASE)
FAMILY_MODULES = sorted({f"{FAMILIES}.{path.parent.name}" for path in (ROOT / FAMILIES.replace(".", "/")).glob("*/config.py")
                         if path.parent.name != "wan"})
WIRE_PROTOCOLS = "launch/serving/protocols"  # published clients' languages


@functools.cache
def imports(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
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
    return frozenset(found)


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > len(packages)
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def area_of(module: str) -> str:
    """The entry of ALLOWED that a dotted name falls under; "" under none."""
    return max((area for area in ALLOWED if is_in(module, area)), key=len, default="")


def is_in(module: str, area: str) -> bool:
    return module == area or module.startswith(f"{area}.")


def violations(module: str, imported: set[str] | frozenset[str]) -> set[str]:
    """Imports of our own packages that a module of that dotted name may not have."""
    area = area_of(module)

    def fits(name: str) -> bool:
        if area_of(name) == area:
            return True
        if area_of(name).startswith(f"{FAMILIES}.") and FAMILIES in ALLOWED[area]:
            return False  # the list of families is not the families
        return any(is_in(name, allowed) for allowed in ALLOWED[area])

    ours = {name for name in imported if name.partition(".")[0] in (*PACKAGES, *NOT_OURS_TO_IMPORT)}
    return {name for name in ours if not fits(name)}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package):
    for path in sources(package):
        module = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        assert not violations(module, imports(path)), name_of(path)


def test_every_folder_of_the_model_has_its_row():
    """A new folder, or a new family, has to say what it may import."""
    for parent in ("world_model", "world_model/families"):
        for folder in (path.parent for path in (ROOT / parent).glob("*/__init__.py")):
            assert name_of(folder).replace("/", ".") in ALLOWED, name_of(folder)


@pytest.mark.parametrize("module,imported", [
    ("world_model.parallel.axes", "data_pipelines.loader"), ("world_model.training.state", "launch.train"),
    ("world_model.weights.names", "configs.base"), ("data_pipelines.loader", "world_model.functional.x"),
    ("data_pipelines.loader", "world_model.families.get_family"), ("data_pipelines.loader", "launch.setup.fit"),
    ("data_pipelines.loader", "configs.base"), ("configs.base", "world_model.families.dreamzero.config.CONFIG"),
    ("configs.base", "world_model.batch.Layout"), ("configs.base", "launch.train"), ("launch.train", "tests.tiny"),
    *((f"world_model.{name}.any", f"world_model.families.{family}")
      for name in ("weights", "encoders", "layers", "attention", "diffusion", "parallel", "training", "analysis")
      for family in ("get_family", "base.spec", "dreamzero.model")),
    ("world_model.families.base.family", "world_model.families.get_family"),
    ("world_model.families.base.family", "world_model.families.wan.spec"),
    ("world_model.families.wan.spec", "world_model.families.dreamzero.model"),
    ("world_model.families.dreamzero.model", "world_model.families.lingbot_va.model"),
    ("world_model.families.lingbot_va.torch.policy", "world_model.families.dreamzero.torch.policy"),
    ("world_model.families", "world_model.families.dreamzero.FAMILY")])
def test_a_wrong_arrow_is_seen(module, imported):
    assert violations(module, {imported, "numpy"}) == {imported}


@pytest.mark.parametrize("module,imported", [
    ("data_pipelines.loader", "world_model.batch.Layout"), ("configs.base", "world_model.families.get_family"),
    ("configs.quickstart", "configs.base"), ("launch.train", "world_model.families.dreamzero.model"),
    ("world_model.families.dreamzero.torch.policy", "world_model.families.wan.torch_layers"),
    ("world_model.families", "world_model.families.base.family.Family")])
def test_a_right_arrow_is_not(module, imported):
    assert not violations(module, {imported, "numpy"})


def test_configs_import_nothing_but_families_and_their_own_kind():
    for path in sources("configs"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert roots <= {"ml_collections", "configs", "world_model"}, name_of(path)


def test_the_core_imports_no_extra_at_its_top():
    for path in sources(*PACKAGES):
        if not name_of(path).startswith(EXTRA_MODULES):
            found = {name.partition(".")[0] for name in imports(path, top_level_only=True)}
            assert not found & EXTRAS, name_of(path)


def test_torch_is_imported_by_the_modules_that_are_for_it():
    """Anywhere in a file, in a function too."""
    found = {name_of(path) for path in sources(*PACKAGES)
             if "torch" in {name.partition(".")[0] for name in imports(path)}}
    assert {name for name in found if not name.startswith(TORCH_MODULES)} == TORCH_CALLERS
    for prefix in TORCH_MODULES:
        assert any(name.startswith(prefix) for name in found), prefix


def test_serving_and_rolling_out_import_no_training_code():
    """Of `world_model.training`, checkpoints are read; what a family's policy and sampler need comes along."""
    acting = ["launch.serve", "launch.rollout", "launch.serving.server", *FAMILY_MODULES]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {acting}]; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert {name for name in loaded if is_in(name, "world_model.training")} == {
        "world_model.training", "world_model.training.checkpoint", "world_model.training.checkpoint_reader"}
    assert not {name for name in loaded if name.endswith((".loss", ".student")) and is_in(name, FAMILIES)}
    assert not loaded & {f"launch.setup.{name}" for name in ("training", "fit", "steps", "resume")}


def test_one_module_reads_json():
    """It hands values to world_model/kinds.py, to which all others say what they expect."""
    found = {name_of(path) for path in sources(*PACKAGES)
             if re.search(r"json\.loads?\(|JSONDecoder", path.read_text())}
    assert {name for name in found if not name.endswith("/original_run.py")} == {"world_model/json_text.py"}


def test_no_family_is_named_outside_families_and_configs():
    paths = [path for path in sources("world_model", "launch", "data_pipelines")
             if not name_of(path).startswith("world_model/families/")]
    named = {name_of(path) for path in paths if NAMED.search(path.read_text())}
    assert named == {name_of(path) for path in sources(WIRE_PROTOCOLS) if path.name != "openpi.py"}
