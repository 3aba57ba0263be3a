"""`fastenh evaluate` on small data sets of known answer: the table, the files, and what it says of trouble."""

import csv
import re
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_cie76, rgb2lab
from skimage.metrics import peak_signal_noise_ratio
from sklearn.metrics import jaccard_score
from torch import nn
from typer.testing import CliRunner

from fastenh import evaluate
from fastenh.cli import app
from fastenh.data import Pair, cityscapes
from fastenh.enhance import Enhancer
from fastenh.metrics import load_pristine, niqe, psnr
from fastenh.models import ImageAdaptiveLUT, save

NAMES = ("0_0", "0_1", "0_2", "2_0", "10_0", "10_1")


def write(path: Path, pixels: np.ndarray) -> None:
    """uint8 or uint16, (H, W, C), through OpenImageIO, which writes 16-bit colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, channels = pixels.shape
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), oiio.ImageSpec(width, height, channels, pixels.dtype.name))
    assert file.write_image(np.ascontiguousarray(pixels))
    file.close()


def read(path: Path) -> np.ndarray:
    pixels = oiio.ImageInput.open(str(path)).read_image(oiio.UNKNOWN)
    return pixels / np.iinfo(pixels.dtype).max


@pytest.fixture
def portraits(tmp_path) -> Path:
    """PPR10K's layout: 16-bit sources, two 8-bit targets (a as the source, b lighter), masks; groups 0, 2 and 10."""
    folder = tmp_path / "portraits"
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        height, width = (30, 21) if index % 2 else (19, 33)
        tint = rng.uniform(0.5, 1, 3)
        target = (rng.integers(0, 200, (height, width, 3)) * tint).astype(np.uint8)
        mask = np.zeros((height, width, 1), np.uint8)
        mask[5:15, 4:12] = 255
        write(folder / "val" / "source" / f"{name}.tif", target.astype(np.uint16) * 257)
        write(folder / "val" / "target_a" / f"{name}.tif", target)
        write(folder / "val" / "target_b" / f"{name}.png", target + np.uint8(20))
        write(folder / "val" / "masks" / f"{name}.png", mask)
    return folder


@pytest.fixture(scope="session")
def identity(tmp_path_factory) -> Path:
    """A model that changes nothing."""
    model = ImageAdaptiveLUT(1, 9, "statistics")
    with torch.no_grad():
        model.classifier.head.weight.zero_()
        model.classifier.head.bias.fill_(1)
    path = tmp_path_factory.mktemp("weights") / "identity.safetensors"
    save(model, path)
    return path


@pytest.fixture
def run(identity):
    def call(*arguments, code: int, model: Path = identity) -> str:
        line = ["evaluate", "--model", model, "--device", "cpu", "--data", *arguments]
        result = CliRunner().invoke(app, list(map(str, line)))
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return call


