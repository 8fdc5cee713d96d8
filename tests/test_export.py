"""launch.export on a small model: what it writes, that PyTorch computes the same, and that errors are found."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from configs import dreamzero_5b, dreamzero_14b, quickstart
from data_pipelines.robots.embodiments import Dimension, get_embodiment
from launch import export, import_weights
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored
from world_model import functional
from world_model.families import get_family
from world_model.families.base.export import compare, rounded
from world_model.families.base.family import MissingPart
from world_model.families.dreamzero.model import DreamZero
from world_model.families.dreamzero.torch.loading import load
from world_model.families.dreamzero.weights import experiment as reference_experiment
from world_model.families.dreamzero.weights import export as dreamzero_export
from world_model.families.dreamzero.weights import reference_format as dreamzero_format
from world_model.families.dreamzero.weights import video_formats
from world_model.families.dreamzero.weights.names import DREAMZERO
from world_model.training import checkpoint, checkpoint_reader
from world_model.weights import conversion, names
from world_model.weights.safetensors_io import Weights, WeightsError

SIX = {"max": [3.0, 4.0], "min": [0.0, 1.0], "mean": [1.0, 2.0], "std": [0.5, 0.6], "q01": [0.1, 1.1],
       "q99": [2.9, 3.9]}
STATISTICS = {"pusht": {"embodiment": "pusht", "dataset": "pusht", "actions_per_block": 4, "state": {"count": 5, **SIX}, "action": SIX}}


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """An untrained model with every parameter random."""
    config = quickstart.get_config("debug")
    config.model.num_layers, config.model.concat_first_frame, config.model.image_dim = 3, True, 12
    config.model.image_tokens = 5
    experiment, rng = Experiment(config), np.random.default_rng(0)
    shapes = experiment.model.shapes
    params = {name: (0.2 * rng.normal(size=x.shape) + name.endswith("scale")).astype(np.float32)
              for name, x in shapes.items()}
    return Restored(experiment, 7, params, {}, STATISTICS, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(restored, tmp_path_factory):
    """(directory, report, sampler, JAX outputs) of the command's work, compiled as cheaply as possible."""
    out, seen, plain = tmp_path_factory.mktemp("out") / "export", [], dreamzero_export.jax_outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreamzero_export, "jax_outputs", lambda sampler, params: seen.extend(
            (sampler, plain(sampler, params))) or seen[1])
        jax.config.update("jax_disable_most_optimizations", True)
        report = export.export(restored, out, shard_bytes=60_000)
        jax.config.update("jax_disable_most_optimizations", False)
    return out, report, *seen


def test_directory_is_complete(exported, restored):
    out, report, *_ = exported
    assert json.loads((out / "parity.json").read_text()) == report
    assert report["problem"] is None and report["max"] < 2e-5 and report["step"] == 7
    assert list(report["entries"]) == [
        "forward/block0", "forward/block1", "forward/block2", "forward/video", "forward/action",
        "rollout/block1_latents", "rollout/block1_actions", "rollout/block2_latents", "rollout/block2_actions"]
    assert list(report["bfloat16"]) == list(report["entries"])[5:]
    assert 1e-3 < max(report["bfloat16"].values()) < 0.5  # told, not held to the tolerance
    assert len(list(out.glob("*.safetensors"))) > 1
    assert not list(out.parent.glob("*.partial*"))


