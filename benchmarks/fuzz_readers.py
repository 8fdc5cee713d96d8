"""The readers that benchmarks/fuzz.py tries, each with the small valid inputs that it damages."""

import dataclasses
import hashlib
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from openpi_client import msgpack_numpy
from PIL import Image

from data_pipelines.cache.format import CacheError, record_fields
from data_pipelines.cache.reader import LatentCache
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.episode import BadEpisode
from data_pipelines.loader import STATE
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.simulators import recorder
from data_pipelines.sources import make_source
from data_pipelines.sources.filters import Filters
from data_pipelines.sources.video_files import read_list
from data_pipelines.statistics.stored import save_statistics
from data_pipelines.video import pictures
from launch.exporting import exported
from launch.reporting import comparison
from launch.serving import wire
from launch.serving.messages import BadRequest
from launch.serving.protocols import PROTOCOLS
from launch.setup import provenance
from launch.setup.experiment import Experiment
from launch.setup.restore import restored_config
from launch.supervision import ledger
from launch.supervision.sweep_runs import Run
from tests import tiny_policy
from tests.lerobot_files import FIXTURES, open_source
from world_model import kinds
from world_model.batch import Layout, encoded_batch_spec
from world_model.families.dreamzero.weights import formats, reference_format
from world_model.families.lingbot_va.weights import released_format as lingbot_va
from world_model.families.lingbot_vla.weights import released_format as lingbot_vla
from world_model.training import checkpoint, records
from world_model.weights import safetensors_io

SPEC = encoded_batch_spec(Layout(5, 8, 8, 1, 4, 1), action_dim=3, state_dim=2, text=(4, 6), latent=(2, 2, 3))


