"""The flags that commands share, and errors about them in one line."""

import difflib
import runpy
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags


def define_config() -> flags.FlagHolder:
    """--config=FILE[:ARG], with --config.KEY=VALUE to override."""
    return config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]", lock_config=True)


def overridden(config: flags.FlagHolder | flags.Flag) -> dict:
    """{dotted key: value} of what the command line set over the file."""
    return dict(config_flags.get_override_values(config))


def define_sampling() -> None:
    """Flags of how actions are sampled, over the checkpoint's evaluate.*; read by `sampling`."""
    flags.DEFINE_enum("solver", None, ["unipc", "euler"], "default: the checkpoint's")
    flags.DEFINE_integer("solver_steps", None, "denoising steps; default: the checkpoint's", lower_bound=1)
    flags.DEFINE_float("guidance", None, "of the video; default: the checkpoint's")
    flags.DEFINE_float("action_guidance", None, "of the actions; default: the checkpoint's")
    flags.DEFINE_integer("branch_devices", None, "2: each branch of the guidance on a device of its own; default: 1")
    flags.DEFINE_string("skipping", None, "solver steps that reuse a prediction: none, 5 to 8 (of 16), adaptive")
    flags.DEFINE_list("skip_thresholds", None, "COSINE:STEPS of --skipping=adaptive; default: 0.95:3,0.93:1")


def sampling(args) -> dict:
    """Settings of a family's rollout that were given. Raises ValueError where a threshold cannot be read."""
    pairs = [text.split(":") for text in args.skip_thresholds or ()]
    given = {"solver": args.solver, "steps": args.solver_steps, "guidance": args.guidance,
             "action_guidance": args.action_guidance, "branch_devices": args.branch_devices, "skipping": args.skipping,
             "skip_thresholds": tuple((float(cosine), int(steps)) for cosine, steps in pairs) or None}
    return {name: value for name, value in given.items() if value is not None}


def run(main) -> None:
    """absl's app.run, with a wrong key or file of --config answered by the nearest right one."""
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)  # libraries; a command itself prints
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", ".cache/xla")  # a resumed run does not compile again
    try:
        rest = app.parse_flags_with_usage(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS.config, "items", None)  # raises OSError for a file that failed to load
        return rest
    except (AttributeError, KeyError):
        if not (problem := _unknown_key(argv)):
            raise
        sys.exit(problem)
    except OSError as error:
        sys.exit(f"--config: {error.__cause__ or error}")


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
