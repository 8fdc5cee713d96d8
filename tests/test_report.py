"""The report on made-up results: self-contained, honest about what was missed or not measured."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from launch import report
from launch.reporting import acting, comparison, figures, report_page, scores
from launch.reporting.summary import make_summary, targets
from launch.setup.experiment import Experiment
from tests import tiny_policy
from world_model.diffusion import step_skipping
from world_model.families.base.sampler import Schedule

RNG = np.random.default_rng(0)
MIXTURE = {"pusht": {"asked": 0.75, "realised": 0.7512}, "clips <web>": {"asked": 0.25, "realised": 0.2488}}
METRICS = [{"step": s, "video_loss": 1 / s, "action_loss": 2 / s, "samples_per_second": 40.0} for s in range(2, 40, 2)]


def results(windows=3, frames=9, size=16):
    """(evaluation, arrays) as launch/evaluate.py makes them: predictions off by 0.1, the copy by 0.2."""
    mask = np.ones((windows, frames), bool)
    mask[-1, 5:] = False
    arrays = {"frame_mask": mask, "latent_mask": mask[:, ::4], "latent_range": np.full(windows, 4.0)}
    for name, error in (("video", 0.01), ("copy_last", 0.04), ("codec", 0.001), ("video_raw", 0.01),
                        ("copy_last_raw", 0.04)):
        arrays[f"{name}_mse"] = np.full((windows, frames), error)
        arrays[f"{name}_ssim"] = np.full((windows, frames), 1 - error)
    for name in ("latent", "copy_last_latent"):
        arrays[f"{name}_mse"] = np.full((windows, 1 + frames // 4), 0.1)
    for name in ("raw", "true", "predicted", "copy_last"):
        arrays[f"frames_{name}"] = RNG.integers(0, 256, (windows, frames, size, size, 3), np.uint8)
    shape = (windows, 16, 5)
    known = np.repeat(np.arange(16)[None] >= 8, windows, axis=0)
    arrays["action_mask"] = np.zeros(shape, bool)
    arrays["action_mask"][..., [0, 3]] = True
    arrays["actions"] = RNG.uniform(-1, 1, shape)
    arrays |= {"predicted_actions": arrays["actions"] + 0.1, "mean_actions": np.zeros(shape),
               "repeated_actions": arrays["actions"] + 0.2, "repeated_known": known}
    evaluation = {"step": 38, "windows": windows, "solver": {"solver_steps": 4},
                  "video": scores.video_scores(arrays), "action": scores.action_scores(arrays, 8),
                  "loss": {"video_loss": 0.5, "action_loss": 0.4, "video_loss_sigma_0.00-0.50": 0.3,
                           "video_loss_sigma_0.50-1.00": 0.6, "action_loss_sigma_0.50-1.00": 0.2}}
    return evaluation, arrays


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(page text, summary as read back)."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny & small"
    evaluation, arrays = results()
    summary = make_summary(evaluation, METRICS, MIXTURE, seconds=800.0, resume_bitwise=True)
    mask = np.zeros((8, 8, 3), np.uint8), {"clean video": (86, 134, 197)}
    schedules = {part: Schedule(np.linspace(1, 0, 5), (True,) * 4) for part in ("video", "action")}
    path = report.write_report(workdir, summary, evaluation, arrays, METRICS, mask, MIXTURE, schedules)
    return path.read_text(), json.loads((workdir / "report" / "summary.json").read_text())


def test_summary_has_the_agreed_keys(written):
    _, summary = written
    assert summary == {
        "seconds": 800.0, "steps": 38, "samples_per_second": 40.0, "video_psnr_db": pytest.approx(26.0206),
        "copy_last_psnr_db": pytest.approx(20.0), "codec_psnr_db": pytest.approx(36.0206),
        "action_error_ratio": pytest.approx(summary["action_error_ratio"]),
        "repeat_last_ratio": pytest.approx(summary["repeat_last_ratio"]), "mixture": MIXTURE,
        "success_rate": None, "resume_bitwise": True, "export_max_abs_diff": None}


def test_page_is_self_contained_and_well_formed(written):
    page, _ = written

    class Reader(HTMLParser):
        open_tags: list = []  # noqa: RUF012
        sources: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            self.sources += [value for name, value in attributes if name in ("src", "href")]
            if tag not in ("meta", "img"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    reader = Reader()
    reader.feed(page)
    assert reader.open_tags == [] and len(reader.sources) == 8
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert "url(" not in page and "<script" not in page
    assert "tiny &amp; small" in page and "clips &lt;web&gt;" in page and "75.12%" in page


def test_page_shows_met_missed_and_unmeasured(written):
    page, _ = written
    def row(start):
        return re.search(rf"<tr><td>{start}.*?</tr>", page).group()
    assert "+6.02 dB" in row("Rolled-out video") and "met</span>" in row("Rolled-out video")
    assert "missed" in row("Whole run")
    assert "not measured" in row("Exported") and "&ndash;" in row("Exported")
    assert "3 of 4 measured targets met" in page


def test_what_it_did_in_a_simulator(tmp_path):
    """A table beside other policies, a picture, a target; what another checkpoint did is not shown."""
    scores_of = {"episodes": 4, "successes": 3, "success_rate": 0.75, "success_rate_ci": [0.3, 0.95], "coverage": 0.8,
                 "coverage_ci": [0.7, 0.9], "steps": 50.0}
    result = {"task": "pusht-slide", "measure": "coverage", "step": 38, "execute": 8,
              "policies": {"model": scores_of, "random": scores_of | {"success_rate": 0.0, "success_rate_ci": [0, 0.6]}}}
    (tmp_path / "closed_loop").mkdir()
    (tmp_path / "closed_loop" / "closed_loop.json").write_text(json.dumps(result))
    (tmp_path / "closed_loop" / "strip.png").write_bytes(figures.png(np.zeros((4, 4, 3), np.uint8)))
    assert acting.read(tmp_path, 39) is None and acting.read(tmp_path / "closed_loop", 38) is None
    acted = acting.read(tmp_path, 38)
    card = acting.section(acted)
    assert "<td>model</td><td>75% [30%, 95%]</td><td>0.80 [0.70, 0.90]</td><td>50</td>" in card
    assert "<td>random</td><td>0% [0%, 60%]</td>" in card and "data:image/png" in card
    summary = make_summary(results()[0], METRICS, MIXTURE, success_rate=acted.success_rate)
    assert ("Episodes solved in the simulator", "75%", "at least 30%", True) in targets(summary)


def test_video_is_animated_with_all_frames_and_columns(written):
    page, _ = written
    data = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", page).group(1))
    with Image.open(io.BytesIO(data)) as video:
        assert video.n_frames == 9
        assert video.width > 2 * 4 * 128 and video.height == 128 + 6  # two windows of four panels; the third is left


def test_a_family_without_video_or_mask_has_no_section_of_it(tmp_path):
    evaluation, arrays = results()
    evaluation = {name: part for name, part in evaluation.items() if name != "video"}
    evaluation["loss"] = {name: value for name, value in evaluation["loss"].items() if name.startswith("action")}
    arrays = {name: value for name, value in arrays.items() if "action" in name or name == "repeated_known"}
    metrics = [{name: value for name, value in each.items() if name != "video_loss"} for each in METRICS]
    summary = make_summary(evaluation, metrics, MIXTURE)
    assert not [key for key in summary if "psnr" in key]
    assert next(what for what, *_ in targets(summary)).startswith("Action error")
    schedules = {"action": Schedule(np.linspace(1, 0, 5), (True,) * 4)}
    page = report.write_report(tmp_path, summary, evaluation, arrays, metrics, None, MIXTURE, schedules).read_text()
    found = re.findall(r"<h2>(.*?)</h2>", page)
    assert found == ["Results", "Actions", "Sampling", "Training", "Mixture"]
    assert "video loss" not in page and "Video " not in page
    assert comparison.OPEN_LOOP.metrics["video gain, dB"](evaluation) is None


def test_targets_at_their_limits():
    base = {"video_psnr_db": 21.0, "copy_last_psnr_db": 20.0, "action_error_ratio": 0.5, "success_rate": 0.3,
            "resume_bitwise": False, "export_max_abs_diff": 1e-4, "seconds": None}
    assert [met for *_, met in targets(base)] == [True, True, True, False, True, None]
    worse = base | {"video_psnr_db": 20.9, "action_error_ratio": 0.51, "success_rate": 0.29,
                    "export_max_abs_diff": 2e-4, "seconds": 721}
    assert [met for *_, met in targets(worse)] == [False] * 6
    assert targets(base | {"copy_last_psnr_db": None})[0][1] == "not measured"


def test_mixture_from_the_loaders_state():
    state = {"step": 10, "mixture": {"a": {"weight": 3.0}, "b": {"weight": 1.0}}, "positions": {"a": 74, "b": 26}}
    found = report.realised_mixture(state)
    assert found == {"a": {"asked": 0.75, "realised": 0.74}, "b": {"asked": 0.25, "realised": 0.26}}


def sampling(arm: str, **settings) -> dict[str, Schedule]:
    return Experiment(tiny_policy.config(arm=arm)).sampler(**settings).schedules()


def test_the_sampling_schedule_is_the_samplers_own():
    """Flash leaves the video at 0.8; a table says which steps run; LingBot-VA's loops have lengths of their own."""
    found = sampling("debug", solver_steps=16, video_final_sigma=0.8, skipping="5")
    assert [found[part].sigmas[-1] for part in ("video", "action")] == [pytest.approx(0.8), 0]
    assert all(np.flatnonzero(s.runs).tolist() == list(step_skipping.STATIC[5]) for s in found.values())
    assert all(len(s.sigmas) == 17 and (np.diff(s.sigmas) < 0).all() for s in found.values())
    assert sampling("debug", skipping="adaptive")["video"].runs is None
    whole = sampling("lingbot_va_debug", solver_steps=5, action_steps=7)
    assert {part: len(s.runs) for part, s in whole.items()} == {"video": 5, "action": 7}
    part = sampling("lingbot_va_debug", solver_steps=5, action_steps=7, executed_steps=4)["video"]
    np.testing.assert_allclose(whole["video"].sigmas[[0, -1]], [1, 0], atol=1e-6)
    np.testing.assert_allclose(part.sigmas, whole["video"].sigmas[:5], atol=1e-6)
    assert b"5 of 16 steps run the model" in re.sub(rb"<!-- (.*?) -->", rb"\1", figures.schedules(found))