def test_the_gate_of_the_other_form_and_ways_to_denoise(tmp_path):
    """Text-image-to-video: no condition, no image branch. Guidance, skipped steps, and video left noisy as in Flash."""
    config = quickstart.get_config("debug")
    config.model.update(num_layers=2, concat_first_frame=False, image_dim=0)
    config.evaluate.update(guidance=2.0, skipping="6", solver_steps=16, video_final_sigma=0.4)
    experiment, rng = Experiment(config), np.random.default_rng(0)
    shapes = experiment.model.shapes
    params = {name: (0.2 * rng.normal(size=x.shape)).astype(np.float32) for name, x in shapes.items()}
    restored = Restored(experiment, 7, params, {}, STATISTICS, tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        report = export.export(restored, tmp_path / "export")
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert report["passed"] and report["max"] < 2e-5 and "rollout/block2_actions" in report["entries"]


def test_weights_are_ours_under_the_reference_names(exported, restored):
    weights = Weights(exported[0])
    expected = dict(names.to_published(restored.params, restored.experiment.model.spec.head_dim, DREAMZERO))
    assert {f"action_head.model.{name}" for name in expected} == set(weights)
    for name, x in expected.items():
        np.testing.assert_array_equal(weights[f"action_head.model.{name}"], x)


def test_config_has_the_reference_keys(exported):
    config = json.loads((exported[0] / "config.json").read_text())
    assert config["model_type"] == "vla"
    head = config["action_head_cfg"]["config"]
    assert head["train_architecture"] == "full" and head["skip_component_loading"] is True
    assert head["diffusion_model_cfg"]["model_type"] == "i2v"
    assert head["diffusion_model_cfg"]["in_dim"] == 36 and head["diffusion_model_cfg"]["num_layers"] == 3
    assert head["diffusion_model_cfg"]["frame_seqlen"] == 16 and head["num_frames"] == 17


def test_statistics_go_along(exported):
    out = exported[0]
    assert json.loads((out / "statistics.json").read_text()) == STATISTICS
    metadata = json.loads((out / "experiment_cfg" / "metadata.json").read_text())["pusht"]
    assert metadata["statistics"]["action"]["target_y"]["q99"] == [3.9]
    assert metadata["modalities"]["action"]["target_x"]["absolute"] is True
    assert metadata["modalities"]["state"]["agent_x"] == {
        "absolute": True, "rotation_type": None, "shape": [1], "continuous": True, "slots": [0]}
    assert metadata["modalities"]["video"]["image"]["fps"] == 5.0


def test_relative_actions_are_said_to_be_relative(restored):
    robot = dataclasses.replace(get_embodiment("pusht"), action=(
        Dimension("target_x", 0, relative_to="agent_x"), Dimension("target_y", 1)))
    metadata = reference_experiment.metadata(robot, STATISTICS["pusht"], restored.experiment.layout)
    said = metadata["modalities"]["action"]
    assert [said[name]["absolute"] for name in ("target_x", "target_y")] == [False, True]


def test_a_known_robot_goes_by_the_servers_names(restored):
    robot = reference_experiment.robot_of(get_embodiment("droid"))
    assert robot.keys["action"] == {"joint_position": list(range(7)), "gripper_position": [7]}
    conf = reference_experiment.conf([get_embodiment("droid")], restored.experiment.model.spec, "bfloat16")
    assert conf["relative_action_keys"] == ["joint_position"] and conf["eval_bf16"] is True
    state = conf["modality_configs"]["oxe_droid"]["state"]
    assert state["eval_delta_indices"] == [0]
    assert state["modality_keys"] == ["state.joint_position", "state.gripper_position"]
    chain = conf["transforms"]["oxe_droid"]["transforms"]
    assert chain[-1]["embodiment_tag_mapping"]["oxe_droid"] == 17 and "tokenizer_path" in chain[-1]
    assert chain[-2]["video_concat_order"][-1] == "video.wrist_image_left"


def test_provenance_and_conf_go_along(exported, restored):
    found = json.loads((exported[0] / "provenance.json").read_text())
    assert found["step"] == 7 and found["dtype"] == "float32" and found["base"] is None
    assert found["config"] == json.loads(restored.config.to_json())
    conf = yaml.safe_load((exported[0] / "experiment_cfg" / "conf.yaml").read_text())
    assert conf["model"]["_target_"].startswith("groot.vla.model.dreamzero.base_vla.VLA")
    assert set(conf["transforms"]) == set(conf["modality_configs"]) == {"pusht"}


@pytest.mark.parametrize("format_name,dtype", [("wan", "float32"), ("diffusers", "bfloat16"), ("dreamzero", None)])
def test_importing_an_export_gives_the_same_bits(restored, exported, tmp_path, format_name, dtype):
    """In every layout; what bfloat16 changes is reported."""
    source = exported[0]
    if dtype:
        source = tmp_path / "export"
        report = export.export(restored, source, format_name=format_name, dtype=dtype)
        assert report["max"] == 0 and bool(report["cast"]) == (dtype == "bfloat16")
        if report["cast"]:
            assert 1e-4 < max(report["cast"].values()) < 2**-8 * max(np.abs(x).max() for x in restored.params.values())
    import_weights.import_weights(restored.config, format_name, source, tmp_path / "import")
    expected = rounded(restored.params, np.dtype(dtype or "float32"))
    arrays = dict(checkpoint_reader.read_arrays(tmp_path / "import" / "checkpoints", 0, lambda name: True))
    assert {name.removeprefix("params.") for name in arrays} == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(arrays[f"params.{name}"], x, err_msg=name)
    meta = checkpoint.read_json(tmp_path / "import" / "checkpoints", 0, "meta")
    assert meta["statistics"] == STATISTICS


def test_formats_belong_to_families(restored):
    with pytest.raises(ValueError, match=r"--format=lingbot_va: a model of family dreamzero can be written as"):
        export.format_of(get_family("dreamzero"), "lingbot_va")
    nowhere = dataclasses.replace(get_family("dreamzero"), name="third", exports={})
    with pytest.raises(MissingPart, match="family 'third' has no exports, which launch.export needs"):
        export.format_of(nowhere, None)


def tampered(restored, exported, directory, change):
    """Differences of an export whose weights were changed on the way out."""
    _, _, sampler, expected = exported
    params = {name: np.array(x) for name, x in restored.params.items()}
    change(params)
    dreamzero_format.write(directory, restored.experiment.model.spec, params, rollout=export.trained(restored).settings)
    return compare(expected, dreamzero_export.torch_outputs(sampler, directory))


def swap(p):
    a, b = "blocks.cross_attn.k.kernel", "blocks.cross_attn.v.kernel"
    p[a], p[b] = p[b], p[a]


def transpose(p):
    p["final_block.self_attn.v.kernel"] = p["final_block.self_attn.v.kernel"].T.copy()


def nudge(p):
    p["blocks.mlp.fc1.kernel"][1, 2, 3] += 0.1


def one_action_weight(p):
    p["action_decoder.fc2.kernel"][3, 5] += 0.1


@pytest.mark.parametrize("change,where", [
    (lambda p: None, None), (swap, "forward/block0"), (transpose, "forward/block2"), (nudge, "forward/block1"),
    (one_action_weight, "forward/action")])
def test_planted_errors_are_found_and_placed(restored, exported, tmp_path, change, where):
    problem = export.first_above(tampered(restored, exported, tmp_path, change), 1e-4)
    assert (problem is None) if where is None else problem.startswith(f"first above 0.0001: {where} differs by ")


def test_a_rejected_export_never_takes_the_name(restored, exported, tmp_path, monkeypatch):
    _, _, _, expected = exported
    monkeypatch.setattr(dreamzero_export, "jax_outputs", lambda *_: {k: x + 1 for k, x in expected.items()})
    for _ in range(2):  # again over the first one's remains
        with pytest.raises(export.ParityError, match=r"first above 0.0001: forward/block0 .*export\.rejected"):
            export.export(restored, tmp_path / "export")
        assert [p.name for p in tmp_path.iterdir()] == ["export.rejected"]
    report = json.loads((tmp_path / "export.rejected" / "parity.json").read_text())
    assert report["passed"] is False and "forward/block0" in report["problem"]


def test_an_existing_directory_is_kept(restored, exported):
    with pytest.raises(FileExistsError, match="not empty"):
        export.export(restored, exported[0])


def test_loading_is_strict(restored, exported, tmp_path):
    dreamzero_format.write(tmp_path, restored.experiment.model.spec, restored.params, rollout={})
    config = json.loads((tmp_path / "config.json").read_text())
    config["wamax"]["network"]["ffn_dim"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"blocks.0.ffn.0.weight: expected F32 \(65, 32\), found F32 \(64, 32\)"):
        load(tmp_path)


# --- what the program whose layout it is reads ---------------------------------------------------------------------


def spec_of(base, **changes):
    config = base.get_config("debug")
    config.model.update(changes)
    return Experiment(config).model.spec


SPECS = {"14b": (dreamzero_14b, {}), "14b_blind": (dreamzero_14b, {"image_dim": 0}),
         "5b": (dreamzero_5b, {}), "5b_blind": (dreamzero_5b, {"image_dim": 0})}


def random_params(spec):
    rng = np.random.default_rng(0)
    shapes = functional.parameters(functional.abstract(DreamZero, spec))
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}


