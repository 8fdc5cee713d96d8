"""Makes a checkpoint of published weights, for `launch.train --config.train.init_from=OUT` to start from.

    python -m launch.import_weights --format=wan --source=DIR --config=configs/NAME.py --out=OUT [--dry_run]

Each family brings its formats; formats.py in its folder says where their files are expected. All names and shapes on
both sides are checked before any data is read; --dry_run stops there. Then tensors go one at a time from file to file,
so that memory holds a few of them and never a shard. What the source lacks is initialised by the format's rules and
--config.seed, and printed; --fit='action_(en|de)coder=slice' says what to do with tensors of another size: slice (the
leading part), pad_zero or fresh. A LoRA checkpoint (with --config.model.lora_rank) holds its base or is put on --base:
on the one that it names, if it names one. --statistics=FILE is normalisation as it is published, for the robots of
data.datasets; OUT can then be served. Pickles (.pth, .bin) are read with --allow_pickle, by torch's weights_only
unpickler. OUT is a workdir with a checkpoint of weights alone at step 0 and import.json, which tells where each came
from; of an export of ours, the frozen encoders and the normalisation come along. It appears when it is whole.
"""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from data_pipelines.robots.embodiments import get_embodiment
from launch.exporting import exported
from launch.setup import flags as launch_flags
from launch.setup import mixture
from launch.setup.experiment import Experiment
from launch.setup.initial import check_encoders
from launch.setup.resume import make_meta
from world_model.families import all_families, get_family
from world_model.families.base.family import Family, Model
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError
from world_model.training.checkpoint_writer import Checkpoints
from world_model.training.state import subset
from world_model.weights import conversion
from world_model.weights.formats import PublishedFormat
from world_model.weights.safetensors_io import WeightsError, atomic_directory

LARGE = 2**26  # elements of a fresh parameter that is not kept beside others (256 MiB)


def import_weights(config, format_name: str, source: Path | str, out: Path | str | None,
                   fits: dict[str, str] | None = None, base: tuple[str, Path | str] | None = None,
                   allow_pickle: bool = False, statistics: Path | str | None = None) -> dict:
    """Writes `out` (nothing where it is None) and returns what import.json holds. base: (format, directory) of the
    weights under a source that holds adapters alone. allow_pickle: of source and base. statistics: file of published
    normalisation; by default those that an export of ours has beside the weights.

    Raises WeightsError or ValueError where the source does not fit the config, CheckpointError where writing fails.
    """
    family = get_family(config.model.family)
    published = format_of(family, format_name)
    opened = published.open(source, allow_pickle)
    if base:
        opened = opened.over(format_of(family, base[0]).open(base[1], allow_pickle))
    model = Experiment(config).model
    plan = conversion.make_plan(opened, model.shapes, model.spec, fits)
    known = read_statistics(published, Path(statistics), opened.directory, config) if statistics else \
        statistics_of(source)
    report = {"format": format_name, "source": str(Path(source).resolve()),
              "files": [[path.name, path.stat().st_size] for path in opened.files], **plan.report()}
    recorded = provenance_of(Path(source)).get("base") if base else None
    if base:
        report["base_named"] = bool(recorded)
    if exported_config := provenance_of(Path(source)).get("config"):
        check_encoders(exported_config, config.to_dict(), str(source))
    if out is None:
        return report
    report["base_hash"] = conversion.base_hash(opened, plan)
    if recorded and recorded["base_hash"] != report["base_hash"]:
        raise WeightsError(
            f"{source}: these adapters were trained on weights of hash {recorded['base_hash']} ({recorded['format']}), "
            f"found {report['base_hash']} in --base={base[1]}; give that base")
    fresh = fresh_values(model, config.seed, plan.initialised)
    params = conversion.pieces(opened, plan, model.shapes, model.spec.head_dim, fresh)
    with atomic_directory(out) as partial:
        write(partial, config, params, exported.read_encoders(Path(source)), known, report)
    return report


def format_of(family: Family, name: str) -> PublishedFormat:
    """Raises MissingPart where the family is read from nowhere, ValueError where it has no such format, naming whose it
    is."""
    formats = family.part("imports", "launch.import_weights")
    if name in formats:
        return formats[name]
    others = [other.name for other in all_families() if name in other.imports]
    raise ValueError(f"model.family = {family.name!r}: --format={name} holds a network of family "
                     f"{', '.join(map(repr, others)) or 'nobody'}; this one is read from {sorted(formats)}")


def provenance_of(source: Path) -> dict:
    """Returns what an export of ours says of itself; {} for published weights, which say nothing."""
    return exported.read_provenance(source) if (source / "provenance.json").exists() else {}


