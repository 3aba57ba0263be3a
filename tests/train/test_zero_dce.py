"""Training of curves for low light: what the losses add up to, what is frozen, and whole runs."""

import json
import shutil

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="the loop runs on Lightning Fabric: pip install fastenh[train]")
pytest.importorskip("torchvision", reason="torchvision has VGG-16: pip install fastenh[train]")

from fastenh import losses, ops
from fastenh.data import Contrasts, Crops, find_labelled_photos, find_references
from fastenh.models import ZeroDCE, ZeroDCEPlusPlus, load, save
from fastenh.train import zero_dce
from fastenh.train.config import configure
from fastenh.train.zero_dce import Config, SemanticConfig, SemanticContrast, ZeroReference

SMALL = {"side": 24, "batch": 2, "steps": 2, "device": "cpu", "workers": 1}
SEMANTIC = SMALL | {"vgg": "random", "segmentation": "random"}


def small(preset: str = "zero-dce", **changes) -> Config:
    return configure(Config, zero_dce.PRESETS[preset], SMALL, changes)


def semantic(preset: str = "scl-lle", **changes) -> SemanticConfig:
    return configure(SemanticConfig, zero_dce.SEMANTIC_PRESETS[preset], SEMANTIC, changes)


@pytest.fixture(scope="module")
def vgg() -> losses.VGGFeatures:
    torch.manual_seed(0)
    return losses.VGGFeatures("random")


