"""What the frozen encoders take of a chip before training: launch.precompute's programs, compiled ahead of time."""

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from data_pipelines.cache.reader import record_bytes
from launch.planning import calibration, estimate
from launch.setup.experiment import Experiment
from world_model.analysis.chips import Chip
from world_model.analysis.program import Program

BATCH = 8  # windows at once, as launch.precompute takes them
MANY = 1000  # windows or prompts of which the time is told


def plan(experiment: Experiment, chip: Chip, device: jax.Device) -> dict:
    """Seconds of MANY windows and of MANY prompts on one chip, what a window takes in the cache, and memory in GiB.
    Raises ValueError where the config's encoders store nothing, or have no weights to plan with."""
    inputs = experiment.inputs
    if not inputs.stored_from:
        raise ValueError(f"--encoders: model.family = {experiment.config.model.family!r} has no cache of latents")
    if fitted := [part for part, encoder in inputs.encoders.items() if not hasattr(encoder, "shapes")]:
        raise ValueError(f"--encoders: this config's encoders of {', '.join(fitted)} have no weights: they take "
                         "no time worth a plan. Give a config with the Wan codec and UMT5")
    here = SingleDeviceSharding(device)
    frozen = {part: _placed(encoder.shapes(), here) for part, encoder in inputs.encoders.items()}
    fields = inputs.batch_fields()
    batch = {name: jax.ShapeDtypeStruct((BATCH, *fields[name][0]), fields[name][1], sharding=here)
             for name in inputs.stored_from}
    text = experiment.encoders["text"]
    prompt = [jax.ShapeDtypeStruct(shape, jnp.int32, sharding=here) for shape in ((1, text.text_length), (1,))]
    found = {"windows": _cost(inputs.store, (frozen, batch), BATCH, chip, device),
             "prompts": _cost(text.encode, (frozen["text"], *prompt), 1, chip, device)}
    return {"run": calibration.PLANNED, "batch": BATCH, **found, "capacity_gib": chip.usable_gib / chip.devices,
            "record_bytes": record_bytes(inputs.stored_fields())}


def _placed(shapes: dict, here) -> dict:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in shapes.items()}


def _cost(fn, arguments: tuple, count: int, chip: Chip, device: jax.Device) -> dict[str, float]:
    """Seconds of MANY where one call makes `count`, FLOP of one, GiB."""
    platform = {"gpu": "cuda"}.get(device.platform, device.platform)
    compiled = jax.jit(fn).trace(*arguments).lower(lowering_platforms=(platform,)).compile()
    program = Program(compiled.as_text())
    seconds = estimate.passes_of(program, chip)["compiler_estimated_seconds"]
    return {"seconds": MANY / count * seconds, "flops": program.executed_flops() / count,
            "gib": estimate.memory_of(compiled.memory_analysis(), chip)["hbm_needed_gib_per_chip"] / chip.devices}


def report(topology: str, found: dict) -> str:
    """The same for a person."""
    windows, prompts, size = found["windows"], found["prompts"], found["record_bytes"]
    memory = max(windows["gib"], prompts["gib"])
    return "\n".join([
        f"{topology.partition(':')[0]}, one chip, {found['run']}, not calibrated: frozen encoders once over",
        f"  {MANY:,} windows, {found['batch']} at once: {windows['seconds']:,.0f} s, {windows['flops']:.2e} FLOP each",
        f"  {MANY:,} prompts, each once: {prompts['seconds']:,.0f} s, {prompts['flops']:.2e} FLOP each",
        f"  in the cache {size / 1e6:.2f} MB a window, {MANY * size / 1e9:.2f} GB for {MANY:,}",
        f"  memory {memory:.1f} of {found['capacity_gib']:.0f} GiB "
        f"({'fits' if memory <= found['capacity_gib'] else 'DOES NOT FIT: encoders.chunk, encoders.tile take less'})"])