def write(directory: Path, config, params: dict, kept: dict, statistics: dict, report: dict) -> None:
    """Checkpoint and import.json. kept: of the frozen encoders, by part."""
    base = {name: report[name] for name in ("format", "base_hash")}
    state = {"params": params}
    meta = make_meta(state, kept, config, statistics, base)
    checkpoints = Checkpoints(directory / "checkpoints", keep_last=1)
    checkpoints.save(0, state, data={}, meta=meta, frozen=kept)
    checkpoints.close()
    checkpoint.add_hashes(directory / "checkpoints", 0, {f"params.{name}": x.hash for name, x in params.items()})
    (directory / "import.json").write_text(json.dumps(report, indent=1) + "\n")


def read_statistics(published: PublishedFormat, file: Path, folder: Path, config) -> dict:
    """{dataset: statistics} of the config's robots, from published ones; folder: of the weights. Raises ValueError
    where the format has none or the config no robot."""
    if published.read_statistics is None:
        raise ValueError(f"--statistics={file}: this format has no file of statistics")
    robots = {name: get_embodiment(entry.embodiment) for name, entry in mixture.entries(config.data.datasets).items()}
    found = {name: published.read_statistics(file, folder, robot, config.layout.actions_per_block) | {"dataset": name}
             for name, robot in robots.items() if robot.action}
    if not found:
        raise ValueError(f"--statistics={file}: data.datasets has no robot that they could be of")
    return found


def statistics_of(source: Path | str) -> dict:
    """Normalisation statistics that an export of ours has beside the weights."""
    return exported.read_statistics(Path(source)) if (Path(source) / "statistics.json").exists() else {}


def fresh_values(model: Model, seed: int, names: Iterable[str]) -> Callable[[str], np.ndarray]:
    """name -> the value that a run of that seed would start from. Large ones are computed when asked for, the others
    together and once."""
    large = {name for name in names if model.shapes[name].size > LARGE}

    def values(*wanted: str) -> dict:
        return jax.jit(lambda key: subset(model.init_params(key), wanted))(jax.random.key(seed))

    small = functools.cache(lambda: values(*(name for name in names if name not in large)))
    return lambda name: np.asarray(values(name)[name] if name in large else small()[name])


def describe(report: dict) -> str:
    """What a person should read of a report."""
    size = sum(size for _, size in report["files"])
    lines = [f"{report['format']}: {report['source']}, {len(report['files'])} files of {size / 1e9:.2f} GB",
             f"loaded: {report['parameters_loaded']} parameters from {report['tensors_loaded']} tensors"]
    lines += [f"fresh: {name} ({why})" for name, why in report["fresh"].items()]
    lines += [f"fitted: {name} by {how}" for name, how in report["fitted"].items()]
    lines += [f"left in the source: {count} tensors of the {part}" for part, count in report["left_in_source"].items()]
    lines += [f"base hash: {report['base_hash']}"] if "base_hash" in report else []
    if not report.get("base_named", True):
        lines.append("base: names and shapes fit; the adapters do not say which weights they were trained on")
    return "\n".join(lines)


def read_fits(pairs: list[str]) -> dict[str, str]:
    """PATTERN=HOW -> {pattern: how}. Raises ValueError on another HOW."""
    fits = dict(pair.rpartition("=")[::2] for pair in pairs)
    for pattern, how in fits.items():
        if not pattern or how not in conversion.FITS:
            raise ValueError(f"--fit={pattern}={how}: expected PATTERN=HOW, HOW one of {', '.join(conversion.FITS)}")
    return fits


def main(_) -> None:
    args = flags.FLAGS
    if args.out is None and not args.dry_run:
        raise ValueError("--out or --dry_run is needed")
    report = import_weights(args.config, args.format, args.source, None if args.dry_run else args.out,
                            read_fits(args.fit), (args.base_format, args.base) if args.base else None,
                            args.allow_pickle, args.statistics)
    print(describe(report) + ("\nnothing written: --dry_run" if args.dry_run else f"\nwritten: {args.out}"))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_config()
    FORMATS = sorted({name for family in all_families() for name in family.imports})
    flags.DEFINE_enum("format", None, FORMATS, "layout of the source")
    flags.DEFINE_string("source", None, "directory of the published files")
    flags.DEFINE_string("out", None, "directory to make; must not exist, or be empty")
    flags.DEFINE_string("base", None, "directory of the weights under a source of adapters alone")
    flags.DEFINE_enum("base_format", "wan", FORMATS, "layout of --base")
    flags.DEFINE_string("statistics", None, "file of published normalisation, for the robots of data.datasets")
    flags.DEFINE_bool("allow_pickle", False, "read .pth and .bin files too, by torch's weights_only unpickler")
    flags.DEFINE_bool("dry_run", False, "check every name and shape, read and write nothing")
    flags.DEFINE_multi_string("fit", [], "PATTERN=slice|pad_zero|fresh for tensors of another size, by our names")
    flags.mark_flags_as_required(["config", "format", "source"])
    launch_flags.run(main, CheckpointError)
