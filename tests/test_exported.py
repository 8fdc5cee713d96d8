"""An export served in PyTorch: the same actions as the checkpoint in JAX, to the same public client."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from launch import export, import_weights
from launch.exporting.exported import open_export, read_encoders
from launch.serving.engine import Engine, ModelError, Request
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from tests import tiny_policy
from tests.serving import client, observation, serving
from world_model.training import checkpoint, checkpoint_reader
from world_model.weights.safetensors_io import WeightsError


@pytest.fixture(scope="module", params=["debug", "lingbot_va_debug"])
def engines(request, tmp_path_factory):
    """(of the checkpoint, of its export, whose training run is gone)."""
    workdir, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out") / "export"
    restored = restore(tiny_policy.write(workdir, arm=request.param))
    export.export(restored, out)
    shutil.rmtree(workdir)
    made = [Engine(model, choose_robot(model, None, None), sessions=2, batch_sizes=(1,))
            for model in (restored, open_export(out))]
    with jax.default_matmul_precision("highest"):
        for engine in made:
            engine.warm()
    return made


@pytest.mark.filterwarnings("ignore:evaluate")
def test_both_runtimes_answer_the_same(engines):
    """First frame, two blocks of what was seen (the second begins a new window or slides on), actions under way."""
    requests = [observation(0, reset=True), observation(1, frames=4), observation(2, frames=4),
                observation(3, reset=True, actions_in_flight=np.float32([[200, 300], [210, 290]])),
                observation(4, frames=4)]
    found = []
    for engine in engines:
        with serving(engine) as (port, server):
            policy, answers = client(port), []
            for message in requests:
                reply = policy.infer(message | {"session_id": "same noise"})
                latest = server.live.latest.served.answer
                answers.append((reply["actions"], latest.latents, latest.gap))
            found.append(answers)
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], atol=0.03)  # of 300: 1e-4
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)
        assert (ours[2] is None) == (theirs[2] is None)
        assert ours[2] is None or ours[2] == pytest.approx(theirs[2], rel=1e-4)
    assert np.abs(np.diff([a for a, *_ in found[0]], axis=0)).max(axis=(1, 2)).min() > 1e-2  # and they do answer


def test_a_block_asked_for_again_after_an_error_is_answered_as_if_there_had_been_none(engines):
    """A window goes back to where it was: in PyTorch caches grow."""
    def frames(count):
        return {"image": np.full((count, 32, 32, 3), 50 * count, np.uint8)}

    def chunks(engine, fails: bool):
        def ask(block, count):
            return engine.step([Request(0, block, frames(count), np.array([200.0, 300.0]), engine.tokenize("push"),
                                        (7, 1), np.zeros((0, 2)))])[0]

        ask(1, 1)
        with pytest.MonkeyPatch.context() as patch:
            if fails:
                patch.setattr(type(engine.robot), "commands", lambda *_: np.full((4, 2), np.nan, np.float32))
                assert isinstance(ask(2, 4), ModelError)
        return ask(2, 4).actions

    for engine in engines:
        np.testing.assert_allclose(chunks(engine, True), chunks(engine, False), rtol=1e-5)


def test_an_export_comes_back_with_its_encoders_and_statistics(engines, tmp_path):
    exported = engines[1].model
    config = exported.experiment.config.copy_and_resolve_references()
    import_weights.import_weights(config, config.model.family, exported.directory, tmp_path / "back")
    kept, expected = checkpoint_reader.read_frozen(tmp_path / "back/checkpoints", 0), read_encoders(exported.directory)
    assert kept["video"].keys() == expected["video"].keys() and len(kept["video"]) > 4
    for name, value in expected["video"].items():
        np.testing.assert_array_equal(kept["video"][name], value)
    assert checkpoint.read_json(tmp_path / "back/checkpoints", 0, "meta")["statistics"] == exported.statistics
    config.encoders.video = "wan21"
    with pytest.raises(checkpoint.CheckpointError, match="trained with encoders.video = 'patch_pca', and this config"):
        import_weights.import_weights(config, config.model.family, exported.directory, tmp_path / "other")


def test_what_an_export_lacks_is_named(engines, tmp_path):
    elsewhere = dataclasses.replace(engines[1].model, device="cuda")
    with pytest.raises(ValueError, match="--device=cuda: PyTorch .* finds no CUDA device here"), \
            pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        elsewhere.policy(1, np.ones(32, bool), (1,))
    with pytest.raises(ValueError, match="the PyTorch runtime runs both branches of the guidance as one batch"):
        engines[1].model.policy(1, np.ones(32, bool), (1,), guidance=2.0, branch_devices=2)
    with pytest.raises(WeightsError, match=r"provenance.json: missing; give a directory of launch.export"):
        open_export(tmp_path)
    shutil.copytree(engines[1].model.directory, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "encoders")
    with pytest.raises(WeightsError, match="encoders: missing, as in exports of earlier versions; export the run again"):
        open_export(tmp_path / "copy")
