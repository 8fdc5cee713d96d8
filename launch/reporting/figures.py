"""Pictures of a report as bytes: SVG plots and an animated comparison of videos (extra: report)."""

import contextlib
import io
from collections.abc import Collection

import numpy as np

from world_model.families.base.sampler import Schedule

TRUTH, MODEL, BASELINE, OTHER = "#1f2937", "#2563eb", "#d97706", "#9ca3af"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#6b7280", "axes.labelcolor": "#374151", "text.color": TRUTH, "xtick.color": "#374151",
    "ytick.color": "#374151", "grid.color": "#e5e7eb", "grid.linewidth": 0.8, "lines.linewidth": 1.8,
    "legend.frameon": False, "svg.hashsalt": "wamax",
}
VIDEO_COLUMNS = {"raw": "camera", "true": "through codec", "predicted": "predicted", "copy_last": "first held"}
PANEL = 128  # least width of a video panel, pixels
GAP = 6  # pixels between panels
FRAME_MS = 250  # duration of a frame, milliseconds


@contextlib.contextmanager
def figure(rows: int, columns: int, width: float, height: float, **options):
    """Opens a figure and yields (buffer, axes [rows, columns]); the buffer holds an SVG afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield buffer, figure.subplots(rows, columns, squeeze=False, **options)
        figure.savefig(buffer, format="svg", metadata={"Date": None})


def _losses_in(keys: Collection[str]) -> list[str]:
    return [name for name in ("video", "action") if name == "action" or f"{name}_loss" in keys]


def video_by_frame(video: dict) -> bytes:
    """Plots PSNR and SSIM by predicted frame."""
    curves = video["by_frame"]
    with figure(1, 2, 9, 2.9) as (buffer, axes):
        for axis, unit, label in zip(axes[0], ("psnr_db", "ssim"), ("PSNR, dB", "SSIM, 1 = equal")):
            for name, text, colour in (("codec", "codec against raw pixels", OTHER), ("video", "predicted", MODEL),
                                       ("copy_last", "copy of the first frame", BASELINE)):
                axis.plot(curves["frame"], _numbers(curves[f"{name}_{unit}"]), color=colour, label=text,
                          linestyle="--" if name == "codec" else "-")
            axis.set(title=f"{label} by frame", xlabel="frame", ylabel=label, xlim=(1, None))
            axis.legend(fontsize=7)
    return buffer.getvalue()


def action_errors(action: dict) -> bytes:
    """Plots the mean square error of actions by step of a block and by block."""
    names = (("predict_mean", "predict the mean", OTHER), ("repeat_last", "repeat the last command", BASELINE),
             ("model", "model", MODEL))
    with figure(1, 2, 9, 2.7, sharey=True) as (buffer, axes):
        for name, text, colour in names:
            axes[0, 0].plot(action["by_step"]["step"], _numbers(action["by_step"][name]), color=colour, label=text,
                            marker="o", markersize=3)
        for i, (name, text, colour) in enumerate(names):
            values = _numbers(action["by_block"][name])
            axes[0, 1].bar(np.arange(1, len(values) + 1) + 0.26 * (i - 1), values, 0.24, color=colour, label=text)
        axes[0, 0].set(title="action error by step of a block", xlabel="control step", ylim=(0, None),
                       ylabel="mean square, normalised")
        axes[0, 1].set(title="by block", xlabel="block", xticks=np.arange(1, len(values) + 1))
        for axis in axes[0]:
            axis.legend(fontsize=7)
    return buffer.getvalue()


def actions(arrays: dict, actions_per_block: int, windows: int = 4, dimensions: int = 4) -> bytes:
    """Plots true and predicted actions of some windows, a column per window and a row per real dimension."""
    used = np.flatnonzero(arrays["action_mask"].any((0, 1)))[:dimensions]
    shown = _choose_windows(arrays, windows)
    with figure(len(used), len(shown), 9, 0.6 + 1.5 * len(used), sharex=True, sharey="row") as (buffer, axes):
        for column, window in enumerate(shown):
            for row, slot in enumerate(used):
                axis, mask = axes[row, column], arrays["action_mask"][window, :, slot]
                for name, text, colour in (("actions", "true", TRUTH), ("predicted_actions", "predicted", MODEL)):
                    axis.plot(np.where(mask, arrays[name][window, :, slot], np.nan), color=colour, label=text)
                for start in range(actions_per_block, len(mask), actions_per_block):
                    axis.axvline(start - 0.5, color=OTHER, linewidth=0.8, linestyle=":")
                axis.set_ylim(-1.15, 1.15)
                if column == 0:
                    axis.set_ylabel(f"slot {slot}, normalised")
            axes[0, column].set_title(f"window {window}")
            axes[-1, column].set_xlabel("control step")
        for axis in axes.flat:
            axis.legend(loc="best", fontsize=7)
    return buffer.getvalue()


def _choose_windows(arrays: dict, count: int) -> list[int]:
    """Chooses windows evenly spread over those with actions, and so neither the best nor the worst."""
    real = np.flatnonzero(arrays["action_mask"].any((1, 2)))
    return real[np.linspace(0, len(real) - 1, min(count, len(real))).astype(int)].tolist()


def loss_by_level(loss: dict) -> bytes:
    """Plots the velocity errors on held-out windows by range of sigma."""
    names = _losses_in(loss)
    with figure(1, len(names), 9, 2.4) as (buffer, axes):
        for axis, name in zip(axes[0], names, strict=True):
            prefix = f"{name}_loss_sigma_"
            levels = {key.removeprefix(prefix): loss[key] for key in sorted(loss) if key.startswith(prefix)}
            axis.bar(range(len(levels)), list(levels.values()), 0.7, color=MODEL, label="model")
            axis.set(title=f"{name} error by noise level", xlabel="sigma (1 = noise)",
                     ylabel="mean square of velocities")
            axis.set_xticks(range(len(levels)), list(levels))
            axis.margins(y=0.2)  # the legend stands above the bars
            axis.grid(False, axis="x")
            axis.legend(fontsize=7)
    return buffer.getvalue()


def schedules(parts: dict[str, Schedule]) -> bytes:
    """Plots the noise level of each part by solver step: filled where the model runs, hollow where its last prediction
    is reused."""
    with figure(1, len(parts), 9, 2.6, sharey=True) as (buffer, axes):
        for axis, (part, (sigmas, runs)) in zip(axes[0], parts.items(), strict=True):
            step, ran = np.arange(len(sigmas)), np.array(runs or (True,) * (len(sigmas) - 1))
            axis.plot(step, sigmas, color=OTHER, linewidth=1)
            axis.plot(step[:-1][ran], sigmas[:-1][ran], "o", color=MODEL, markersize=5,
                      label="the model runs" if runs else "solver step")
            if not ran.all():
                axis.plot(step[:-1][~ran], sigmas[:-1][~ran], "o", color=MODEL, markerfacecolor="white", markersize=5,
                          label="its last prediction again")
            axis.plot(step[-1], sigmas[-1], "D", color=TRUTH, markersize=4, label="result")
            count = "decided on the way" if runs is None else f"{ran.sum()} of {len(ran)} steps run the model"
            axis.set(title=f"{part}: {count}", xlabel="solver step", ylim=(-0.05, 1.05))
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(loc="lower left", fontsize=7)
        axes[0, 0].set_ylabel("sigma (1 = noise)")
    return buffer.getvalue()


def _numbers(values: list) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], float)


def video_panels(arrays: dict, sets: int = 2) -> bytes:
    """Makes an animated WebP: for each window the columns VIDEO_COLUMNS, `sets` windows side by side."""
    from PIL import Image

    columns = [arrays[f"frames_{name}"] for name in VIDEO_COLUMNS]
    valid = arrays["frame_mask"][:len(columns[0])]
    columns = [np.where(valid[..., None, None, None], x, x // 4 + 160) for x in columns]  # padding is pale
    count, frames = columns[0].shape[:2]
    scale = max(1, -(-PANEL // columns[0].shape[3]))
    count -= count % sets if count > sets else 0
    images = []
    for t in range(frames):
        rows = [_panel_row([[x[i, t] for x in columns] for i in range(start, min(start + sets, count))], scale)
                for start in range(0, count, sets)]
        images.append(Image.fromarray(np.concatenate(rows)))
    buffer = io.BytesIO()
    durations = [3 * FRAME_MS, *[FRAME_MS] * (frames - 2), 4 * FRAME_MS][:frames]
    images[0].save(buffer, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, lossless=True)
    return buffer.getvalue()


def _panel_row(windows: list[list[np.ndarray]], scale: int) -> np.ndarray:
    """Puts the panels of some windows in one row, enlarged pixel by pixel, on white."""
    parts = []
    for i, panels in enumerate(windows):
        for j, panel in enumerate(panels):
            big = panel.repeat(scale, 0).repeat(scale, 1)
            gap = GAP * 4 if i and not j else GAP if j else 0
            parts += [np.full((big.shape[0], gap, 3), 255, np.uint8), big]
    row = np.concatenate(parts, axis=1).astype(np.uint8)
    return np.concatenate([row, np.full((GAP, row.shape[1], 3), 255, np.uint8)])


def strips(arrays: dict, frames: int = 8, width: int = 160) -> np.ndarray:
    """Pictures uint8 [H, W, 3] of windows: three rows each, through the codec, predicted, and the first frame held; in
    columns `frames` moments from first to last. Pictures wider than `width` are thinned out."""
    rows = []
    for video in zip(*(arrays[f"frames_{name}"] for name in ("true", "predicted", "copy_last")), strict=True):
        moments = np.linspace(0, len(video[0]) - 1, min(frames, len(video[0]))).astype(int)
        thin = -(-video[0].shape[2] // width)
        rows += [np.concatenate(one[moments, ::thin, ::thin], axis=1) for one in video]
        rows.append(np.full((GAP, *rows[-1].shape[1:]), 255, np.uint8))
    return np.concatenate(rows[:-1])


def grid(rows: list[np.ndarray], gap: int) -> np.ndarray:
    """One picture of rows of frames, each uint8 [n, H, W, 3], with so many white pixels behind each frame."""
    framed = (np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for row in rows)
    return np.concatenate([np.concatenate(row, axis=1) for row in framed])


def png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 3] as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
