"""Studies: what is locked cannot change, and what runs answer is a verdict with an interval that holds what it says."""

import json

import numpy as np
import pytest

from configs import quickstart
from launch import sweep
from launch.reporting import comparison, verdicts
from launch.reporting.verdicts import REFUTED, SUPPORTED, UNDECIDED, judge
from launch.setup import provenance
from launch.supervision import study

PLAN = {"seeds": [0, 1, 2, 3, 4, 5, 6, 7], "smallest_effect": 0.08, "larger_is_better": True}
STUDY = {"question": "Is decoupled noise better?", "primary": "action error ratio", "smallest_effect": 0.05,
         "seeds": [0, 1, 2], "larger_is_better": False}
ARMS = {"get_sweep": lambda: [{"name": "schedule_coupled"}, {"name": "a_decoupled", "noise.schedule": "decoupled"}],
        "get_study": lambda: STUDY}


def arms(difference: float, spread: float, states: int = 50, seed: int = 0):
    """Success by state of two arms whose probabilities differ by so much, paired by seed."""
    rng = np.random.default_rng(seed)
    level = np.clip(0.5 + spread * rng.normal(size=8), 0.05, 0.95 - difference)
    draws = rng.random((8, states))
    return ({s: draws[s] < level[s] + difference for s in range(8)}, {s: draws[s] < level[s] for s in range(8)})


def floats(values):
    return {seed: np.asarray(x, float) for seed, x in values.items()}


@pytest.mark.parametrize("difference, verdict", [(0.4, SUPPORTED), (0.0, REFUTED)])
def test_pairing_by_seed_and_state_takes_the_spread_of_trainings_out(difference, verdict):
    arm, base = map(floats, arms(difference, spread=0.3))
    found = judge("arm", arm, base, PLAN)
    assert found.verdict == verdict and found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(difference, abs=0.08)
    assert found.detectable < 0.15  # unpaired, with a spread of 0.3 between trainings, it would be 0.4


def test_few_and_noisy_values_stay_undecided():
    arm = floats({s: [x] for s, x in enumerate((0.9, 0.2, 0.8, 0.3, 0.9, 0.4, 0.7, 0.9))})
    base = floats({s: [x] for s, x in enumerate((0.5, 0.6, 0.5, 0.5, 0.4, 0.7, 0.5, 0.6))})
    found = judge("arm", arm, base, PLAN)
    assert found.verdict == UNDECIDED and found.low < 0 < 0.08 < found.high and "both no effect" in found.why


def test_a_sure_but_small_effect_is_refuted_and_a_missing_seed_decides_nothing():
    arm, base = floats({s: [0.51 + 0.001 * s] for s in range(8)}), floats({s: [0.5] for s in range(8)})
    assert judge("arm", arm, base, PLAN).verdict == REFUTED
    del arm[3]
    assert judge("arm", arm, base, PLAN).why == "seeds 3 are not done in both arms"