@pytest.mark.parametrize("form", SPECS)
def test_its_own_layout_has_every_tensor_of_the_published_list(tmp_path, form):
    """The image branch too, which adds nothing where the model has none; read back it is left out."""
    base, changes = SPECS[form]
    spec = spec_of(base, image_tokens=257, **{"image_dim": 1280} | changes)
    params = random_params(spec)
    dreamzero_format.write(tmp_path, spec, params, rollout={})
    weights, size = Weights(tmp_path), form.removesuffix("_blind")
    listed = json.loads((Path(__file__).parent / f"goldens/shapes/dreamzero_{size}.json").read_text())
    beyond = tuple(f"blocks.{i}." for i in range(spec.num_layers, 40))
    assert set(weights) == {f"action_head.model.{name}" for name in listed if not name.startswith(beyond)}
    for name in weights:
        assert len(weights.headers[name][0]) == len(listed[name.removeprefix("action_head.model.")])
    blind = [name for name in weights if "img" in name and "action_head" in name]
    assert all(not weights[name].any() for name in blind) == (spec.image_dim == 0)
    assert not list(dreamzero_format.unloadable(spec))
    found = conversion.read(get_family("dreamzero").imports["dreamzero"].open(tmp_path), params, spec)
    assert found.keys() == params.keys()
    load(tmp_path)


