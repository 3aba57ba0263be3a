"""The same kind of image comes out as went in, retouched by the formula: (1 − strength) · image + strength · model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastenh.engine import Options
from fastenh.enhance import Enhancer
from fastenh.io import read_photo
from fastenh.models import ImageAdaptiveLUT, LocalContextLUT, save
from fastenh.models.system import Picture

RNG = np.random.default_rng(3)
PHOTO = RNG.integers(0, 256, (24, 36, 3), np.uint8)


class Curve(nn.Module):
    """A model with a plain forward, whose results pass 1: 1.2 · √x."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[1] == 3
        return 1.2 * image.sqrt()


class Plain(nn.Module):
    """Hides what else a model can do, so that its forward is used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image)


def by_formula(image: np.ndarray, strength: float) -> np.ndarray:
    """`Curve` in float64, for an array of any dtype."""
    scale = {"uint8": 255, "uint16": 65535}.get(image.dtype.name)
    x = image.astype(np.float64) / (scale or 1)
    y = np.clip((1 - strength) * x + strength * 1.2 * np.sqrt(x), 0, 1)
    return np.rint(y * scale) if scale else y


@pytest.fixture(scope="module")
def lut_model() -> ImageAdaptiveLUT:
    """LUTs that bend each channel by its own power, and a classifier that has its say."""
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(3, 9, "statistics")
    identity = model.luts.detach()[0]
    with torch.no_grad():
        model.luts.copy_(torch.stack([identity**0.7, identity**1.5, identity.flip(0) * 0.1]))
        model.classifier.head.bias.copy_(torch.tensor([0.6, 0.4, 0.2]))
    return model.eval()


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("uint8", 0), ("uint16", 1), ("float16", 1e-3), ("float32", 1e-6), ("float64", 1e-6)]
)
def test_arrays_follow_the_formula(dtype, tolerance, strength):
    full = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    image = (PHOTO / 255 * full).astype(dtype)
    before = image.copy()
    result = Enhancer(Curve(), "cpu")(image, strength)
    assert isinstance(result, np.ndarray) and result.dtype == image.dtype and result.shape == image.shape
    assert np.abs(result.astype(np.float64) - by_formula(before, strength)).max() <= tolerance
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(3, 24, 36), (1, 3, 24, 36), (4, 3, 8, 5)])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("fast", [True, False])
def test_tensors_keep_shape_dtype_and_values(lut_model, shape, dtype, fast):
    full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * full).to(dtype)
    before = image.clone()
    result = Enhancer(lut_model if fast else Plain(lut_model), "cpu")(image, 0.6)
    assert result.shape == image.shape and result.dtype == dtype and result.device == image.device
    assert torch.equal(image, before)
    x = image.float() / full
    with torch.no_grad():
        expected = (0.4 * x + 0.6 * lut_model(x.reshape(-1, *shape[-3:])).reshape(shape)).clamp(0, 1)
    error = (result.float() / full - expected).abs().max().item()
    assert error <= {torch.uint8: 0.502 / 255, torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_local_context_takes_integers_without_a_frame_of_floats(dtype):
    torch.manual_seed(0)
    model = LocalContextLUT(2, 5, "statistics").eval()
    with torch.no_grad():
        model.luts[1] = torch.rand(3, 5, 5, 5)
    seen, render = [], model.render
    model.render = lambda image, *rest: (seen.append(image.dtype), render(image, *rest))[1]
    full = 255 if dtype == torch.uint8 else 65535
    image = (torch.rand(3, 24, 36) * full).to(dtype)
    result = Enhancer(model, "cpu")(image)
    assert seen == [dtype]
    with torch.no_grad():
        expected = model(image[None].float() / full, fused=False)[0].clamp(0, 1)
    assert (result.float() / full - expected).abs().max() <= 0.502 / full + 1e-4 * (full == 65535)
    part = Enhancer(model, "cpu")(image, 0.5).float()  # blends before it rounds
    assert (part / full - (image.float() / full + expected) / 2).abs().max() <= 0.502 / full + 1e-4 * (full == 65535)


def test_strength_0_is_the_image_itself(lut_model):
    enhancer = Enhancer(lut_model, "cpu")
    beyond = torch.tensor([-3.0, 0.1, 7.0, torch.nan]).expand(3, 2, 4)
    assert torch.equal(enhancer(beyond, 0).nan_to_num(5.0), beyond.nan_to_num(5.0))
    assert np.array_equal(enhancer(PHOTO, 0), PHOTO)
    result = enhancer(PHOTO, 0)
    result[:] = 0
    assert PHOTO.any()  # a copy, not the array itself
    for mode in ("L", "LA", "RGB", "RGBA"):
        image = Image.fromarray(RNG.integers(0, 256, (40, 40, 4), np.uint8)).convert(mode)
        again = enhancer(image, 0)
        assert again.mode == mode and again.tobytes() == image.tobytes()


def test_floats_are_clamped_to_the_range_of_an_image():
    result = Enhancer(Curve(), "cpu")(torch.full((3, 2, 2), 0.9))
    assert torch.equal(result, torch.ones(3, 2, 2))


@pytest.mark.parametrize("fast", [True, False])
def test_memory_layout_changes_nothing(lut_model, fast):
    enhancer = Enhancer(lut_model if fast else Plain(lut_model), "cpu")
    expected = enhancer(np.ascontiguousarray(PHOTO[::-1, ::2, ::-1]))
    read_only = PHOTO.copy()
    read_only.flags.writeable = False
    assert np.array_equal(enhancer(PHOTO[::-1, ::2, ::-1]), expected)
    assert np.array_equal(enhancer(read_only), enhancer(PHOTO))
    assert np.array_equal(enhancer(np.asfortranarray(PHOTO)), enhancer(PHOTO))
    between = np.zeros(PHOTO.shape[:2], [("name", "u1"), ("colours", "u2", 3)])  # an odd number of bytes a pixel
    between["colours"] = PHOTO.astype(np.uint16) * 257
    assert np.array_equal(enhancer(between["colours"]), enhancer(between["colours"].copy()))
    tensor = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    assert torch.equal(enhancer(tensor), enhancer(tensor.contiguous()))
    assert np.array_equal(enhancer(tensor).permute(1, 2, 0).numpy(), enhancer(PHOTO))


def test_a_batch_is_its_images_one_by_one(lut_model):
    enhancer = Enhancer(lut_model, "cpu")
    batch = torch.rand(3, 3, 9, 7, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([enhancer(image) for image in batch])
    assert torch.allclose(enhancer(batch), alone, atol=1e-6)


def test_pil_keeps_mode_alpha_and_info(lut_model):
    enhancer = Enhancer(lut_model, "cpu")
    rgba = Image.fromarray(RNG.integers(0, 256, (24, 36, 4), np.uint8))
    rgba.info = {"icc_profile": b"a profile", "exif": b"exif"}
    before = rgba.tobytes()
    result = enhancer(rgba)
    assert result.mode == "RGBA" and result.info == rgba.info and rgba.tobytes() == before
    assert result.getchannel("A").tobytes() == rgba.getchannel("A").tobytes()
    assert np.array_equal(np.asarray(result)[..., :3], enhancer(np.asarray(rgba)[..., :3]))

    grey = rgba.convert("L")
    result = enhancer(grey)
    colour = enhancer(np.asarray(grey.convert("RGB"))).astype(float)
    luma = colour @ (0.299, 0.587, 0.114)
    assert result.mode == "L" and np.abs(np.asarray(result) - luma).max() < 0.51
    assert enhancer(rgba.convert("LA")).getchannel("A").tobytes() == rgba.getchannel("A").tobytes()


def test_a_path_is_read_upright(lut_model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif, icc_profile=b"a profile")
    enhancer = Enhancer(lut_model, "cpu")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        result = enhancer(path)
        assert result.pixels.shape == (36, 24, 3) and result.header.orientation == 1
        assert np.array_equal(np.asarray(result), enhancer(np.asarray(read_photo(path))))
        turned = np.rot90(enhancer(PHOTO).astype(int), -1)
        assert np.abs(np.asarray(result) - turned).max() <= 1  # statistics of the same pixels, summed in another order


def test_models_by_path_and_device_by_hand(lut_model, tmp_path):
    save(lut_model, tmp_path / "m.safetensors")
    for path in (tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        assert np.array_equal(Enhancer(path, torch.device("cpu"))(PHOTO), Enhancer(lut_model, "cpu")(PHOTO))


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (PHOTO[..., 0], ValueError, r"shape \(height, width, 3\), got \(24, 36\)"),
        (np.dstack([PHOTO, PHOTO]), ValueError, r"\(height, width, 3\), got \(24, 36, 6\)"),
        (PHOTO.astype(np.int32), TypeError, "got an array of int32"),
        (PHOTO.astype(np.float32), ValueError, r"float values in \[0, 1\], got up to 255"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(3, 0, 4\)"),
        (torch.zeros(4, 8, 8), ValueError, r"shape \(3, H, W\) or \(B, 3, H, W\), got \(4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), ValueError, r"got \(0, 3, 8, 8\)"),
        (torch.zeros(8), ValueError, r"got \(8,\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError, "got a tensor of torch.int64"),
        (Image.new("CMYK", (4, 4)), ValueError, "mode L, LA, RGB or RGBA, got CMYK"),
        ([[0, 0, 0]], TypeError, "expected a path, Photo, PIL image, NumPy array or tensor, got list"),
        (Path("missing.jpg"), FileNotFoundError, "missing.jpg"),
    ],
)
def test_what_is_no_image_is_refused(image, kind, message):
    with pytest.raises(kind, match=message):
        Enhancer(Curve(), "cpu")(image)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="strength: expected a number from 0 to 1, got"):
        Enhancer(Curve(), "cpu")(PHOTO, strength)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=rf"device: expected auto or a torch device here \(cpu.*\), got {device}"):
        Enhancer(Curve(), device)


@pytest.mark.parametrize(("precision", "message"), [("half", "expected float32, float16, bfloat16, got 'half'"),
                                                    ("float16", "expected float32 on a CPU, got float16")])  # fmt: skip
def test_a_precision_that_is_not_there(precision, message):
    with pytest.raises(ValueError, match=f"^precision: {message}$"):
        Enhancer(Curve(), "cpu", precision)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [True, False])
def test_half_precision_is_of_networks_and_wide_floats(lut_model, dtype, parts):
    """On the CPU, which refuses it, to see what becomes of dtypes: networks run in it, tables do not."""
    enhancer = Enhancer(lut_model if parts else Plain(lut_model), "cpu")
    image = (torch.rand(3, 24, 36) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    expected = enhancer(image)
    seen = []
    hook = lut_model.classifier.head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    enhancer.engine.dtype = torch.bfloat16
    result = enhancer(image)
    hook.remove()
    params = enhancer.engine.predict(Picture(image[None]), Options())
    assert seen == [torch.bfloat16] and len(params) == parts and result.dtype == dtype
    assert all(t.dtype == torch.float32 for t in params)
    bound = 5 if dtype == torch.uint8 else 2e-2
    assert 0 < (result.double() - expected.double()).abs().max() <= bound
    assert torch.equal(enhancer(image, 0), image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_tensors_come_back_to_their_device(lut_model):
    image = torch.from_numpy(PHOTO).permute(2, 0, 1)
    on_gpu, on_cpu = Enhancer(lut_model, "cuda"), Enhancer(lut_model, "cpu")
    assert on_gpu(image).device.type == "cpu" and on_gpu(image.cuda()).is_cuda and on_cpu(image.cuda()).is_cuda
    assert (on_gpu(image).int() - on_cpu(image).int()).abs().max() <= 1


def test_arrays_need_neither_openimageio_nor_imagecodecs(tmp_path):
    """On a machine that has little more than torch, the ops and Enhancer run, and JPEGs are read."""
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg")
    code = (
        "import sys; sys.modules['OpenImageIO'] = sys.modules['imagecodecs'] = None; import fastenh, fastenh.io, numpy;"
        "fastenh.Enhancer('auto', 'cpu')(numpy.zeros((9, 9, 3), numpy.uint8)); fastenh.io.read_photo('a.jpg')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