def test_errors_count_down():
    arm, base = floats({s: [0.3] for s in range(8)}), floats({s: [0.5] for s in range(8)})
    assert judge("arm", arm, base, PLAN | {"larger_is_better": False}).mean == pytest.approx(0.2)
    assert judge("arm", arm, base, PLAN).mean == pytest.approx(-0.2)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of 200 studies of 6 seeds without an effect at most 7% may find one; the bootstrap alone finds more."""
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(200, 6, 1))
    wrong = [not low <= 0 <= high for low, high in map(verdicts.interval, drawn)]
    alone = [not low <= 0 <= high for low, high in (verdicts.bootstrap(x[:, 0], np.mean) for x in drawn)]
    assert sum(wrong) <= 14 < sum(alone)


def test_the_detectable_effect_is_found_as_often_as_it_says():
    rng, effect = np.random.default_rng(2), verdicts.detectable(1.0, 12)
    found = [verdicts.student(rng.normal(effect, 1.0, 12))[0] > 0 for _ in range(400)]
    assert 0.74 < np.mean(found) < 0.86


# --- the plan ---------------------------------------------------------------------------------------------------------


def facts(**changes):
    one = {"parameters": 5, "steps": 30, "flops": 1000, "config": "aa"}
    return {"base": one, "other": one | {"config": "bb"} | changes}


def measured():
    return {name: [comparison.OPEN_LOOP] for name in ("base", "other")}


def plan(**changes):
    return study.plan(study.Study(**STUDY), facts(**changes), measured())


def test_a_study_is_locked_once_and_before_its_first_run(tmp_path):
    digest = study.lock(tmp_path, plan())
    stored = study.locked(tmp_path)
    assert stored["hash"] == digest and stored["plan"]["arms"]["other"]["config"] == "bb"
    study.check_same(stored, plan())
    with pytest.raises(study.StudyError, match="locked once"):
        study.lock(tmp_path, plan())
    (tmp_path / "late/base/seed_0").mkdir(parents=True)
    with pytest.raises(study.StudyError, match="before its first run"):
        study.lock(tmp_path / "late", plan())
    assert study.locked(tmp_path / "nothing") is None


def test_a_changed_plan_is_refused(tmp_path):
    study.lock(tmp_path, plan())
    with pytest.raises(study.StudyError, match=r"arms\.other\.config was 'bb' and is 'cc'.*code that locked it"):
        study.check_same(study.locked(tmp_path), plan(config="cc"))
    path = tmp_path / study.FILE
    stored = json.loads(path.read_text())
    stored["plan"]["smallest_effect"] = 0.001
    path.write_text(json.dumps(stored))
    with pytest.raises(study.StudyError, match="was changed after it was locked"):
        study.locked(tmp_path)


@pytest.mark.parametrize("changes, sentence", [
    ({"primary": "solved"}, "primary = 'solved' is not measured; there are"),
    ({"seeds": (0, 1)}, "at least three different"), ({"smallest_effect": 0.0}, "expected a number above 0")])
def test_a_study_that_cannot_be(changes, sentence):
    with pytest.raises(study.StudyError, match=sentence):
        study.plan(study.Study(**STUDY | changes), facts(), measured())


def test_arms_of_unequal_budget_are_no_study():
    with pytest.raises(study.StudyError, match="arm 'other' has 2,000 flops, 'base' has 1,000"):
        plan(flops=2000)
    with pytest.raises(study.StudyError, match="arm 'other' has 31 steps"):
        plan(steps=31)
    with pytest.raises(study.StudyError, match="arm 'other' has 1,021 flops"):
        plan(flops=1021)
    assert plan(flops=1020)["arms"]["other"]["flops"] == 1020  # another family's layers


@pytest.mark.parametrize("module, sentence", [({}, "defines no get_study"),
                                              ({"get_study": lambda: {"sedes": [1]}}, "its keys are question, primary")])
def test_a_file_without_a_whole_study(module, sentence):
    with pytest.raises(study.StudyError, match=sentence):
        study.read(module)


def test_runs_answer_and_pilots_are_named_apart(tmp_path):
    """The runs are files as the sweep leaves them; the pilot, seed 9, would turn the answer."""
    config = sweep.apply(quickstart.get_config("debug"), {"train.steps": 30})
    wanted, asked = sweep.variants(ARMS), sweep.measurements(ARMS)
    checked = {name: facts()["base"] | {"config": provenance.config_hash(provenance.as_json(sweep.apply(config, over)))}
               for name, over in wanted.items()}
    study.lock(tmp_path, study.plan(study.read(ARMS), checked, asked))
    starts = sweep.bases(ARMS, "f.py", config)
    for run in sweep.runs_of(starts, wanted, asked, [0, 1, 2, 9], tmp_path):
        better = run.name.endswith("decoupled") and run.seed != 9
        run.workdir.mkdir(parents=True)
        (run.workdir / "evaluation.json").write_text(json.dumps({"action": {
            "error_ratio": 0.4 + 0.01 * run.seed if better else 0.6 + 0.02 * run.seed}}))
        (run.workdir / "measured.json").write_text(json.dumps({m.file: run.hash_of(m) for m in run.measured}))
    text = sweep.answer(study.locked(tmp_path), sweep.runs_of(starts, wanted, asked, [0, 1, 2], tmp_path), tmp_path)
    found = json.loads((tmp_path / "verdicts.json").read_text())
    assert [v["verdict"] for v in found["verdicts"]] == [SUPPORTED]
    assert found["verdicts"][0]["mean"] == pytest.approx(0.21)
    assert found["apart"] == ["a_decoupled/seed_9", "schedule_coupled/seed_9"]
    assert "Is decoupled noise better?" in text and "not counted: a_decoupled/seed_9" in text
    assert "each arm against schedule_coupled" in text  # the first, which is not the first by its name
