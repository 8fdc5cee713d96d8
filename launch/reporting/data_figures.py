"""Pictures of data as bytes: sample windows, action curves, histograms (extra: report)."""

import io

import numpy as np

from launch.reporting.figures import BASELINE, MODEL, OTHER, figure


def pictures(sample: dict, count: int = 5) -> np.ndarray:
    """Returns what a filmstrip shows of a sample, uint8 [n, H, W, 3]: `count` frames spread over its video or, where
    cameras stand apart, a picture of each; those that the robot lacks are blank."""
    if "views" in sample:
        return sample["views"]
    return sample["video"][np.linspace(0, len(sample["video"]) - 1, count).astype(int)]


def filmstrip(windows: list[np.ndarray], width: int = 180) -> bytes:
    """Makes a PNG: a row per window uint8 [frames, H, W, 3], its frames side by side, `width` pixels each."""
    from PIL import Image

    height = width * windows[0].shape[1] // windows[0].shape[2]
    sheet = Image.new("RGB", (len(windows[0]) * (width + 4) - 4, len(windows) * (height + 4) - 4), "white")
    for row, frames in enumerate(windows):
        for column, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame).resize((width, height)), (column * (width + 4), row * (height + 4)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def action_curves(names: list[str], recorded: np.ndarray, normalised: np.ndarray, back: np.ndarray,
                  starts: list[int]) -> bytes:
    """Plots actions as SVG, a row per dimension: left as recorded and as they come back, right as the model sees them.

    recorded, normalised, back: [steps, dims]; starts: steps at which blocks begin.
    """
    with figure(len(names), 2, 9, 1.1 * len(names) + 0.6, sharex=True) as (buffer, axes):
        for i, (name, (left, right)) in enumerate(zip(names, axes)):
            left.plot(recorded[:, i], color=OTHER, linewidth=3.5, label="recorded")
            left.plot(back[:, i], color=MODEL, linewidth=1, label="there and back")
            right.plot(normalised[:, i], color=BASELINE, linewidth=1.2, label="as the model sees them")
            right.set(ylim=(-1.1, 1.1))
            left.set_ylabel(name, rotation=0, ha="right", va="center")
            for start in starts:
                right.axvline(start, color=OTHER, linewidth=0.6)
        axes[0, 0].set_title("robot units")
        axes[0, 1].set_title("normalised, by block")
        for axis in axes[0]:
            axis.legend(fontsize=7, loc="upper right")
        for axis in axes[-1]:
            axis.set_xlabel("control step")
    return buffer.getvalue()


def histograms(names: list[str], before: np.ndarray, after: np.ndarray) -> bytes:
    """Plots each dimension's distribution as SVG, in robot units and normalised; both arrays are [values, dims]."""
    with figure(len(names), 2, 9, 0.9 * len(names) + 0.6) as (buffer, axes):
        for i, (name, (left, right)) in enumerate(zip(names, axes)):
            left.hist(before[:, i], 60, color=OTHER)
            right.hist(after[:, i], 60, range=(-1, 1), color=MODEL)
            left.set_ylabel(name, rotation=0, ha="right", va="center")
            for axis in (left, right):
                axis.set_yticks([])
        axes[0, 0].set_title("robot units, relative where declared")
        axes[0, 1].set_title("normalised")
    return buffer.getvalue()
