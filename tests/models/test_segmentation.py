"""Segmentation networks from files, against segmentation-models-pytorch itself."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from fastenh.models.segmentation import Segmentation

smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install fastenh[segmentation]")

SMALL = {"arch": "fpn", "encoder": "mobilenet_v2"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return smp.create_model("fpn", SMALL["encoder"], encoder_weights=None, classes=5).eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_both_kinds_give_the_network_itself(suffix, network, tmp_path):
    path = tmp_path / f"network.{suffix}"
    (torch.save if suffix == "pth" else save_file)(network.state_dict(), path)
    ours = Segmentation(path, **SMALL)
    image = torch.rand(2, 3, 64, 96)
    normal = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        torch.testing.assert_close(ours(image), network(normal))
        # Sides that are no multiples of 32: as if the edges went on.
        part = image[..., :50, :70]
        longer = torch.cat([part, part[..., -1:].expand(-1, -1, -1, 26)], 3)
        longer = torch.cat([longer, longer[:, :, -1:].expand(-1, -1, 14, -1)], 2)
        torch.testing.assert_close(ours(part), ours(longer)[..., :50, :70])


def test_deeplab_is_the_default_and_random_where_told():
    network = Segmentation("random")
    assert type(network.network) is smp.DeepLabV3Plus
    assert network.network.segmentation_head[0].out_channels == 19


def test_other_files_are_one_line(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "fpn.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"rubbish")
    for path, arch, words in (
        ("fpn.pth", "unet", r"fpn\.pth: expected the weights of unet on mobilenet_v2, got others \(.*Missing key"),
        ("fpn.pth", "deeplab9", "segmentation: expected names that segmentation-models-pytorch knows: .*deeplab9"),
        ("cut.safetensors", "fpn", r"cut\.safetensors: not a whole \.safetensors file"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            Segmentation(tmp_path / path, arch, SMALL["encoder"])
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Segmentation(tmp_path / "none.safetensors")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match=r"to be installed, got none: pip install 'fastenh\[segmentation\]'$"):
        Segmentation("random")