def test_a_branch_that_is_not_zero_is_no_branch_of_zeros(tmp_path):
    spec = spec_of(dreamzero_14b, image_dim=1280)
    dreamzero_format.write(tmp_path, spec, random_params(spec), rollout={})
    config = json.loads((tmp_path / "config.json").read_text())
    config["wamax"]["network"]["image_dim"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"unexpected keys .*img_emb"):
        load(tmp_path)


def test_a_folder_that_its_target_cannot_load_whole_does_not_pass(exported):
    """Of this one the image features are 5 tokens of width 12."""
    report = exported[1]
    assert report["problem"] is None and report["passed"] is False
    assert report["unloadable"] == ["its image branch takes 257 tokens of width 1280; this model has 5 of 12"]
    assert any("pusht: its server has no such robot" in sentence for sentence in report["otherwise"])


@pytest.mark.parametrize("form", SPECS)
def test_the_original_wan_finds_what_it_has_and_nothing_else(tmp_path, form):
    """Its ti2v form has no image branch, which then stands beside; all comes back."""
    base, changes = SPECS[form]
    spec = spec_of(base, **{"image_dim": 1280, "text_dim": 4096} | changes)
    params = random_params(spec)
    video_formats.write(tmp_path, "wan", spec, params)
    found = set(Weights(tmp_path, "diffusion_pytorch_model"))
    assert any("img" in name for name in found) == (form == "14b") and "head.head.weight" in found
    assert not list(video_formats.unloadable("wan", spec))
    back = conversion.read(get_family("dreamzero").imports["wan"].open(tmp_path), params, spec)
    for name, x in params.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_the_original_wan_takes_one_width_of_text_and_of_pictures():
    said = list(video_formats.unloadable("wan", spec_of(dreamzero_14b, text_dim=32, image_dim=16)))
    assert said == ["its constructor takes text of width 4096 alone; this model's is 32",
                    "its image branch takes features of width 1280; this model's are 16"]
    assert not list(video_formats.unloadable("diffusers", spec_of(dreamzero_14b, text_dim=32, image_dim=16)))


def test_its_policy_resizes_pictures_of_the_48_channel_form_alone(tmp_path):
    """A target size is what the policy then expects of clients, in place of 180 x 320."""
    heads = {size: dreamzero_format.config(spec_of(base), {"video_final_sigma": 0.8}, {})["action_head_cfg"]["config"]
             for size, base in (("14b", dreamzero_14b), ("5b", dreamzero_5b))}
    assert "target_video_height" not in heads["14b"] and "target_video_width" not in heads["14b"]
    assert (heads["5b"]["target_video_height"], heads["5b"]["target_video_width"]) == (160, 320)
    for head in heads.values():
        assert head["decouple_inference_noise"] is True and head["video_inference_final_noise"] == 0.8