def table(output: str) -> dict[tuple[str, str], dict[str, str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    return {(size, image): dict(zip(lines[0][2:], cells, strict=True)) for size, image, *cells in lines[2:]}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- the figures


def test_a_perfect_model(run, portraits):
    """The expert left the photos as they are, and so does the model."""
    output = run(portraits, code=0)
    result = table(output)
    assert list(result) == [("360p", "input"), ("360p", "identity"), ("full", "input"), ("full", "identity")]
    for line in result.values():
        assert list(line) == ["PSNR", "ΔE_ab", "PSNR^HC", "ΔE^HC", "M_GLC", "SSIM"]
        assert line["PSNR"] == line["PSNR^HC"] == "inf" and line["SSIM"] == "1.0000"
        assert line["ΔE_ab"] == line["ΔE^HC"] == "0.00" and float(line["M_GLC"]) > 1
    assert "portraits/val, target_a: 6 of 6 photos" in output
    assert "M_GLC leaves out groups of one photo, which has no variance: 2\n" in output


def test_every_figure_by_hand(run, portraits, tmp_path):
    """NumPy and scikit-image on the same files, for a model that takes red by 0.803 and green by 0.897."""
    model = ImageAdaptiveLUT(1, 17, "statistics")
    with torch.no_grad():
        model.luts *= torch.tensor([0.803, 0.897, 1.0])[None, :, None, None, None]
        model.classifier.head.weight.zero_()
        model.classifier.head.bias.fill_(1)
    save(model, tmp_path / "warm.safetensors")
    options = ("--expert", "b", "--size", "full", "--csv", tmp_path / "x.csv")
    result = table(run(portraits, *options, code=0, model=tmp_path / "warm.safetensors"))

    photos, colours = [], {}
    for name in NAMES:
        after = np.round(read(portraits / f"val/source/{name}.tif") * [0.803, 0.897, 1] * 255) / 255
        expert = read(portraits / f"val/target_b/{name}.png")
        weights = np.where(read(portraits / f"val/masks/{name}.png") > 0, 1, 0.5)
        lab = rgb2lab(after)
        photos.append(
            {
                "psnr": peak_signal_noise_ratio(expert, after, data_range=1),
                "delta_e": deltaE_cie76(lab, rgb2lab(expert)).mean(),
                "psnr_hc": -10 * np.log10(np.mean((weights * after - weights * expert) ** 2)),
                "delta_e_hc": np.linalg.norm(weights * lab - weights * rgb2lab(expert), axis=-1).mean(),
                "mean_a": lab[..., 1].mean(),
                "mean_b": lab[..., 2].mean(),
            }
        )
        colours.setdefault(name.split("_")[0], []).append(lab[..., 1:].mean((0, 1)))
    consistency = {group: np.var(values, axis=0, ddof=1).mean() for group, values in colours.items() if len(values) > 1}

    line = result["full", "warm"]
    for heading, name in (("PSNR", "psnr"), ("ΔE_ab", "delta_e"), ("PSNR^HC", "psnr_hc"), ("ΔE^HC", "delta_e_hc")):
        assert float(line[heading]) == pytest.approx(np.mean([photo[name] for photo in photos]), abs=0.006)
    assert float(line["M_GLC"]) == pytest.approx(np.mean(list(consistency.values())), abs=0.006)

    written = [row for row in rows(tmp_path / "x.csv") if row["image"] == "output"]
    assert [row["photo"] for row in written] == list(NAMES)
    for row, photo in zip(written, photos, strict=True):
        assert {name: float(row[name]) for name in photo} == pytest.approx(photo, rel=1e-3, abs=2e-3)
    groups = {row["group"]: row for row in rows(tmp_path / "x_groups.csv") if row["image"] == "output"}
    assert {group: row["photos"] for group, row in groups.items()} == {"0": "3", "2": "1", "10": "2"}
    assert groups["2"]["glc"] == ""
    assert {group: float(groups[group]["glc"]) for group in consistency} == pytest.approx(consistency, rel=1e-3)
    assert float(groups["0"]["psnr"]) == pytest.approx(np.mean([photo["psnr"] for photo in photos[:3]]), rel=1e-4)


def test_outputs_are_rounded_to_8_bits(run, tmp_path):
    """A source 0.4 of an 8-bit step over its target is equal to it once rounded, 0.6 is a step away."""
    for name, offset in (("1_0", 0.4), ("1_1", 0.6)):
        target = np.full((12, 12, 3), 100, np.uint8)
        write(tmp_path / "source" / f"{name}.tif", ((target + offset) * 257).astype(np.uint16))
        write(tmp_path / "target_a" / f"{name}.tif", target)
    run(tmp_path, "--csv", tmp_path / "x.csv", "--size", "full", code=0)
    figures = {row["photo"]: float(row["psnr"]) for row in rows(tmp_path / "x.csv") if row["image"] == "output"}
    assert figures == {"1_0": float("inf"), "1_1": pytest.approx(20 * np.log10(255), abs=1e-3)}


@pytest.mark.parametrize(
    ("size", "expected"), [((900, 600), (540, 360)), ((401, 1000), (360, 898)), ((300, 400), (300, 400))]
)
def test_360p_is_the_photo_with_that_short_side(tmp_path, monkeypatch, size, expected):
    """Reduced as Pillow does with its bilinear filter, which is antialiased; the target alike, so nothing differs."""
    monkeypatch.setattr(evaluate, "_measures", lambda image, target, *others: {"psnr": psnr(image, target).item()})
    seen = []

    class Look(nn.Module):
        def forward(self, image):
            seen.append(image[0])
            return image

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    write(tmp_path / "input" / "a.png", pixels)
    write(tmp_path / "target" / "a.png", pixels)
    (example,) = evaluate.find_examples(tmp_path).examples
    rows = evaluate.measure(example, Enhancer(Look(), "cpu"), ["360p", "full"])
    assert [row.measures["psnr"] for row in rows] == [float("inf")] * 4
    small, full = seen
    np.testing.assert_allclose(full * 255, pixels.transpose(2, 0, 1), atol=1e-3)
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in pixels.transpose(2, 0, 1)]
    reduced = [channel.resize(expected[::-1], Image.Resampling.BILINEAR) for channel in channels]
    np.testing.assert_allclose(small * 255, np.stack(reduced), atol=0.05)


def pristine(folder: Path) -> Path:
    """Parameters of NIQE, not those of pristine photos."""
    window = np.full((7, 7), 1 / 49)
    np.savez(folder / "p.npz", mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36), gaussian_window=window)
    return folder / "p.npz"


