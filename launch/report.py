"""The results of a run as a page that a person can look at, and as a summary for programs.

    python -m launch.report --workdir=runs/quickstart [--step=1000]
    python -m launch.report --compare [--out=DIR] DIR DIR ...

Writes WORKDIR/report/index.html, self-contained: with WORKDIR's evaluation of the newest checkpoint (launch.evaluate)
what was reached, also in a simulator (launch.rollout), and WORKDIR/report/summary.json beside it; without one, as of a
run that goes on, the curves so far. --compare lays runs side by side in OUT/compare.html (default OUT: the first
DIR/report). Numbers that only `make quickstart` measures (whole time, resume, export) are kept from an earlier
summary.json, or null. Extra: report.
"""

import html
import json
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines.loader import STATE
from data_pipelines.mixture import asked_fractions
from data_pipelines.storage import files
from launch.reporting import acting, curves, figures, report_page
from launch.reporting.comparison import EVALUATION
from launch.reporting.summary import make_summary, targets
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from world_model import kinds
from world_model.families.base.sampler import Schedule
from world_model.training import checkpoint
from world_model.training.records import read_records

MEASURED_OUTSIDE = ("seconds", "resume_bitwise", "export_max_abs_diff")


def write_report(workdir: Path | str, summary: dict, evaluation: dict, arrays: dict, metrics: list[dict],
                 mask: tuple[np.ndarray, dict] | None, mixture: dict, schedules: dict[str, Schedule],
                 acted: acting.Acted | None = None) -> Path:
    """Writes WORKDIR/report/index.html and summary.json; returns the page's path.

    evaluation, arrays: of `evaluate.evaluate`; metrics: records of metrics.jsonl; mask: (uint8 [n, n, 3], {name:
    colour}), None where the family renders none; summary, mixture: as `make_summary` makes and takes; schedules: of the
    sampler that was evaluated; acted: in a simulator.
    """
    out = Path(workdir) / "report"
    out.mkdir(parents=True, exist_ok=True)
    verdicts = [met for *_, met in targets(summary) if met is not None]
    lead = (f"Step {evaluation['step']}, {evaluation['windows']} held-out windows, "
            f"{evaluation['solver']['solver_steps']} denoising steps. "
            f"{sum(verdicts)} of {len(verdicts)} measured targets met.")
    actions_per_block = len(evaluation["action"]["by_step"]["step"])
    sections = [
        _results(summary), *([acting.section(acted)] if acted else []),
        *([_video(evaluation["video"], arrays)] if "video" in evaluation else []),
        report_page.section(
            "Actions", report_page.text(
                "Each block's actions are predicted at once, with the real video before the block. Normalised units: "
                "-1 and 1 are the training data's 1% and 99% quantiles. Windows are spread evenly over the held-out "
                "ones, not chosen. Repeating the last command is unknown in the first block."),
            _plot(figures.actions(arrays, actions_per_block), "true and predicted actions of held-out windows"),
            _plot(figures.action_errors(evaluation["action"]), "action error by horizon")),
        report_page.section(
            "Sampling", report_page.text("How each block is denoised: the noise level before every solver step."),
            _plot(figures.schedules(schedules), "noise level by solver step")),
        report_page.section(
            "Training", _plot(curves.plot_run(metrics), "losses by step, of training and held out"),
            report_page.text("On held-out windows, by noise level (mean square error of the velocity, unweighted):"),
            _plot(figures.loss_by_level(evaluation["loss"]), "held-out errors by noise level")),
        _inputs(mask, mixture)]
    page = out / "index.html"
    files.write_text(str(page), report_page.page(f"World-action model: {Path(workdir).name}", lead, sections))
    files.write_text(f"{out}/summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return page


def _results(summary: dict) -> str:
    mark = {True: '<span class="met">met</span>', False: '<span class="missed">missed</span>', None: "&ndash;"}
    rows = [[html.escape(what), reached, target, mark[met]] for what, reached, target, met in targets(summary)]
    video = [f"Video {_number(summary['video_psnr_db'], 'dB')}, copy of the first frame "
             f"{_number(summary['copy_last_psnr_db'], 'dB')}, codec alone {_number(summary['codec_psnr_db'], 'dB')}"
             ] if "video_psnr_db" in summary else []
    note = "; ".join([*video, _number(summary["samples_per_second"], "training samples per second")])
    return report_page.section("Results", report_page.table(["measure", "reached", "target", ""], rows),
                               f'<p class="note" style="margin-top: 10px">{note}.</p>')


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.2f} {unit}"


def _video(video: dict, arrays: dict) -> str:
    windows = len(arrays["frames_true"])
    sets = min(2, windows)
    return report_page.section(
        "Video", report_page.text(
            "From the first frame, the instruction and (if the family takes states) one measured state per block, "
            "everything else is rolled out: the model sees its own video, never the real one. Prediction and held "
            "first frame are compared to the real video after the same codec. Frames past an episode's end are pale."),
        report_page.heads([*figures.VIDEO_COLUMNS.values()] * sets),
        report_page.image(figures.video_panels(arrays, sets), "webp", "real, predicted and copied video", pixels=True),
        _plot(figures.video_by_frame(video), "PSNR and SSIM by frame"))