def test_files_of_the_encoders_are_named(tmp_path):
    encoders = {"text_weights": str(tmp_path / "t5.pth"), "image_weights": "", "video_weights": "vae.safetensors"}
    head = dreamzero_format.config(spec_of(dreamzero_14b, text_dim=4096), {}, encoders)["action_head_cfg"]["config"]
    text = head["text_encoder_cfg"]
    assert text["text_encoder_pretrained_path"] == str(tmp_path / "t5.pth")
    assert (text["dim"], text["dim_attn"], text["num_heads"], text["num_layers"]) == (4096, 4096, 64, 24)
    assert head["image_encoder_cfg"]["image_encoder_pretrained_path"] is None
    assert Path(head["vae_cfg"]["vae_pretrained_path"]).is_absolute()
    said = " ".join(dreamzero_format.other_encoders(spec_of(dreamzero_14b, text_dim=4096), encoders))
    assert "for image from the hub" in said and "in place of vae.safetensors" in said


def chain(conf, tag):
    return {transform["_target_"].rsplit(".", 1)[1]: transform for transform in conf["transforms"][tag]["transforms"]}


@pytest.mark.parametrize("crop", [1.0, 0.9])
def test_pictures_are_cut_as_in_training(restored, crop):
    conf = reference_experiment.conf([get_embodiment("droid")], restored.experiment.model.spec, "float32", crop, "/tok")
    steps = chain(conf, "oxe_droid")
    assert ("VideoCrop" in steps) == (crop < 1) and steps.get("VideoCrop", {}).get("scale", 1.0) == crop
    assert steps["DreamTransform"]["tokenizer_path"] == "/tok"


def test_its_collator_finds_all_robots_that_it_looks_up(restored):
    conf = reference_experiment.conf([get_embodiment("yam_released")], restored.experiment.model.spec, "float32")
    found = chain(conf, "yam")["DreamTransform"]["embodiment_tag_mapping"]
    assert {tag: found[tag] for tag in reference_experiment.SERVED} == {
        "agibot": 26, "oxe_droid": 17, "gr1_unified": 24, "mecka_hands": 27, "xdof": 22, "yam": 32}


AS_RELEASED = {"solver": "unipc", "steps": 16, "shift": 5.0, "guidance": 5.0, "action_guidance": 1.0, "skipping": "8"}


@pytest.mark.parametrize("name, said", [
    ("droid_released", []), ("yam_released", []), ("agibot_g1_released", []),
    ("droid", ["trained with the prompt 'A Franka arm"]),
    ("yam_packed", ["Two YAM arms"]),
    ("yam", ["8 of 14 state dimensions", "8 of 14 action dimensions", "trained with the prompt"]),
    ("aloha", ["no such robot", "state dimensions", "action dimensions"])])
def test_what_its_server_does_otherwise_is_said(name, said):
    found = list(reference_experiment.differences([get_embodiment(name)], AS_RELEASED, "released"))
    assert len(found) == len(said)
    for sentence, part in zip(found, said, strict=True):
        assert sentence.startswith(f"{name}: ") and part in sentence
        assert name == "aloha" or "train and export as" in sentence
    assert name != "yam" or "left_gripper was trained in slot 7, its server has it in 6" in found[0]


def test_angles_that_its_server_scales_are_said():
    robot = get_embodiment("droid_released")
    turned = dataclasses.replace(robot, state=(dataclasses.replace(robot.state[0], sine_slot=20), *robot.state[1:]))
    assert list(reference_experiment.differences([turned], AS_RELEASED, "released")) == [
        f"droid_released: its server scales {robot.state[0].name} as any number; it was trained as cosine and sine"]


def test_its_own_way_to_sample_is_said():
    settings = AS_RELEASED | {"steps": 4, "guidance": 1.0}
    steps, text = reference_experiment.differences([get_embodiment("droid_released")], settings, "")
    assert "evaluate.solver_steps = 4 (there 16), evaluate.guidance = 1.0 (there 5.0)" in steps
    assert "negative prompt of its own; here it is ''" in text
