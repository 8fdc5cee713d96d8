"""A published step compiled for its slice, and what the planner's estimator reads in it."""

import dataclasses
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from benchmarks.calibration import kernels
from benchmarks.calibration.published import Case
from launch import plan
from launch.planning import estimate
from world_model.training.train_step import COMPILER_OPTIONS, VECTOR_MEMORY

AXES = ("data", "fsdp", "tensor")


def measure(case: Case) -> dict:
    """Compiles a case; returns the plan's numbers beside the published seconds."""
    chip, devices = plan.describe_topology(case.topology)
    samples = max(1, case.samples // (case.mesh["data"] * case.mesh["fsdp"]))
    chip = dataclasses.replace(chip, kernel_efficiency=kernels.efficiency(case.topology.partition(":")[0], samples))
    mesh = Mesh(np.array(devices).reshape([case.mesh[axis] for axis in AXES]), AXES)
    state, batch = abstract_state(case.model, mesh), abstract_batch(case, mesh)
    limit = {VECTOR_MEMORY: str(case.vector_memory)} if case.vector_memory else {}
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = jax.jit(make_step(case.model, mesh), donate_argnums=0).lower(state, batch)
        compiled = lowered.compile(compiler_options=COMPILER_OPTIONS["tpu"] | limit)
    seconds = time.perf_counter() - began
    text = kernels.in_our_words(compiled.as_text())
    family = SimpleNamespace(training_flops=case.model.flops())
    config = SimpleNamespace(train=SimpleNamespace(global_batch_size=case.samples, steps=1))
    renamed = SimpleNamespace(as_text=lambda: text, memory_analysis=compiled.memory_analysis)
    found = estimate.estimate(family, config, mesh, 1, {"params": state["params"]}, chip, renamed)
    return {"topology": case.topology, "published_seconds": case.published(len(devices) // chip.devices),
            "compile_seconds": seconds} | found


def abstract_state(model, mesh) -> dict:
    """Shapes and shardings of parameters and Adam's moments."""
    dtype = jnp.bfloat16 if model.moment == "bfloat16" and not hasattr(model, "vocab") else jnp.float32

    def arrays(dtype):
        return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
                for name, (shape, spec) in model.shapes().items()}

    return {"params": arrays(dtype), "first": arrays(jnp.dtype(model.moment)), "second": arrays(dtype)}


def abstract_batch(case: Case, mesh) -> dict:
    """Shapes and shardings of a batch."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))
            for name, (shape, dtype, spec) in case.model.batch(case.samples).items()}


def make_step(model, mesh):
    """Makes step(state, batch) -> (state, loss): gradients clipped by their norm, and Adam."""
    def step(state, batch):
        loss, gradients = jax.value_and_grad(model.loss)(state["params"], batch, mesh)
        gradients = {name: jax.lax.with_sharding_constraint(g, NamedSharding(mesh, model.shapes()[name][1]))
                     for name, g in gradients.items()}
        norm = jnp.sqrt(sum(jnp.square(g.astype(jnp.float32)).sum() for g in gradients.values()))
        scale = jnp.minimum(1.0, 1.0 / norm)
        moved = {name: adam(state["params"][name], g.astype(jnp.float32) * scale, state["first"][name],
                            state["second"][name]) for name, g in gradients.items()}
        return {key: {name: arrays[i] for name, arrays in moved.items()}
                for i, key in enumerate(("params", "first", "second"))}, loss

    return step


def adam(w, g, first, second):
    """Moves one parameter; returns it and its moments."""
    m = 0.9 * first.astype(jnp.float32) + 0.1 * g
    v = 0.95 * second.astype(jnp.float32) + 0.05 * g * g
    moved = w.astype(jnp.float32) * (1 - 3e-6) - 3e-5 * m / (jnp.sqrt(v) + 1e-8)
    return moved.astype(w.dtype), m.astype(first.dtype), v.astype(second.dtype)