def _inputs(mask: tuple[np.ndarray, dict] | None, mixture: dict) -> str:
    rows = [[html.escape(name), f"{part['asked']:.1%}", f"{part['realised']:.2%}", report_page.bar(part["realised"])]
            for name, part in mixture.items()]
    table = report_page.table(["dataset", "asked", "drawn", ""], rows)
    if mask is None:
        return report_page.section("Mixture", table)
    picture, colours = mask
    return report_page.section(
        "Mixture and mask", '<div class="two"><div>', table, "</div>", "<div>", report_page.legend(colours),
        report_page.image(figures.png(picture), "png", "attention mask", pixels=True, caption=(
            "Who sees whom: queries from top to bottom, keys from left to right, one cell per latent frame or "
            "per block's actions and states.")), "</div>", "</div>")


def _plot(svg: bytes, alt: str) -> str:
    return report_page.image(svg, "svg+xml", alt)


def render_mask(restored: Restored) -> tuple[np.ndarray, dict] | None:
    """(uint8 [n, n, 3], {name: colour}): who sees whom in the training forward; None where the family renders none."""
    experiment = restored.experiment
    render = experiment.family.render_mask
    return render(experiment.model.module) if render else None


def realised_mixture(data_state: dict) -> dict[str, dict[str, float]]:
    """{dataset: {"asked", "realised"}} fractions, from the loader's state in a checkpoint."""
    asked = asked_fractions({name: part["weight"] for name, part in data_state["mixture"].items()}, data_state["step"])
    draws = data_state["positions"]
    return {name: {"asked": share, "realised": draws[name] / max(1, sum(draws.values()))}
            for name, share in asked.items()}


def report(workdir: Path | str, step: int | None = None, **measured) -> Path:
    """The report of what WORKDIR holds; `measured`: keywords of `make_summary`, kept from before where left out.

    Raises ValueError where there is no evaluation of the `step` that was asked for.
    """
    workdir = Path(workdir)
    if missing := missing_evaluation(workdir, step):
        if step is not None:
            raise ValueError(missing)
        page = workdir / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        files.write_text(str(page), curves.page_so_far(workdir, missing))
        return page
    restored, evaluation = restore(workdir, step), kinds.read(workdir / "evaluation.json", EVALUATION)
    with np.load(workdir / "evaluation.npz") as found:
        arrays = dict(found)
    earlier = workdir / "report" / "summary.json"
    before = kinds.read(earlier, kinds.MAP) if earlier.exists() else {}
    if before.get("steps") == restored.step:
        measured = {key: before.get(key) for key in MEASURED_OUTSIDE} | measured
    records = read_records(workdir / "metrics.jsonl")
    data = checkpoint.read_json(workdir / "checkpoints", restored.step, "data")
    mixture = realised_mixture(kinds.check(data, STATE, "the checkpoint's data"))
    acted = acting.read(workdir, restored.step)
    summary = make_summary(evaluation, records, mixture, success_rate=acted and acted.success_rate, **measured)
    return write_report(workdir, summary, evaluation, arrays, records, render_mask(restored), mixture,
                        restored.experiment.sampler().schedules(), acted)


def missing_evaluation(workdir: Path, step: int | None) -> str | None:
    """A sentence where WORKDIR has no evaluation of a step (default: its newest checkpoint's); None where it has."""
    file, directory = workdir / "evaluation.json", workdir / "checkpoints"
    there = checkpoint.steps(directory) if directory.is_dir() else []
    if step is None and not there:
        return "There is no checkpoint yet."
    wanted = checkpoint.locate(directory, step)
    found = kinds.read(file, EVALUATION)["step"] if file.exists() else None
    if found == wanted:
        return None
    what = "there is no evaluation yet" if found is None else f"{file} is of step {found}"
    return f"Checkpoint of step {wanted}, but {what}: python -m launch.evaluate --workdir={workdir} --step={wanted}"


def compare(workdirs: list[str], out: str | None) -> Path:
    """Writes OUT/compare.html of several runs. Raises ValueError where there are not two."""
    if len(workdirs) < 2:
        raise ValueError("--compare wants the workdirs of two runs or more: python -m launch.report --compare DIR DIR")
    page = Path(out or Path(workdirs[0]) / "report") / "compare.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(str(page), curves.page_of_runs([Path(each) for each in workdirs]))
    return page


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    if args.out and not args.compare:
        raise ValueError("--out is of --compare; a run's report goes into its workdir")
    if args.compare:
        print(compare(argv[1:], args.out))
    elif args.workdir:
        print(report(args.workdir, args.step))
    else:
        raise ValueError("--workdir=DIR, or --compare DIR DIR ...")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    flags.DEFINE_string("workdir", None, "directory of the training run, with its evaluation")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.DEFINE_bool("compare", False, "lay the runs side by side whose workdirs follow")
    flags.DEFINE_string("out", None, "folder of compare.html; default: the first run's report")
    launch_flags.run(main, checkpoint.CheckpointError, arguments=True)