def test_niqe_where_its_parameters_are_given(run, tmp_path):
    parameters = pristine(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 203, 3), np.uint8)
    for part in ("input", "target"):
        write(tmp_path / part / "a.png", pixels)
    result = table(run(tmp_path, "--niqe", parameters, "--size", "full", code=0))
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]
    expected = niqe(image, load_pristine(parameters)).item()
    assert {line["NIQE"] for line in result.values()} == {f"{expected:.2f}"}
    output = run(tmp_path, "--niqe", tmp_path / "input" / "a.png", code=2)
    assert len(output.splitlines()) == 1 and "a.png: expected NIQE's pristine parameters as .npz" in output


def test_photos_without_targets_have_niqe_alone(run, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    photos = {name: rng.integers(0, 256, (100, 203, 3), np.uint8) for name in ("a_1", "a_2", "b")}
    for name, pixels in photos.items():
        write(tmp_path / "mine" / f"{name}.png", pixels)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # torchmetrics has no part in it
    arguments = ("--niqe", pristine(tmp_path), "--size", "full", "--csv", tmp_path / "x.csv")
    output = run(tmp_path / "mine", *arguments, code=0)
    assert "mine, no targets: 3 of 3 photos" in output and "M_GLC" not in output
    images = [torch.from_numpy(pixels / 255).permute(2, 0, 1)[None] for pixels in photos.values()]
    scores = [niqe(image, load_pristine(tmp_path / "p.npz")).item() for image in images]
    assert table(output) == {("full", name): {"NIQE": f"{np.mean(scores):.2f}"} for name in ("input", "identity")}
    written = {row["photo"]: row for row in rows(tmp_path / "x.csv") if row["image"] == "output"}
    assert [float(written[name]["niqe"]) for name in photos] == pytest.approx(scores, rel=1e-4)
    assert set(written["b"]) == {"size", "image", "photo", "group", "niqe"}
    output = run(tmp_path / "mine", code=2)
    assert output.endswith("mine: expected targets, or --niqe to measure photos alone, got neither\n")


class Halves(nn.Module):
    """Sees class 1 where a photo is brighter than a half, else class 0; of three."""

    def forward(self, image):
        bright = (image.mean(1, keepdim=True) > 0.5).float()
        return torch.cat([1 - bright, bright, torch.zeros_like(bright)], 1)


class Lift(nn.Module):
    def forward(self, image):
        return image**0.5


def street(root: Path, n: int, pixels: np.ndarray, labels: np.ndarray) -> None:
    write(root / f"leftImg8bit/val/ulm/{n}_leftImg8bit.png", pixels)
    write(root / f"gtFine/val/ulm/{n}_gtFine_labelTrainIds.png", labels[..., None])


def test_mean_iou_by_hand_before_and_after_at_each_gamma(tmp_path):
    rng = np.random.default_rng(0)
    truths, photos = [], []
    for n, size in enumerate(((20, 30), (16, 18))):
        pixels, labels = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 2, size, np.uint8)
        labels[:4] = 255
        labels[pixels.mean(2) > 150] = 1  # so that there is something to recognise
        street(tmp_path, n, pixels, labels)
        photos.append(pixels / 255)
        truths.append(labels)
    recognition = evaluate.Recognition(Enhancer(Lift(), "cpu"), Halves())
    for scene in cityscapes(tmp_path, "val"):
        recognition.add(scene)
    ious = recognition.ious()
    assert list(ious) == [(gamma, image) for gamma in (1, 2, 6, 10) for image in ("input", "output")]
    for (gamma, image), values in ious.items():
        seen = [np.round(photo**gamma * 255) / 255 for photo in photos]
        if image == "output":
            seen = [np.round(photo**0.5 * 255) / 255 for photo in seen]
        known = np.concatenate([truth[truth != 255] for truth in truths])
        found = np.concatenate([photo.mean(2)[t != 255] > 0.5 for photo, t in zip(seen, truths, strict=True)])
        expected = jaccard_score(known, found, average=None)
        np.testing.assert_allclose(values[:2], expected, rtol=1e-6)
        assert values[2].isnan()
    assert ious[1, "input"].nanmean() > ious[6, "input"].nanmean() and ious[6, "output"][1] > ious[6, "input"][1]


