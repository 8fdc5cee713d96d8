"""The LeRobot fixtures, where their files are, and the robot that reads them.

The datasets were written by lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0). Frame t of episode e has a background of red
40 + 40 e and a disc of blue 4 t mod 255, before AV1; camera `wrist` is `front` turned by 180 degrees.
"""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.robots.embodiment import Dimension, Embodiment
from data_pipelines.sources import make_source
from world_model.batch import Layout, batch_spec

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("lerobot_v21", "lerobot_v30")
LENGTHS = [37, 61, 40, 9]
TASKS = [f"move the disc {where}" for where in ("left", "right", "up", "down")]
FIELDS = {"images": {"front": "observation.images.front", "wrist": "observation.images.wrist"},
          "state": "observation.state", "action": "action"}
ROBOT = Embodiment(
    name="discs", id=9, views=("front", "wrist"), view_layout="side_by_side", rate=15.0,
    state=tuple(Dimension(f"s{i}", i) for i in range(8)),
    action=tuple(Dimension(f"a{i}", i, relative_to=f"s{i}") for i in range(8)))
LAYOUT = Layout(frames=9, height=48, width=128, frames_per_block=2, actions_per_block=24, states_per_block=1)
BATCH = batch_spec(LAYOUT, action_dim=32, state_dim=64, text_length=8)


def open_source(folder, **changes):
    return make_source("lerobot", "discs", path=str(folder), **{**FIELDS, **changes})


def copied(version: str, folder: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(FIXTURES / version, folder / version)


def table_of(folder: Path, episode: int) -> Path:
    return folder / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_of(folder: Path, episode: int, camera: str = "front") -> Path:
    return folder / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def change_column(file: Path, name: str, change) -> None:
    table = pq.read_table(file)
    column = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), file)
