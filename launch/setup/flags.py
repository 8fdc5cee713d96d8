"""The flags that commands share, and errors about them in one line."""

import ast
import difflib
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from launch.setup import cpu_memory


def define_config() -> flags.FlagHolder:
    """--config=FILE[:ARG], with --config.KEY=VALUE to override."""
    return config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]", lock_config=True)


def define_run() -> None:
    """--workdir, which has to be given, and --step: a checkpoint of a run."""
    flags.DEFINE_string("workdir", None, "directory of the training run")
    flags.DEFINE_integer("step", None, "checkpoint step; default: the newest")
    flags.mark_flag_as_required("workdir")


def define_task() -> None:
    """--task and --dataset: what a run's model does in a simulator, and as which robot."""
    flags.DEFINE_string("task", None, "a simulated task; default: the first for the model's robot")
    flags.DEFINE_string("dataset", None, "whose statistics, where several are of that robot")


def overridden(config: flags.FlagHolder | flags.Flag) -> dict:
    """{dotted key: value} of what the command line set over the file."""
    return dict(config_flags.get_override_values(config))


def seeds(given: list[str]) -> list[int]:
    """--seeds as numbers. Raises ValueError where one is none, or comes twice."""
    if wrong := [each for each in given if not each.strip().isdecimal()]:
        raise ValueError(f"--seeds: {wrong[0]!r} is no whole number from 0 on")
    found = [int(each) for each in given]
    if twice := [each for each in found if found.count(each) > 1]:
        raise ValueError(f"--seeds: {twice[0]} comes twice")
    return found


def define_sampling(into: flags.FlagValues = flags.FLAGS) -> None:
    """A flag per sampler setting that any family has, over the checkpoint's evaluate.*; read by `sampling`.

    A command calls it after its own flags, whose names keep the meaning that they have there.
    """
    plain: dict[type, Callable] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for name, (kind, families) in sampler_settings().items():
        if name not in into:
            define = plain.get(kind, flags.DEFINE_string)
            define(name, None, f"evaluate.{name} of {', '.join(families)}; default: the checkpoint's", flag_values=into)


def sampling(args: flags.FlagValues) -> dict:
    """{key of evaluate: value} of the settings that were given. Raises ValueError where one cannot be read or is not
    finite."""
    given = {}
    for name, (kind, _) in sampler_settings().items():
        value = getattr(args, name) if args.find_module_defining_flag(name) == __name__ else None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name}={value}: expected a finite number")
        if value is not None:
            given[name] = value if kind in (bool, int, float, str) else literal(name, value)
    return given


def sampler_settings() -> dict[str, tuple[type, list[str]]]:
    """{key of evaluate: (type of its default, families that have it)}; `object` where families differ in the type."""
    from launch.setup.experiment import EVALUATION_ONLY  # these take seconds, and most commands have no sampler
    from world_model.families import all_families

    found: dict[str, tuple[type, list[str]]] = {}
    for family in all_families():
        for name, default in family.config.get("evaluate", {}).items():
            if name not in EVALUATION_ONLY:
                kind, families = found.get(name, (type(default), []))
                found[name] = kind if type(default) is kind else object, [*families, family.name]
    return found


def literal(flag: str, text: str):
    """A value as Python writes it; A:B,C:D stands for the pairs ((A, B), (C, D)). Raises ValueError."""
    try:
        if ":" in text:
            return tuple(tuple(map(ast.literal_eval, pair.split(":"))) for pair in text.split(","))
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"--{flag}={text} cannot be read: give what Python reads, or pairs: 0.95:3,0.93:1") from error


def run(main: Callable, *errors: type[Exception], arguments: bool = False) -> None:
    """absl's app.run, with a wrong key or file of --config answered by the nearest right one. Errors that people can
    put right, and `errors`, end the command with its name and their sentence.

    arguments: whether it takes others than flags.
    """
    expected: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, subprocess.CalledProcessError, *errors)

    def command(argv: list[str]):
        try:
            if argv[1:] and not arguments:
                raise ValueError(f"{argv[1]!r} is no flag, and nothing else is read")
            return main(argv)
        except expected as error:
            sys.exit(f"{Path(argv[0]).stem}: {error}")

    app.run(command, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)  # libraries; a command itself prints
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", ".cache/xla")  # a resumed run does not compile again
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a hundred small ones take 20 s
    if jax.config.jax_platforms == "cpu":
        cpu_memory.keep_freed()
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS.config, "items", None)  # raises OSError for a file that failed to load
        return rest
    except (AttributeError, KeyError):
        if not (problem := _unknown_key(argv)):
            raise
        sys.exit(problem)
    except OSError as error:
        sys.exit(f"--config: {error.__cause__ or error}")
    except flags.Error as error:
        inner = error.__context__ and error.__context__.__context__  # what a config file raised, wrapped twice since
        sys.exit(f"--config: {inner}" if isinstance(inner, ValueError) else f"{error}\nSee --help.")


def _unknown_key(argv: list[str]) -> str | None:
    """A sentence about the first --config.KEY that the file does not define; None if all are there."""
    pairs = [arg.lstrip("-").partition("=") for arg in argv[1:]]
    file = next((value for name, _, value in pairs if name == "config"), "")
    path, _, arg = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    known = keys(get_config(arg) if arg else get_config())
    for name, _, _ in pairs:
        key = name.removeprefix("config.")
        if key != name and key not in known:
            return f"--{name}: {path} has no such key; the nearest is --config.{nearest(key, known)}"
    return None


def nearest(key: str, known: list[str]) -> str:
    """The name that was probably meant."""
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def keys(config, prefix: str = "") -> list[str]:
    """Dotted names of every leaf."""
    found = []
    for name, value in config.items():
        found += keys(value, f"{prefix}{name}.") if hasattr(value, "items") else [prefix + name]
    return found
