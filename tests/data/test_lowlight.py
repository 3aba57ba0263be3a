"""Cityscapes, SICE and folders of photos: what is found in them, and what training sees of it."""

import shutil

import numpy as np
import pytest
import torch

from fastenh.data import Contrasts, Crops, apply_gamma, find_labelled_photos, find_references, read_labels, read_tensor
from fastenh.data.example import write
from fastenh.data.lowlight import LABEL_IDS


def test_cityscapes_is_found_with_its_labels(streets, tmp_path):
    scenes = find_labelled_photos(streets, "train")
    assert [scene.name for scene in scenes] == ["s_1", "s_2", "s_0"]
    assert scenes[2].image == streets / "leftImg8bit/train/bonn/s_0_leftImg8bit.png"
    assert scenes[2].labels == streets / "gtFine/train/bonn/s_0_gtFine_labelTrainIds.png"
    assert len(find_labelled_photos(streets, "val")) == 2
    with pytest.raises(ValueError, match=r"leftImg8bit/test: expected photos, CITY/NAME_leftImg8bit.png, got no such"):
        find_labelled_photos(streets, "test")
    photos = find_labelled_photos(streets / "leftImg8bit/train/aachen")  # any folder of photos
    assert [(scene.name, scene.labels) for scene in photos] == [("s_1_leftImg8bit", None), ("s_2_leftImg8bit", None)]
    with pytest.raises(ValueError, match=r"s_1_leftImg8bit\.png: expected a label map"):
        Crops(photos, 16, labels=True)
    with pytest.raises(ValueError, match="expected photos"):
        find_labelled_photos(tmp_path)


def test_label_ids_become_the_19_classes(tmp_path):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for kind in ("labelIds", "labelTrainIds"):
        write(tmp_path / f"a_gtFine_{kind}.png", ids / 255, 255)
    labels = read_labels(tmp_path / "a_gtFine_labelIds.png").flatten()
    assert {n: labels[n].item() for n in range(256) if labels[n] != 255} == {n: k for k, n in enumerate(LABEL_IDS)}
    assert (labels[[7, 11, 26, 33, 0, 34]].tolist()) == [0, 2, 13, 18, 255, 255]
    assert torch.equal(read_labels(tmp_path / "a_gtFine_labelTrainIds.png").flatten(), torch.arange(256).byte())


def test_labels_stay_on_their_pixels(streets):
    batch = Crops(find_labelled_photos(streets), 32, labels=True).batch(range(24))
    image, labels = batch["image"], batch["labels"]
    assert labels.shape == (24, 32, 32) and labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 255}
    told = (image[:, 2] / 0.1 - 1).round()
    inside = (told[:, 1:-1, 1:-1] == told[:, :-2, 1:-1]) & (told[:, 1:-1, 1:-1] == told[:, 1:-1, 2:])
    known = inside & (labels[:, 1:-1, 1:-1] != 255)
    wrong = (told[:, 1:-1, 1:-1] != labels[:, 1:-1, 1:-1]) & known
    assert wrong.sum() < 0.03 * known.sum()  # on the edges alone
    flipped = image[:, 1, 0, 0] > image[:, 1, 0, -1]
    assert 4 < flipped.sum() < 20


def test_photos_become_darker_by_a_power_of_which_the_logarithm_is_uniform(streets):
    scenes = find_labelled_photos(streets)
    plain, dark = (Crops(scenes, 32, seed=3, darken=darken).batch(range(100))["image"] for darken in (1.0, 8.0))
    assert torch.equal(dark, (dark * 255).round() / 255)
    bright = (plain > 0.3) & (plain < 0.9) & (dark > 0.1)
    powers = torch.stack(
        [(d[b].log() / p[b].log()).median() for p, d, b in zip(plain, dark, bright, strict=True) if b.any()]
    )
    shares = powers.log() / np.log(8)
    assert -0.01 < shares.min() < 0.06 and shares.mean().item() == pytest.approx(0.5, abs=0.1) and shares.max() > 0.93
    assert torch.equal(Crops(scenes, 32, seed=3, darken=8.0).sample(7)["image"], dark[7])
    assert not torch.equal(Crops(scenes, 32, seed=4, darken=8.0).sample(7)["image"], dark[7])
    assert apply_gamma(plain, 1) is plain


def test_sice_gives_one_under_and_one_over_of_each_scene(exposures, tmp_path):
    references = find_references(exposures)
    levels = [[read_tensor(s.image).mean().item() for s in part] for part in references]
    for part, level in zip(levels, (0.6, 0.1, 0.9), strict=True):  # 10 comes after 2
        assert part == pytest.approx([level] * 3, abs=0.02)
    for part, name in (("well", "Label"), ("under", "1"), ("over", "2")):
        shutil.copytree(exposures / name, tmp_path / part)
    assert [len(part) for part in find_references(tmp_path)] == [3, 3, 3]
    with pytest.raises(ValueError, match=r"none: expected Label/ and a folder for each scene, .* got no such folder"):
        find_references(tmp_path / "none")
    broken = shutil.copytree(exposures, tmp_path / "broken")
    for n in (2, 10):
        (broken / f"3/{n}.png").unlink()
    with pytest.raises(ValueError, match="3: expected at least two exposures, got 1"):
        find_references(broken)


def kinds(images: torch.Tensor) -> list[str]:
    return [min((abs(image.mean().item() - level), kind) for kind, level in
                (("well", 0.6), ("under", 0.1), ("over", 0.9)))[1] for image in images]  # fmt: skip


def test_triples_are_drawn_anew_in_each_epoch(streets, exposures):
    scenes, references = Crops(find_labelled_photos(streets), 24, seed=1), find_references(exposures)
    batch = Contrasts(scenes, references).batch(range(60))
    assert {name: tuple(t.shape) for name, t in batch.items()} == dict.fromkeys(
        ("image", "positive", "negative"), (60, 3, 24, 24)
    )
    assert torch.equal(batch["image"], scenes.batch(range(60))["image"])
    assert set(kinds(batch["positive"])) == {"well"}
    assert 15 < kinds(batch["negative"]).count("under") < 45
    again = Contrasts(scenes, references).batch(range(40, 43))
    assert all(torch.equal(again[name], batch[name][40:43]) for name in batch)
    later = Contrasts(scenes, references).batch(range(60, 120))
    assert not torch.equal(later["positive"], batch["positive"])
    for negatives in ("under", "over"):
        assert set(kinds(Contrasts(scenes, references, negatives).batch(range(8))["negative"])) == {negatives}
    assert "negative" not in Contrasts(scenes, references, "none").batch(range(2))


def test_labels_of_another_size_are_one_line(streets, tmp_path):
    root = shutil.copytree(streets, tmp_path / "data")
    write(root / "gtFine/train/aachen/s_2_gtFine_labelTrainIds.png", np.zeros((40, 70, 1)), 255)
    with pytest.raises(ValueError, match=r"s_2_gtFine.*: expected the size of s_2_leftImg8bit.png, 72×40, got 70×40"):
        Crops(find_labelled_photos(root), 16, labels=True)
    (root / "gtFine/train/aachen/s_2_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(ValueError, match=r"s_2_leftImg8bit.png: expected a label map, as .*, got none"):
        Crops(find_labelled_photos(root), 16, labels=True)
    assert len(Crops(find_labelled_photos(root), 16)) == 3  # who needs no labels does not look for them