def test_recognition_by_a_network_from_a_file(run, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install fastenh[segmentation]")
    torch.manual_seed(0)
    network = smp.create_model("fpn", "mobilenet_v2", encoder_weights=None, classes=3)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    rng = np.random.default_rng(0)
    for n in range(3):
        street(
            tmp_path, n, rng.integers(0, 256, (33, 40, 3), np.uint8), rng.integers(0, 3 + (n == 2), (33, 40), np.uint8)
        )
    named = ("--segmentation", tmp_path / "network.pth", "--arch", "fpn", "--encoder", "mobilenet_v2")
    output = run(tmp_path, *named, "--csv", tmp_path / "x.csv", code=1)
    assert f"{tmp_path}, val: 2 of 3 photos, mean IoU in %" in output
    assert re.search(
        r"Failed: .*2_leftImg8bit.png: .*labelTrainIds.png: expected labels below 3 or 255, got \[3\]", output
    )
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "γ = 1", "γ = 2", "γ = 6", "γ = 10"]
    assert lines[2][1:] == lines[3][1:] and [lines[2][0], lines[3][0]] == ["input", "identity"]
    written = rows(tmp_path / "x.csv")
    assert [(row["gamma"], row["image"]) for row in written[:3]] == [("1", "input"), ("1", "output"), ("2", "input")]
    assert f"{100 * float(written[0]['miou']):.2f}" == lines[2][1]
    classes = [float(written[0][f"class_{n}"]) for n in range(3)]
    assert float(written[0]["miou"]) == pytest.approx(np.mean(classes), rel=1e-4)
    output = run(tmp_path, *named, "--expert", "a", code=2)
    assert output == "fastenh: expected --segmentation without --expert, --size and --niqe, got both\n"
    assert "leftImg8bit/test: expected photos" in run(tmp_path, *named, "--split", "test", code=2)


# ---- what lies where


def test_pairs_without_masks(run, portraits):
    (portraits / "val" / "target_b").rename(portraits / "val" / "target")
    (portraits / "val" / "source").rename(portraits / "val" / "input")
    for mask in (portraits / "val" / "masks").iterdir():
        mask.unlink()
    output = run(portraits / "val", "--size", "full", code=0)
    assert f"No masks in {portraits / 'val'}: human-centred measures are left out\n" in output
    (_, line) = table(output).values()
    assert list(line) == ["PSNR", "ΔE_ab", "M_GLC", "SSIM"]
    assert float(line["PSNR"]) == pytest.approx(20 * np.log10(255 / 20), abs=0.01)


def test_split_and_expert(run, portraits):
    (portraits / "val").rename(portraits / "train")
    output = run(portraits, "--split", "train", "--expert", "b", "--size", "360p", code=0)
    assert f"{portraits / 'train'}, target_b: 6 of 6 photos" in output
    assert f"{portraits / 'val'}: expected a folder with source/ or input/" in run(portraits, "--split", "val", code=2)


def test_a_group_is_all_before_the_last_underscore_as_in_training():
    names = {"12_3": "12", "mei_li_3": "mei_li", "alone": "alone"}
    for name, group in names.items():
        path = Path(f"{name}.png")
        assert evaluate.Example(name, path, path, None).group == Pair(name, (path,), path).group == group


def test_groups_of_one_alone_have_no_column(run, portraits):
    for name in NAMES[1:]:
        if name not in ("2_0", "10_0"):
            (portraits / "val" / "source" / f"{name}.tif").unlink()
    output = run(portraits, "--size", "full", code=0)
    assert all("M_GLC" not in line for line in table(output).values())
    assert "M_GLC leaves out groups of one photo, which has no variance: 0, 2, 10\n" in output
    assert "Skipping 3 photos of " in output and "(0_1, 0_2, 10_1)" in output


# ---- trouble