def put_back(folder: Path, name: str, original: bytes) -> None:
    """Makes the damaged file whole again."""
    (folder / name).write_bytes(original)


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads, and what it may be given."""

    name: str
    inputs: tuple[tuple[str, str], ...]  # (file, form of fuzz.changed)
    make: Callable[[Path], None]  # writes the valid files
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    says: tuple[str, ...] = ()  # an error's message holds the folder's path, or one of these
    prepare: Callable[[Path, str], None] | None = None  # what follows from the file that was damaged
    restore: Callable[[Path, str, bytes], None] = put_back


# --- recordings ----------------------------------------------------------------------------------------------------


def make_lerobot(version: str) -> Callable[[Path], None]:
    """Copies a fixture, with the two files that it lacks."""
    def make(folder: Path) -> None:
        shutil.copytree(FIXTURES / version, folder, dirs_exist_ok=True)
        (folder / "meta/modality.json").write_text(json.dumps({
            "state": {"all": {"start": 0, "end": 8, "original_key": "observation.state"}},
            "action": {"all": {"start": 0, "end": 8}}, "video": {"front": {}}}))
        (folder / "meta/stats.json").write_text(json.dumps({
            "action": {key: list(range(8)) for key in ("mean", "std", "min", "max")}}))

    return make


def read_lerobot(folder: Path) -> None:
    """Everything but pictures."""
    source = open_source(folder, state="all", action="all", described=True)
    source.published("action"), source.stretches(), source.lengths()
    for index in range(min(len(source), 4)):
        assert len(source[index].state) == source[index].length


def make_rlds(folder: Path) -> None:
    """An episode of three steps."""
    recording = recorder.Recording(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 2), np.float32),
                                   np.zeros((3, 2), np.float32), np.zeros(3, np.float32), "push", True)
    recorder.write_rlds(folder / "rlds", "toy", 8, (2, 2), [recorder.rlds_steps(recording)])


def read_rlds(folder: Path) -> None:
    """An episode with its pictures."""
    source = make_source("rlds", "toy", path=str(folder / "rlds"), schema="generic", rate=5)
    source.lengths()
    source[0].read_frames(np.array([0, 2]))


def make_lists(folder: Path) -> None:
    """Keep files, lists of clips and a picture."""
    (folder / "keep.json").write_text(json.dumps({"0": [[0, 3]], "1": [[0, 1]], "2": [[1, 4], [6, 8]]}))
    (folder / "keep.jsonl").write_text('{"episode_index": 0, "step_indices": [2, 3]}\n')
    (folder / "list.jsonl").write_text('{"file": "a.mp4", "caption": "x"}\n{"file": "b/c.mp4"}\n')
    pq.write_table(pa.table({"file": ["a.mp4", "b.mp4"], "caption": ["x", None]}), folder / "list.parquet")
    for form in ("png", "jpeg"):
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / f"picture.{form}")


def read_lists(folder: Path) -> None:
    """All of them."""
    for name in ("keep.json", "keep.jsonl"):
        Filters(keep=str(folder / name)).stretches(np.array([5, 1, 8]), np.ones(3, np.bool_), ["0", "1", "2"])
    for name in ("list.jsonl", "list.parquet"):
        read_list(str(folder / name))
    for form in ("png", "jpeg"):
        pictures.decode((folder / f"picture.{form}").read_bytes(), "a picture")


# --- latent caches -------------------------------------------------------------------------------------------------


def make_cache(folder: Path) -> None:
    """Three shards of two windows, of three episodes."""
    writer = CacheWriter(str(folder), {"identity": {"a": 1}, "encoders": ""}, SPEC, 2)
    row = {name: np.ones(shape, dtype) for name, (shape, dtype) in record_fields(SPEC).items()}
    for shard in range(3):
        writer.write_shard("d", shard, iter([row, "unreadable"]))
    writer.write_texts("abc", lambda prompt: np.ones((3, 6)))
    writer.write_index("d", lengths=np.arange(3), rates=np.ones(3), kept=np.zeros((3, 3), np.int64), text=np.arange(3),
                       later=np.array([[1, 1, 2]]))
    save_encoders(str(folder), {"video.mean": np.ones(2, np.float32)})
    save_statistics({"d": {"embodiment": "pusht", "actions_per_block": 4}}, f"{folder}/statistics.json")
    assert writer.finish({"d": 6})
    shutil.copy(folder / "_SUCCESS", folder / "_SUCCESS.kept")


def rehash(folder: Path, name: str) -> None:
    """Writes the hash of a damaged file down, so that what reads it meets the damage."""
    if name != "_SUCCESS":
        data, success = (folder / name).read_bytes(), json.loads((folder / "_SUCCESS").read_text())
        success["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "_SUCCESS").write_text(json.dumps(success))


def restore_cache(folder: Path, name: str, original: bytes) -> None:
    """Makes both files whole again."""
    put_back(folder, name, original)
    shutil.copy(folder / "_SUCCESS.kept", folder / "_SUCCESS")


def read_cache(folder: Path) -> None:
    """Everything."""
    cache = LatentCache(str(folder), {"a": 1}, SPEC)
    cache.statistics(), cache.encoders(["video"]), list(cache.verify())
    source = cache.source("d", lambda: None)
    assert (source.lengths() >= 0).all() and source.stretches().shape[1] == 3
    for window in (0, 2):
        cache.read("d", window, 1, 2)


# --- weights, exports, checkpoints ---------------------------------------------------------------------------------


def make_weights(folder: Path) -> None:
    """Two shards."""
    tensors = {f"layer{i}.weight": np.ones((2, 3), np.float32) for i in range(4)} | {"half": np.ones(2, np.float16)}
    safetensors_io.write(folder, tensors.items(), shard_bytes=60)
    assert sum(1 for _ in folder.glob("model-*-of-00002.safetensors")) == 2


def read_weights(folder: Path) -> None:
    """Every tensor."""
    for array in safetensors_io.Weights(folder).values():
        assert array.nbytes < 2**20


def _spec(arm: str):
    return Experiment(tiny_policy.config(arm=arm)).model.spec


def make_exports(folder: Path) -> None:
    """What stands beside the weights, of three families."""
    spec, other = _spec("debug"), _spec("lingbot_va_debug")
    (folder / "config.json").write_text(json.dumps(reference_format.config(spec, {"steps": 4}, {})))
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(lingbot_va.config(other)))
    (folder / "wamax.json").write_text(json.dumps({"family": "lingbot_va", "rollout": {}, "spec": dataclasses.asdict(
        other) | {"layout": other.layout.as_json()}}))
    (folder / "statistics.json").write_text(json.dumps({"toy": {
        "embodiment": "pusht", "actions_per_block": 4, "episodes": None, "state": None,
        "action": {key: [0.0, 1.0] for key in ("mean", "std", "q01", "q99")}}}))
    (folder / "provenance.json").write_text(json.dumps({
        "family": "dreamzero", "step": 3, "base": None, "config": provenance.as_json(tiny_policy.config())}))
    (folder / "lingbotvla_cli.yaml").write_text(json.dumps({
        "model": {}, "train": {"vlm_causal": True, "align_params": {"num_task_tokens": 8, "depth": {}}},
        "data": {"joints": ["{'arm.position': 14}", "{'effector.position': 2}"]}}))
    (folder / "norm_stats.json").write_text(json.dumps({"count": 3, "norm_stats": {
        f"{part}.{group}": {key: [0.5] * count for key in ("mean", "std", "q01", "q99")}
        for part in ("action", "observation.state")
        for group, count in (("arm.position", 12), ("effector.position", 2))}}))


def read_exports(folder: Path) -> None:
    """All that is read of an export but its tensors."""
    from world_model.families.dreamzero.torch.loading import read_config

    settings = read_config(folder)
    kinds.make(Layout, settings["layout"], f"{folder}/config.json: layout")
    formats._has_zero_image_branch(folder)
    spec, _, _ = lingbot_va.read_settings(folder)
    lingbot_va.check_config(folder / "transformer", spec)
    exported.read_statistics(folder)
    Experiment(restored_config(exported.read_provenance(folder)["config"], f"{folder}/provenance.json: config"))
    lingbot_vla.read_statistics(1, folder / "norm_stats.json", folder, get_embodiment("robotwin_joints_75"), 8)


def make_checkpoint(folder: Path) -> None:
    """The JSON of a step."""
    state = {"params": {"a.kernel": np.zeros((2, 3), np.float32)}, "step": np.int32(1)}
    meta = checkpoint.make_meta(state, {"video": {"mean": np.zeros(3)}, "text": {}}, family="dreamzero",
                                config=provenance.as_json(tiny_policy.config()), statistics={}, statistics_hash="",
                                code_version="", base={"format": "wan", "base_hash": "aa"})
    data = {"step": 1, "positions": {"toy": 8}, "mixture": {"toy": {"weight": 1.0}},
            "bad": {"toy/3": {"count": 1, "reason": "x"}}}
    for item, value in (("meta", meta), ("data", data)):
        (folder / "1" / item).mkdir(parents=True)
        (folder / "1" / item / "metadata").write_text(json.dumps(value))
    (folder / "now.json").write_text(json.dumps(meta))


def read_checkpoint(folder: Path) -> None:
    """All that is read of a checkpoint but its arrays."""
    meta = checkpoint.read_json(folder, 1, "meta")
    checkpoint.check_resume(meta, json.loads((folder / "now.json").read_text()))
    assert all(np.dtype(dtype).itemsize for dtype, _ in meta["arrays"].values())
    kinds.check(checkpoint.read_json(folder, 1, "data"), STATE, "the checkpoint's data")
    Experiment(restored_config(meta["config"], f"{folder}, step 1: config"))


def make_workdir(folder: Path) -> None:
    """What runs and sweeps leave."""
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 0.5, "samples_per_second": 3.0}\n' * 2)
    seconds = dict.fromkeys(ledger.PHASES, 1.0)
    (folder / "goodput.jsonl").write_text("".join(json.dumps(
        {"attempt": attempt, "time": 5.0, "step": 10, "seconds": seconds}) + "\n" for attempt in (1.0, 1.0, 2.0)))
    (folder / "measured.json").write_text('{"evaluation.json": "aa"}')
    (folder / "config.json").write_text('{"train": {"global_batch_size": 4}}')
    (folder / "evaluation.json").write_text(json.dumps({
        "step": 3, "action": {"error_ratio": 0.5}, "video": {"video_psnr_db": 20.0, "copy_last_psnr_db": 10.0}}))


def read_workdir(folder: Path) -> None:
    """All of it."""
    comparison._seconds(folder)
    records.drop_lines_after(folder / "metrics.jsonl", 15)
    ledger.summarize(ledger.read_attempts(folder / "goodput.jsonl"))
    Run("a", 0, "a.py", {}, {}, folder, []).measurements()
    found = kinds.read(folder / "evaluation.json", comparison.OPEN_LOOP.rule)
    assert all(isinstance(read(found), float | int | None) for read in comparison.OPEN_LOOP.metrics.values())


# --- the server ----------------------------------------------------------------------------------------------------


def protocol(name: str):
    """A protocol of the server, for a robot that it fits."""
    robot = {"openpi": "pusht", "dreamzero": tiny_policy.DROID, "lingbot_va": "robotwin_dual_arm",
             "lingbot_vla": "robotwin_joints_75"}[name]
    size = {"image_size": (8, 8)} if name == "openpi" else {}
    return PROTOCOLS[name](types.SimpleNamespace(embodiment=get_embodiment(robot), layout=Layout(9, 8, 8, 1, 4, 1),
                                                 horizon=4), **size)


def make_messages(name: str) -> Callable[[Path], None]:
    """A valid message of each kind."""
    def make(folder: Path) -> None:
        known, view = protocol(name), np.zeros((8, 8, 3), np.uint8)
        cameras = dict.fromkeys(getattr(known, "cameras", {}).values(), view)
        wide = dict.fromkeys(getattr(known, "VIEWS", ()), np.zeros((180, 320, 3), np.uint8))
        sent = {"openpi": [{"observation/image": np.stack([view] * 4), "observation/state": np.zeros(2, np.float32),
                            "prompt": "push", "session_id": "a", "step": 3, "reset": False, "release": False,
                            "actions_in_flight": np.zeros((2, 2), np.float32)}],
                "dreamzero": [{"endpoint": "infer", "prompt": "pick", "session_id": "a", **wide, "observation/"
                               "joint_position": np.zeros((1, 7)), "observation/gripper_position": np.zeros(1)},
                              {"endpoint": "reset", "session_id": "a"}],
                "lingbot_va": [{"reset": True, "prompt": "x", "imagine": False}, {"obs": cameras, "prompt": "x"},
                               {"compute_kv_cache": True, "obs": [cameras] * 4, "state": np.zeros((16, 1, 4))}],
                "lingbot_vla": [{"reset": True, "robo_name": "a"}, {**cameras, "task": "x", "observation.state":
                                                                    np.zeros(14, np.float32)}]}[name]
        for i in range(3):
            (folder / f"{i}").write_bytes(msgpack_numpy.packb(sent[i % len(sent)]))

    return make


def read_messages(name: str) -> Callable[[Path], None]:
    """What the server does with a message before the model is asked."""
    known = []

    def read(folder: Path) -> None:
        known or known.append(protocol(name))
        for i in range(3):
            known[0].parse(wire.unpack((folder / f"{i}").read_bytes()))

    return read


def _of(form: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, form) for name in names)


_V30 = ("meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet")
READERS = {reader.name: reader for reader in (
    Reader("lerobot_v21", _of("json", "meta/info.json", "meta/stats.json", "meta/modality.json")
           + _of("lines", "meta/episodes.jsonl", "meta/tasks.jsonl"), make_lerobot("lerobot_v21"), read_lerobot,
           (ValueError, OSError, BadEpisode), ("dataset 'discs'",)),
    Reader("lerobot_v30", _of("json", "meta/info.json", "meta/stats.json") + _of("bytes", *_V30),
           make_lerobot("lerobot_v30"), read_lerobot, (ValueError, OSError, BadEpisode), ("dataset 'discs'",)),
    Reader("tables", _of("bytes", *(f"data/chunk-000/episode_{i:06d}.parquet" for i in range(4))),
           make_lerobot("lerobot_v21"), read_lerobot, (BadEpisode,)),
    Reader("rlds", _of("json", "rlds/features.json", "rlds/dataset_info.json"), make_rlds, read_rlds,
           (ValueError, OSError, BadEpisode)),
    Reader("lists", _of("json", "keep.json") + _of("lines", "keep.jsonl", "list.jsonl")
           + _of("bytes", "list.parquet", "picture.png", "picture.jpeg"), make_lists, read_lists,
           (ValueError, OSError, BadEpisode), ("a picture",)),
    Reader("caches", _of("json", "_SUCCESS", "manifest.json", "statistics.json")
           + _of("safetensors", "d/index.safetensors", "encoders.safetensors"), make_cache, read_cache,
           (CacheError, BadEpisode), prepare=rehash, restore=restore_cache),
    Reader("weights", _of("json", "model.safetensors.index.json")
           + _of("safetensors", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))), make_weights,
           read_weights, (safetensors_io.WeightsError,)),
    Reader("exports", _of("json", "config.json", "transformer/config.json", "wamax.json", "provenance.json",
                          "statistics.json", "lingbotvla_cli.yaml", "norm_stats.json"), make_exports, read_exports,
           (ValueError,), ("model.family",)),
    Reader("checkpoints", _of("json", "1/meta/metadata", "1/data/metadata"), make_checkpoint, read_checkpoint,
           (checkpoint.CheckpointError, ValueError), ("checkpoint", "model.family")),
    Reader("workdirs", _of("json", "measured.json", "evaluation.json", "config.json")
           + _of("lines", "metrics.jsonl", "goodput.jsonl"), make_workdir, read_workdir, (ValueError,)),
    *(Reader(f"messages_{name}", _of("msgpack", "0", "1", "2"), make_messages(name), read_messages(name),
             (wire.WireError, BadRequest), ("",)) for name in PROTOCOLS))}
