"""What libtpu's compiler makes of the kernels and of the train step, at small size and without a TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tpu_compile
from world_model.attention import tokens, visibility
from world_model.families.dreamzero.visibility import TABLES

ROOT = Path(__file__).parents[1]
LIBTPU = ROOT / ".cache" / "libtpu"


@pytest.fixture(scope="module")
def compiled():
    assert LIBTPU.exists(), f"{LIBTPU} is missing: `make {LIBTPU.relative_to(ROOT)}` installs the compiler"
    ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # a program for devices that are not here is not read back
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-m", "tests.tpu_compile"], cwd=ROOT, capture_output=True, text=True,
                          env=environment | {"PYTHONPATH": f"{LIBTPU}:{ROOT}"}, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_only_flash_is_a_kernel_and_all_count_at_least_the_visible_products(compiled):
    visible = visibility.dense_mask(visibility.get_table("dreamzero", TABLES), tpu_compile.SEQUENCE, tpu_compile.SEQUENCE).sum()
    work = 2.0 * visible * tpu_compile.HEADS * tpu_compile.HEAD_DIM
    for suffix in ("", ", drawn"):  # a kernel makes its scores twice; a sum's gradient needs no output, else
        assert compiled[f"flash{suffix}"]["kernel_flops"] == compiled[f"flash{suffix}"]["flops"] >= 7 * work
        assert compiled[f"blockwise{suffix}"]["kernel_flops"] == 0
        assert 5 * work <= compiled[f"blockwise{suffix}"]["flops"] < compiled[f"reference{suffix}"]["flops"]


def test_cross_attention_is_a_kernel(compiled):
    pairs = tokens.length(tpu_compile.SEQUENCE) * tpu_compile.CONTEXT
    least = 7 * 2.0 * pairs * tpu_compile.HEADS * tpu_compile.HEAD_DIM
    assert compiled["context"]["kernel_flops"] == compiled["context"]["flops"] >= least


def test_the_train_step_exchanges_weights_by_gathers_and_scatters(compiled):
    plan = compiled["plan"]
    kinds = {kind.split(",")[0] for kind in plan["collective_bytes_by_kind"]}
    assert {"all-gather over 4 of fsdp", "reduce-scatter over 4 of fsdp"} <= kinds
    assert plan["kernel_flops_per_sample"] > 0 and plan["seconds_by_part"]["compiled"] > 0
    assert 0 < plan["hbm_peak_gib_per_chip"] < 1