def test_failures_are_named_and_the_rest_is_measured(run, portraits, tmp_path):
    val = portraits / "val"
    (val / "target_a" / "0_0.tif").unlink()
    (val / "masks" / "0_1.png").unlink()
    write(val / "masks" / "0_2.png", np.zeros((19, 34, 1), np.uint8))
    write(val / "target_a" / "2_0.tif", np.zeros((8, 9, 3), np.uint8))
    data = (val / "source" / "10_0.tif").read_bytes()
    (val / "source" / "10_0.tif").write_bytes(data[: len(data) // 2])
    output = run(portraits, "--csv", tmp_path / "x.csv", code=1)
    failed = [line for line in output.splitlines() if line.startswith("Failed: ")]
    for line, message in zip(
        failed,
        (
            f"{val}/source/0_0.tif: {val}/target_a/0_0.tif: No such file or directory",
            f"{val}/source/0_1.tif: {val}/masks/0_1.png: No such file or directory",
            f"{val}/source/0_2.tif: {val}/masks/0_2.png: expected the source's size, 33×19, got 34×19",
            f"{val}/source/2_0.tif: {val}/target_a/2_0.tif: expected the source's size, 21×30, got 9×8",
            f"{val}/source/10_0.tif: expected a whole TIFF, got a damaged one",
        ),
        strict=True,
    ):
        assert line.startswith(f"Failed: {message}")
    assert "1 of 6 photos" in output and {row["photo"] for row in rows(tmp_path / "x.csv")} == {"10_1"}


def test_nothing_measured_writes_nothing(run, portraits, tmp_path):
    for source in (portraits / "val" / "source").iterdir():
        source.write_bytes(b"hello")
    output = run(portraits, "--csv", tmp_path / "x.csv", code=1)
    assert output.count("Failed: ") == 6 and "|" not in output and not list(tmp_path.glob("*.csv"))


def test_files_are_overwritten_only_when_told(run, portraits, tmp_path):
    (tmp_path / "x_groups.csv").write_text("old")
    assert "x_groups.csv: exists" in run(portraits, "--csv", tmp_path / "x.csv", code=2)
    assert not (tmp_path / "x.csv").exists() and (tmp_path / "x_groups.csv").read_text() == "old"
    output = run(portraits, "--csv", tmp_path / "x.csv", "--overwrite", "--size", "full", code=0)
    assert f"Wrote {tmp_path / 'x.csv'} and {tmp_path / 'x_groups.csv'}\n" in output
    assert len(rows(tmp_path / "x.csv")) == 12 and len(rows(tmp_path / "x_groups.csv")) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: expected a folder with source/ or input/, got no such folder"),
        (["."], ".: expected a folder with source/ or input/, got none in it"),
        (["portraits", "--expert", "c"], "target_c: expected a folder with the expert's photos, got no such folder"),
        (["empty"], "source: expected photos (.png, .tif, .tiff, .jpg, .jpeg), got none"),
        (["twice"], "source: expected one file for each photo, got 0_0.png and 0_0.tif"),
        (["portraits", "--model", "nonsense"], "no model 'nonsense'"),
    ],
)
def test_one_line_before_anything_is_begun(run, portraits, monkeypatch, arguments, message):
    monkeypatch.chdir(portraits.parent)
    for folder in ("empty", "twice"):
        Path(folder, "source").mkdir(parents=True)
        Path(folder, "target_a").mkdir()
    for suffix in ("png", "tif"):
        Path("twice", "source", f"0_0.{suffix}").touch()
    output = run(*arguments, code=2)
    assert len(output.splitlines()) == 1 and output.startswith("fastenh: ") and message in output


def test_without_torchmetrics(run, portraits, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert re.fullmatch(r"fastenh: expected torchmetrics .*'fastenh\[evaluate\]'\n", run(portraits, code=2))


def test_photos_too_small_for_ssim(run, tmp_path):
    for part in ("input", "target"):
        write(tmp_path / part / "a.png", np.zeros((5, 9, 3), np.uint8))
    output = run(tmp_path, code=1)
    assert f"Failed: {tmp_path}/input/a.png: SSIM: expected at least 6 pixels on each side, got 9×5" in output


def test_gray_targets_and_jpegs(run, tmp_path):
    gray = np.full((16, 24, 1), 90, np.uint8)
    write(tmp_path / "input" / "a.jpg", np.repeat(gray, 3, axis=2))
    write(tmp_path / "target" / "a.png", gray)
    assert float(table(run(tmp_path, code=0))["full", "identity"]["PSNR"]) > 45