def test_bar_stays_inside():
    assert "width: 100.0%" in report_page.bar(1.5) and "width: 0.0%" in report_page.bar(-1)


def make_run(path, rate, held_out=True):
    (path / "rollout").mkdir(parents=True)
    lines = [{"step": s, "video_loss": 2 / s, "action_loss": 1 / s} for s in range(1, 60)]
    if held_out:
        lines.append({"step": 59, "held_out/pusht/video_loss": 0.5, "held_out/video_loss": 0.5, "rollout/model_mse": 0.125,
                      "rollout/video_psnr_db": 20.0, "held_out/pusht/video_loss_sigma_0.00-0.25": 0.1})
        (path / "rollout" / "00000059.png").write_bytes(figures.png(np.zeros((4, 4, 3), np.uint8)))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 60, "vid')
    (path / "config.json").write_text(json.dumps({"optimizer": {"learning_rate": rate}}))
    return path


def test_a_run_that_goes_on_shows_its_curves_so_far(tmp_path):
    text = report.report(make_run(tmp_path / "run", 1.0)).read_text()
    assert "Training so far: step 59. There is no checkpoint yet." in text and "Rolled out after step 59" in text
    assert "<td>held_out/pusht/video_loss</td><td>59</td><td>0.5</td>" in text and "sigma" not in text
    assert text.count("data:image/svg+xml") == 1 and text.count("data:image/png") == 1


def test_runs_are_laid_side_by_side(tmp_path):
    runs = [str(make_run(tmp_path / name, rate, held)) for name, rate, held in (("a", 0.1, True), ("b", 0.2, False))]
    text = report.compare(runs, None).read_text()
    assert "<td>rollout/model_mse</td><td>0.125 (59)</td><td>&ndash;</td>" in text
    assert "optimizer.learning_rate is 0.1 in a, 0.2 in b" in text and text.count("data:image/svg+xml") == 1
    with pytest.raises(ValueError, match="wants the workdirs of two runs or more"):
        report.compare(runs[:1], None)