def tiny_segmentation() -> nn.Module:
    """Four classes; batch norm must stay as it is."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


@pytest.fixture
def contrast(streets, exposures, vgg):
    def make(config: SemanticConfig) -> SemanticContrast:
        labels = config.consistency > 0 or config.cross_entropy > 0
        scenes = Crops(find_labelled_photos(streets), config.side, config.seed, config.darken, labels)
        triples = Contrasts(scenes, find_references(exposures), config.negatives)
        task = SemanticContrast(config, triples, vgg, tiny_segmentation())
        nn.init.normal_(task.model.e_conv7.weight, std=0.2)
        return task

    return make


def zero(streets, **changes) -> ZeroReference:
    config = small(**changes)
    task = ZeroReference(config, Crops(find_labelled_photos(streets), config.side, darken=3.0))
    for parameter in task.model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return task


def terms(task, batch) -> dict[str, Tensor]:
    ((name, result),) = task.losses(batch)
    assert name == "model"
    return result


# ---- the losses


@pytest.mark.parametrize("preset", ["zero-dce", "zero-dce++"])
def test_the_loss_of_zero_dce_is_the_authors(preset, streets):
    task = zero(streets, preset=preset, **({"map_scale": 3} if preset == "zero-dce++" else {}))
    batch = task.batch(range(3))
    result, image = terms(task, batch), batch["image"]
    curves = task.model.predict_curves(image)
    output = ops.curve_iterate(image, curves, 8)
    expected = {
        "spatial": losses.spatial_consistency(output, image),
        "exposure": 10 * (nn.functional.avg_pool2d(output.mean(1, keepdim=True), 16) - 0.6).square().mean(),
        "colour": 5 * losses.colour_constancy(output),
        "smoothness": {"zero-dce": 200, "zero-dce++": 1600}[preset] * losses.illumination_smoothness(curves),
    }
    assert type(task.model) is {"zero-dce": ZeroDCE, "zero-dce++": ZeroDCEPlusPlus}[preset]
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=name)
        assert value > 0


def test_the_loss_of_scl_lle_is_the_papers(contrast, vgg):
    task = contrast(semantic())
    batch = task.batch(range(3))
    result, image = terms(task, batch), batch["image"]
    curves = task.model.predict_curves(image)
    output = ops.curve_iterate(image, curves, 8)
    styles = [vgg(x, "relu1_2", "relu2_2") for x in (output, batch["positive"], batch["negative"])]
    expected = {
        "gram": 5 * losses.gram_contrast(*styles),
        "brightness": 10 * losses.brightness_contrast(output, batch["positive"], batch["negative"]),
        "consistency": losses.brightness_consistency(output, batch["labels"]),
        "cross_entropy": losses.label_cross_entropy(task.segmentation(output), batch["labels"]),
        "retention": losses.feature_retention(*(vgg(x, "relu4_3")[0] for x in (output, image))),
        "colour": 8 * losses.colour_constancy(output, order=1),
        "variation": 200 * losses.curve_variation(curves),
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=name)
        assert value > 0


def test_presets_are_the_rows_of_table_3(contrast):
    whole = {"gram", "brightness", "consistency", "cross_entropy", "retention", "colour", "variation"}
    without = {
        "scl-lle": set(),
        "no-contrast": {"gram", "brightness"},
        "no-semantic": {"consistency", "cross_entropy"},
        "no-retention": {"retention"},
        "no-negatives": set(),
        "no-overexposed": set(),
        "no-underexposed": set(),
        "fit": {"consistency", "cross_entropy"},
    }
    assert zero_dce.SEMANTIC_PRESETS.keys() == without.keys()
    for name, missing in without.items():
        task = contrast(semantic(name))
        assert terms(task, task.batch(range(1))).keys() == whole - missing, name
    seen = {
        name: SemanticConfig(**zero_dce.SEMANTIC_PRESETS[name] | {"segmentation": "x"}).negatives for name in without
    }
    assert {name: kind for name, kind in seen.items() if kind != "both"} == {
        "no-negatives": "none",
        "no-overexposed": "under",
        "no-underexposed": "over",
    }
    config = SemanticConfig(segmentation="x")
    assert (config.side, config.batch, config.epochs, config.learning_rate) == (384, 2, 50, 1e-4)


def test_without_negatives_only_the_positive_counts(contrast, vgg):
    task = contrast(semantic("no-negatives"))
    batch = task.batch(range(2))
    image = batch["image"]
    output = ops.curve_iterate(image, task.model.predict_curves(image), 8)
    near = (output.mean((1, 2, 3)) - batch["positive"].mean((1, 2, 3))).abs()
    torch.testing.assert_close(terms(task, batch)["brightness"], 10 * (near + 0.04).mean())
    grams = [[losses.gram_matrix(f) for f in vgg(x, "relu1_2", "relu2_2")] for x in (output, batch["positive"])]
    distance = sum((a - b).square().sum((1, 2)) for a, b in zip(*grams, strict=True))
    torch.testing.assert_close(terms(task, batch)["gram"], 5 * (distance + 0.3).mean())


@pytest.mark.parametrize("kind", ["zero-dce", "scl-lle"])
def test_a_batch_is_the_mean_of_its_photos(kind, streets, contrast):
    task = zero(streets) if kind == "zero-dce" else contrast(semantic())
    batch = task.batch(range(4))
    if "labels" in batch:
        batch["labels"][1, :5], batch["labels"][3] = 255, 255
    together = terms(task, batch)
    parts = [terms(task, {name: value[n : n + 1] for name, value in batch.items()}) for n in range(4)]
    for name, term in together.items():
        each = torch.stack([part[name] for part in parts])
        assert each.max() > each.min(), name
        torch.testing.assert_close(term, each.mean(), msg=lambda text, name=name: f"{name}: {text}")


# ---- what is frozen


@pytest.mark.parametrize("only", ["gram", "retention", "cross_entropy"])
def test_gradients_come_through_frozen_networks_to_the_curves_alone(only, contrast):
    weights = dict.fromkeys(SemanticConfig.WEIGHTS, 0.0) | {only: 1.0}
    task = contrast(semantic(**weights))
    frozen = {key: tensor.clone() for net in task.frozen for key, tensor in net.state_dict(keep_vars=False).items()}
    terms(task, task.batch(range(2)))[only].backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert len(task.frozen) == 2
    for net in task.frozen:
        assert not net.training
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, frozen[key]), key


def test_frozen_networks_are_in_no_checkpoint_and_as_they_were(contrast, tmp_path):
    config = semantic()
    task = contrast(config)
    before = [{key: tensor.clone() for key, tensor in net.state_dict().items()} for net in task.frozen]
    curves = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    zero_dce.run(task, config, tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {name: set(state) for name, state in content["networks"].items()} == {"model": set(curves)}
    assert all(not torch.equal(tensor, curves[key]) for key, tensor in task.model.state_dict().items())
    for net, state in zip(task.frozen, before, strict=True):
        assert not net.training and all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert len(list(load(tmp_path / "model.safetensors").parameters())) == len(curves)


# ---- whole runs


def brightness(model: nn.Module, batch: Tensor) -> float:
    with torch.no_grad():
        return model(batch).mean().item()


def test_the_first_steps_of_zero_dce_brighten(streets, tmp_path):
    config = small(steps=60, learning_rate=3e-3, darken=4.0, batch=3)
    zero_dce.train(config, streets, tmp_path)
    image = Crops(find_labelled_photos(streets), 24, darken=4.0).batch(range(6))["image"]
    before, after = image.mean().item(), brightness(load(tmp_path / "model.safetensors"), image)
    assert after > before + 0.5 * (0.6 - before)


def test_fitting_begins_with_the_model_that_is_given(streets, tmp_path):
    torch.manual_seed(3)
    given = ZeroDCEPlusPlus(map_scale=2)
    given.about |= {"licence": "mine"}
    save(given, tmp_path / "given.safetensors")
    folder = streets / "leftImg8bit/train/aachen"
    config = small("fit", weights=str(tmp_path / "given.safetensors"), steps=1, learning_rate=1e-9)
    zero_dce.train(config, folder, tmp_path / "run")
    fitted = load(tmp_path / "run/model.safetensors")
    assert type(fitted) is ZeroDCEPlusPlus and fitted.map_scale == 2
    assert fitted.about["licence"] == "mine" and fitted.about["training"].startswith("2 photos")
    for key, tensor in given.state_dict().items():
        torch.testing.assert_close(fitted.state_dict()[key], tensor, msg=key)
    assert json.loads((tmp_path / "run/config.json").read_text())["darken"] == 1


def test_scl_lle_trains_through_deeplab_and_resumes(streets, exposures, tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install fastenh[segmentation]")
    config = semantic(encoder="resnet18", side=32)
    zero_dce.train_semantic(config, streets, exposures, tmp_path / "whole")
    zero_dce.train_semantic(semantic(encoder="resnet18", side=32, steps=1), streets, exposures, tmp_path / "run")
    zero_dce.train_semantic(config, streets, exposures, tmp_path / "run", resume=True)
    whole, resumed = (load(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_photos_without_labels_do_where_no_loss_needs_them(streets, exposures, tmp_path):
    photos = streets / "leftImg8bit/train/aachen"
    zero_dce.train_semantic(semantic("fit", steps=1), photos, exposures, tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").exists()
    with pytest.raises(ValueError, match=r"s_1_leftImg8bit\.png: expected a label map"):
        zero_dce.train_semantic(semantic(), photos, exposures, tmp_path / "other")
    with pytest.raises(ValueError, match="--references: expected a folder"):
        zero_dce.train_semantic(semantic("fit"), photos, None, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        (Config, {"system": "lam"}, "system: expected one of zero-dce, zero-dce++, got 'lam'"),
        (Config, {"exposure": -1}, "exposure: expected a number of at least 0, got -1.0"),
        (Config, {"darken": 0.5}, "darken: expected the largest γ, from 1 to 100, got 0.5"),
        (Config, {"side": 15}, "side: expected at least 16 pixels, got 15"),
        (Config, {"level": 1}, "level: expected a brightness between 0 and 1, got 1.0"),
        (SemanticConfig, {"negatives": "some"}, "negatives: expected one of both, under, over, none, got 'some'"),
        (
            SemanticConfig,
            {"segmentation": ""},
            "segmentation: expected a .pth or .safetensors file of a network trained on the data's classes, "
            "deeplabv3plus with resnet50 from segmentation-models-pytorch, got none; that package has none to "
            "download; cross_entropy=0 needs none",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_line(kind, changes, line):
    with pytest.raises(ValueError) as error:
        configure(kind, SEMANTIC if kind is SemanticConfig else SMALL, changes)
    assert str(error.value) == line


def test_only_curves_can_be_gone_on_with(streets, tmp_path):
    with pytest.raises(ValueError, match=r"weights: expected a model of zero-dce or zero-dce\+\+, got ImageAdaptive"):
        zero_dce.train(small(weights="auto"), streets, tmp_path / "run")
    shutil.copytree(streets / "leftImg8bit/train/aachen", tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match=r"no model 'none\.safetensors'"):
        zero_dce.train(small(weights="none.safetensors"), tmp_path / "photos", tmp_path / "run")
    assert not (tmp_path / "run").exists()
