"""Layouts, crops, and what becomes of photos that cannot be read."""

import shutil

import numpy as np
import OpenImageIO as oiio
import pytest
import torch
from PIL import Image

from fastenh.data import Pair, Pairs, Unpaired, UnreadablePhoto, find_pairs, read_size, read_tensor
from fastenh.data.example import make_portraits, write
from fastenh.losses import mean_colour


@pytest.fixture
def copied(portraits, tmp_path):
    return shutil.copytree(portraits, tmp_path / "data")


def test_16_bits_are_read_to_the_last(tmp_path):
    values = np.array([0, 1, 255, 257, 32768, 65535] * 3, dtype=np.uint16).reshape(2, 3, 3)
    for name in ("a.tif", "a.png"):
        write(tmp_path / name, values / 65535, 65535)
        expected = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)
        assert torch.equal(read_tensor(tmp_path / name), expected)
        assert read_size(tmp_path / name) == (2, 3)


@pytest.mark.parametrize(("mode", "channels"), [("L", [0, 0, 0]), ("RGB", [0, 1, 2]), ("RGBA", [0, 1, 2])])
def test_8_bits_are_full_scale_gray_is_repeated_and_alpha_left_out(mode, channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(tmp_path / "a.png")
    expected = torch.from_numpy(pixels[..., channels]).permute(2, 0, 1) / 255
    torch.testing.assert_close(read_tensor(tmp_path / "a.png"), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_photo_is_one_line(content, tmp_path):
    path = tmp_path / "a.tif"
    write(path, np.random.default_rng(0).random((60, 60, 3)), 65535)
    path.write_bytes(path.read_bytes()[:8000] if content is None else content)
    with pytest.raises(UnreadablePhoto, match=r"a\.tif: expected a .*, got") as error:
        read_tensor(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UnreadablePhoto):
        read_tensor(tmp_path / "missing.tif")


def test_ppr10k_is_found_with_its_augmentations_masks_and_experts(portraits):
    photos = find_pairs(portraits, "train", "b")
    assert len(photos) == 9
    photo = photos[4]
    assert (photo.name, photo.group) == ("1_1", "1")
    assert [path.name for path in photo.sources] == ["1_1.tif", "1_1_0.tif"]
    assert photo.target == portraits / "train/target_b/1_1.tif"
    assert photo.mask == portraits / "train/masks/1_1.png"
    spec = oiio.ImageInput.open(str(photo.sources[0])).spec()
    assert str(spec.format) == "uint16"


def test_folders_that_are_no_data_set_are_one_line(copied, tmp_path):
    for root, words in ((tmp_path / "none", "no such folder"), (tmp_path, "neither")):
        with pytest.raises(ValueError, match=f"expected train/source.*got {words}"):
            find_pairs(root)
    (copied / "train/target_a/1_1.tif").unlink()
    with pytest.raises(ValueError, match="expected a target for each photo, got none for 1_1"):
        find_pairs(copied)
    shutil.rmtree(copied / "train/target_c")
    with pytest.raises(ValueError, match="target_c: expected a folder of photos, got no such folder"):
        find_pairs(copied, expert="c")
    shutil.copy(copied / "train/source/1_1.tif", copied / "train/source_aug/9_9_0.tif")
    with pytest.raises(ValueError, match=r"expected 9_9 in .*source, got no such photo"):
        find_pairs(copied)


def test_the_example_writes_over_nothing(portraits):
    before = (portraits / "train/source/0_0.tif").read_bytes()
    message = "train: expected a folder that does not exist yet, got one that may hold your photos"
    with pytest.raises(FileExistsError, match=message):
        make_portraits(portraits, seed=1)
    assert (portraits / "train/source/0_0.tif").read_bytes() == before


def test_what_could_be_taken_for_another_photo_is_one_line(copied):
    shutil.copy(copied / "train/target_a/1_1.tif", copied / "train/target_a/1_1.png")
    with pytest.raises(ValueError, match=r"target_a: expected one file for each photo, got 1_1\.png and 1_1\.tif"):
        find_pairs(copied)
    (copied / "train/source").rename(copied / "train/input")
    (copied / "train/target_b").rename(copied / "train/target")
    assert len(find_pairs(copied)) == 9
    with pytest.raises(ValueError, match=r"expected train/source and train/target_b for expert b, got train/input"):
        find_pairs(copied, expert="b")


def test_a_folder_of_no_masks_is_as_none(copied):
    for mask in (copied / "train/masks").iterdir():
        mask.unlink()
    assert {photo.mask for photo in find_pairs(copied)} == {None}


def test_paired_folders_need_no_groups_and_masks(portraits, tmp_path):
    shutil.copytree(portraits / "train/source", tmp_path / "train/input")
    shutil.copytree(portraits / "train/target_a", tmp_path / "train/target")
    photos = find_pairs(tmp_path)
    assert [len(photo.sources) for photo in photos] == [1] * 9
    assert Pairs(photos, 16).batch(range(3))["input"].shape == (3, 1, 3, 16, 16)
    nameless = [Pair(f"a{n:04}", photo.sources, photo.target) for n, photo in enumerate(photos)]
    with pytest.raises(ValueError, match="group 'a0000': expected at least two photos"):
        Pairs(nameless, groups=True)


def gradient_photos(root, height=50, width=80):
    """Red says the row, green the column: a crop tells where it is from. Blue of input and target differ."""
    y, x = np.mgrid[0:height, 0:width]
    for kind, blue in (("source", 0.25), ("target_a", 0.75)):
        (root / "train" / kind).mkdir(parents=True)
        for n in range(4):
            image = np.dstack([y / height, x / width, np.full_like(x, blue, dtype=float)])
            write(root / "train" / kind / f"0_{n}.tif", image, 65535)
    (root / "train/masks").mkdir()
    for n in range(4):
        write(root / f"train/masks/0_{n}.png", (x >= width // 2)[..., None].astype(float), 255)
    return find_pairs(root)


def test_crops_of_input_target_and_mask_are_the_same_place(tmp_path):
    pairs = Pairs(gradient_photos(tmp_path), side=32, masks=True)
    batch = pairs.batch(range(64))
    inputs, targets, masks = batch["input"][:, 0], batch["target"][:, 0], batch["mask"][:, 0]
    torch.testing.assert_close(inputs[:, :2], targets[:, :2])
    assert inputs[:, 2].mean().item() == pytest.approx(0.25, abs=1e-4)
    assert targets[:, 2].mean().item() == pytest.approx(0.75, abs=1e-4)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    clear = (inputs[:, 1] - 0.5).abs() > 0.05
    assert torch.equal(masks[:, 0][clear] == 1, inputs[:, 1][clear] > 0.5)

    columns = inputs[:, 1, 0]
    flipped = columns[:, 0] > columns[:, -1]
    assert 16 < flipped.sum() < 48
    heights = inputs[:, 0, -1, 0] - inputs[:, 0, 0, 0]
    widths = (columns[:, -1] - columns[:, 0]).abs()
    for spans in (heights, widths):  # 0.6 to 1 of the side, a pixel less at the ends
        assert spans.min() > 0.5 and spans.max() < 1.01
        assert spans.max() - spans.min() > 0.25
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.5  # independent


def test_two_windows_are_of_one_crop_and_of_two_sources(portraits):
    batch = Pairs(find_pairs(portraits), side=40, masks=True, windows=2).batch(range(12))
    assert batch["input"].shape == batch["target"].shape == (12, 2, 3, 30, 30)
    assert batch["mask"].shape == (12, 2, 1, 30, 30)
    moved = 0
    for targets, inputs, ((top, left), (down, right)) in zip(
        batch["target"], batch["input"], batch["corners"].tolist(), strict=True
    ):
        canvas = torch.full((2, 6, 40, 40), torch.nan)
        canvas[0, :, top : top + 30, left : left + 30] = torch.cat([targets[0], inputs[0]])
        canvas[1, :, down : down + 30, right : right + 30] = torch.cat([targets[1], inputs[1]])
        both = canvas[:, 0].isfinite().all(0)
        assert torch.equal(canvas[0, :3, both], canvas[1, :3, both])
        assert not torch.equal(canvas[0, 3:, both], canvas[1, 3:, both])
        moved += (top, left) != (down, right)
    assert moved > 8


def test_an_epoch_takes_each_photo_once_in_an_order_of_its_own(tmp_path, portraits):
    photos = find_pairs(portraits)
    pairs = Pairs(photos, side=16, seed=3)
    taken = []
    pairs.crop = lambda photo, rng: taken.append(photo.name)
    for position in range(18):
        pairs.sample(position)
    names = {photo.name for photo in photos}
    assert set(taken[:9]) == set(taken[9:]) == names
    assert taken[:9] != taken[9:]


def test_samples_follow_from_seed_and_position_alone(portraits):
    photos = find_pairs(portraits)
    one, other = Pairs(photos, side=16, seed=3), Pairs(photos, side=16, seed=3)
    whole = one.batch(range(8))["input"]
    for position in (5, 2, 7):
        assert torch.equal(other.sample(position)["input"], whole[position])
    assert not torch.equal(Pairs(photos, side=16, seed=4).batch(range(8))["input"], whole)


def test_groups_say_the_colours_of_the_other_targets(portraits):
    photos = find_pairs(portraits)
    pairs = Pairs(photos, side=16, groups=True)
    for photo in photos:
        others = [p for p in photos if p.group == photo.group and p is not photo]
        values = torch.stack([mean_colour(read_tensor(p.target)[None])[0] for p in others])
        assert pairs.others[photo.name]["count"] == 2
        torch.testing.assert_close(pairs.others[photo.name]["mean"], values.mean(0))
        torch.testing.assert_close(pairs.others[photo.name]["spread"], values.var(0, correction=0) * 2)
    assert pairs.batch(range(2))["spread"].shape == (2, 2)


def test_a_group_of_one_a_missing_mask_and_another_size_are_one_line(copied):
    train = copied / "train"
    for n in (1, 2):
        (train / f"source/2_{n}.tif").unlink()
        (train / f"source_aug/2_{n}_0.tif").unlink()
    with pytest.raises(ValueError, match="group '2': expected at least two photos for a common style, got one"):
        Pairs(find_pairs(copied), groups=True)
    write(train / "masks/1_2.png", np.zeros((40, 57, 1)), 255)
    with pytest.raises(ValueError, match=r"masks/1_2\.png: expected the size of .*1_2\.tif, 56×40, got 57×40"):
        Pairs(find_pairs(copied), masks=True)
    assert len(Pairs(find_pairs(copied))) == 7  # who needs no masks does not look at them
    (train / "masks/1_2.png").unlink()
    with pytest.raises(ValueError, match="1_2: expected a mask of its people, got none"):
        Pairs(find_pairs(copied), masks=True)
    write(train / "target_a/0_1.tif", np.zeros((41, 56, 3)), 255)
    with pytest.raises(ValueError, match=r"target_a/0_1\.tif: expected the size of"):
        Pairs(find_pairs(copied))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Over a hundred photos, so that one may be damaged."""
    root = tmp_path_factory.mktemp("many")
    make_portraits(root, groups=35, photos=3, augmentations=0, size=(20, 24))
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def test_a_damaged_photo_is_named_once_and_another_takes_its_place(many, tmp_path, capsys):
    root = shutil.copytree(many, tmp_path / "data")
    whole = Pairs(find_pairs(root), side=8).batch(range(210))["input"]
    truncate(root / "train/source/7_1.tif")
    pairs = Pairs(find_pairs(root), side=8)
    inputs = pairs.batch(range(210))["input"]
    changed = (inputs != whole).flatten(1).any(1)
    assert changed.sum() == 2  # once in each epoch
    assert capsys.readouterr().err.count("7_1.tif") == 1
    late = Pairs(find_pairs(root), side=8)
    position = changed.nonzero()[1].item()
    assert torch.equal(late.sample(position)["input"], inputs[position])  # whoever finds it out, and when


def test_more_than_one_percent_of_damaged_photos_are_an_error(many, tmp_path):
    root = shutil.copytree(many, tmp_path / "data")
    truncate(root / "train/source/7_1.tif")
    truncate(root / "train/target_a/9_0.tif")
    with pytest.raises(ValueError, match=r"at most 1 % of the photos to be unreadable, got 2 of 105; the last: .*tif"):
        Pairs(find_pairs(root), side=8).batch(range(105))
    (root / "train/masks/3_0.png").write_bytes(b"rubbish")
    (root / "train/source/4_0.tif").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="got 2 of 105"):  # seen from their headers
        Pairs(find_pairs(root), side=8, masks=True)


def test_unpaired_photos_are_drawn_independently(portraits, tmp_path):
    shutil.copytree(portraits / "train/source", tmp_path / "train/input")
    shutil.copytree(portraits / "train/target_b", tmp_path / "train/target")
    for path in list((tmp_path / "train/target").glob("2_*")):
        path.rename(path.with_name(f"other{path.name}"))
    unpaired = Unpaired(tmp_path, side=16)
    assert len(unpaired) == 9
    batch = unpaired.batch(range(9))
    assert batch["input"].shape == batch["target"].shape == (9, 3, 16, 16)
    orders = [[part.photos[i].name for i in range(9)] for part in (unpaired.inputs, unpaired.targets)]
    assert orders[0] != orders[1]
    assert unpaired.inputs.seed != unpaired.targets.seed
