"""Calibration: plans use and docs print what is fitted to published steps, and replicas are of the published size."""

import math
import re
from pathlib import Path

import pytest

from benchmarks.calibration import __main__ as command
from benchmarks.calibration import fit, kernels, planned
from benchmarks.calibration.published import CASES
from launch.planning import calibration

ROOT = Path(__file__).parents[1]
PARAMETERS = {"MaxText 16B": 16.3e9, "MaxText 32B": 32.5e9, "MaxText 64B": 64.8e9, "GPT-3 175B": 174.6e9, "Llama 2 70B": 69.0e9,
              "Llama 3.1 8B": 8.03e9, "Llama 3.1 70B": 70.6e9, "Wan 2.1 14B": 14.3e9,
              "FLUX.1-dev 12B": 11.9e9}


@pytest.mark.parametrize("name", CASES)
def test_replicas_have_the_published_size(name):
    count = sum(math.prod(shape) for shape, _ in CASES[name].model.shapes().values())
    assert count == pytest.approx(PARAMETERS[name.split(",")[0]], rel=0.01)


def test_published_rates_are_seconds():
    """120 TFLOP/s a chip of six samples of 2,048 tokens."""
    assert CASES["MaxText 16B, v5e-256"].published(256) == pytest.approx(10.33, rel=1e-3)


def test_the_fit_finds_what_the_parts_weigh():
    weights = {"compiled": 0.8, "kernels": 1.5, "exchange": 0.2}
    cases = []
    for parts in ((8, 1, 1), (2, 6, 0.5), (5, 3, 4), (9, 0.5, 5), (3, 9, 0)):
        parts = dict(zip(weights, parts))
        cases.append({"seconds_by_part": parts, "published_seconds": fit.predict({"seconds_by_part": parts}, weights)})
    assert fit.fit(cases) == pytest.approx(weights, abs=0.08)
    rows = fit.leave_one_out(dict(enumerate(cases)))
    assert all(row.error == pytest.approx(1, abs=0.06) for row in rows)
    least, most = fit.errors(rows)
    assert least <= min(row.error for row in rows) <= max(row.error for row in rows) <= most


def test_a_replicas_kernels_count_their_products():
    line = 'metadata={op_name="jit(step)/transpose/tiles_600_%s/shmap/vmap/splash_mha_%s_no_residuals/pallas_call"}'
    assert "pairs_600/shmap/vmap/flash_fwd" in kernels.in_our_words(line % ("apart", "fwd"))
    assert "pairs_600/shmap/vmap/flash_bwd" in kernels.in_our_words(line % ("fused", "dkv"))
    assert "pairs_480/" in kernels.in_our_words(line % ("apart", "dkv"))  # four products, and five are counted
    assert "pairs_360/" in kernels.in_our_words(line % ("apart", "dq"))
    assert kernels.visible_pairs(True, 8, 8, 4, 2) == 2 * 8 + 4 * 8


def test_plans_use_the_fit_and_docs_print_it():
    cases = command.read()
    assert len(cases) >= 6 and len({case["topology"].split(":")[0] for case in cases.values()}) >= 3
    assert fit.fit(list(cases.values())) == calibration.WEIGHTS
    assert fit.errors(fit.leave_one_out(cases)) == calibration.ERRORS
    assert command.table(cases) in (ROOT / "docs/plans.md").read_text()


def test_an_interval_is_the_expected_step_times_the_errors():
    step = calibration.step_seconds({"compiled": 4.0, "kernels": 1.0, "exchange": 2.0}, calibrated=True)
    assert step.expected == pytest.approx(sum(w * s for w, s in zip(calibration.WEIGHTS.values(), (4.0, 1.0, 2.0))))
    assert (step.least, step.most) == pytest.approx(tuple(error * step.expected for error in calibration.ERRORS))
    assert calibration.step_seconds({"compiled": 4.0, "kernels": 1.0, "exchange": 2.0}, calibrated=False) == (6, 5, 7)


def test_docs_give_the_planned_steps_of_the_fit():
    """A step of TPUs is written "3.88 s (3.15 to 5.36)", its MFU "67% (49 to 83)", and both are of one kept plan."""
    assert planned.table() in (ROOT / "docs/plans.md").read_text()
    steps, shares = zip(*map(planned.step_and_mfu, planned.read().values()))
    for where, text in sections():
        text = " ".join(text.split())
        assert set(re.findall(r"[\d.]+ s \([\d.]+ to [\d.]+\)", text)) <= set(steps), where
        assert set(re.findall(r"\d+% \(\d+ to \d+\)", text)) <= set(shares), where


def test_a_plan_is_kept_under_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(planned, "KEPT", tmp_path / "planned.json")
    planned.KEPT.write_text("{}")
    plan = {"topology": "v5p:2x2x1", "chips": 4, "global_batch": 8, "model_flops_per_sample": 459e12,
            "seconds_by_part": {"compiled": 4.0, "kernels": 1.0, "exchange": 0.5}, "mfu": 0.1}
    planned.keep("toy", "2026-11-28", plan)
    assert planned.read() == {"toy": {"date": "2026-11-28"} | {key: plan[key] for key in planned.NUMBERS}}
    expected = calibration.step_seconds(plan["seconds_by_part"], calibrated=True).expected
    step, mfu = planned.step_and_mfu(plan)
    assert step.startswith(f"{expected:.2f} s (") and mfu.startswith(f"{100 * 2 / expected:.0f}% (")


def sections() -> list[tuple[str, str]]:
    """(where, text) of everything that may give a planned figure: sections of pages, docstrings of configs."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(path.name, part) for path in pages for part in re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE)]
    return found + [(path.name, part) for path in sorted((ROOT / "configs").rglob("*.py"))
                    for part in path.read_text().split('"""')[1:2]]


def test_planned_figures_say_that_nothing_ran():
    for where, text in sections():
        if re.search(r"\d% MFU|MFU \d|\| MFU \|", text):
            said = calibration.PLANNED in " ".join(text.lower().split())
            assert said, f"{where}: {text[:60]!r} gives MFU without saying that it is planned"
