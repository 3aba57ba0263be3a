"""Files of tensors that are damaged, or made to exhaust memory or time, are refused in one line."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastenh import models
from fastenh.models import CSRNet, ImageAdaptiveLUT, csrnet, lut3d
from fastenh.models.checkpoint import checksum
from fastenh.models.published import check_archive, read_pth
from fastenh.models.segmentation import read_weights


@pytest.fixture
def path(tmp_path) -> Path:
    torch.manual_seed(0)
    models.save(ImageAdaptiveLUT(2, 5, "statistics"), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def changed(path: Path, **tensors) -> None:
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(load_file(path) | tensors, path, about)


def refused(read, path, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_300_000_tensors_are_refused_before_one_is_read(tmp_path, monkeypatch):
    entries = {
        f"layer{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(300_000)
    }
    header = json.dumps({"__metadata__": {"fastenh": "{}"}} | entries).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * 300_000))
    monkeypatch.setattr("fastenh.models.checkpoint.safe_open", None)
    for read in (models.load, read_weights):
        refused(read, tmp_path / "a.safetensors", rf"expected a header of at most 1048576 bytes, got {len(header)}$")


def test_metadata_of_absurd_size_are_refused(path):
    save_file(load_file(path), path, {"fastenh": "{}", "notes": "a" * 2**21})
    refused(models.load, path, "expected a header of at most 1048576 bytes, got 20")


def test_names_of_other_tensors_are_refused_before_one_is_read(path, monkeypatch):
    changed(path, more=torch.zeros(0, 3))
    refused(models.load, path, r"expected more absent in a lut3d model, got \(0, 3\)$")


def test_a_tensor_twice_is_refused(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()
    first, last = json.loads(header)["luts"]["data_offsets"]
    entry = json.dumps(json.loads(header)["luts"] | {"data_offsets": [first + 4, last + 4]})
    header = header[:-1] + f',"luts":{entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    refused(models.load, path, r"not a whole \.safetensors file")


@pytest.mark.parametrize(
    ("luts", "message"),
    [
        (
            torch.full((2, 3, 5, 5, 5), 1e300, dtype=torch.float64),
            r"floats that float32 holds in luts, got up to 1e\+300$",
        ),
        (
            torch.full((2, 3, 5, 5, 5), float("-inf"), dtype=torch.float64),
            "finite floats in luts, got torch.float64 or NaN",
        ),
        (
            torch.full((2, 3, 5, 5, 5), float("nan"), dtype=torch.bfloat16),
            "finite floats in luts, got torch.bfloat16 or NaN",
        ),
        (torch.zeros(2, 3, 5, 5, 5, dtype=torch.complex64), "finite floats in luts, got torch.complex64 or NaN"),
        (torch.zeros(2, 3, 5, 5, 5, dtype=torch.bool), "finite floats in luts, got torch.bool or NaN"),
    ],
)
def test_numbers_that_float32_does_not_hold(path, luts, message):
    changed(path, luts=luts)
    refused(models.load, path, message)


def test_a_model_that_was_changed_is_refused_and_one_without_checksum_loads(path):
    luts = load_file(path)["luts"]
    luts.view(torch.int32)[0, 0, 0, 0, 0] ^= 1
    changed(path, luts=luts)
    refused(models.load, path, r"expected a model of BLAKE2b [0-9a-f]{32}, got a damaged one of [0-9a-f]{32}$")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["fastenh"])
    del config["blake2b"]
    save_file(load_file(path), path, {"fastenh": json.dumps(config)})
    assert torch.equal(models.load(path).luts, luts)


def test_changed_notes_are_refused_as_well(path):
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["fastenh"])
    config["about"]["colour"] = "linear"
    save_file(load_file(path), path, {"fastenh": json.dumps(config)})
    refused(models.load, path, "BLAKE2b")


def test_a_checksum_is_of_names_kinds_shapes_and_numbers():
    content = {"a": torch.arange(6.0).view(2, 3), "b": [1, 2.5, None, "text"]}
    assert checksum(content) == checksum(dict(reversed(content.items())))
    assert checksum(content) == checksum(
        content | {"a": content["a"].t().contiguous().t()}  # laid out otherwise
    )
    others = [
        {"c": content["a"], "b": content["b"]}, content | {"a": content["a"].view(3, 2)}, content | {"b": [1, 2.5]},
        content | {"a": content["a"].view(torch.int32)}, content | {"a": content["a"].nextafter(torch.tensor(9.0))},
    ]  # fmt: skip
    assert len({checksum(other) for other in [content, *others]}) == 6


# ---- .pth


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path):
    torch.save(CSRNet().state_dict(), tmp_path / "a.pth")
    check_archive(tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as whole,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr("a/data/99", bytes(1 << 26))
    refused(
        csrnet.convert,
        tmp_path / "b.pth",
        r"not a PyTorch checkpoint .* \(expected parts of \d+ bytes at most, as the file has, got \d+\)$",
    )


def test_300_000_tensors_in_an_archive(tmp_path):
    torch.save({f"layer{n}": [n] for n in range(300_000)}, tmp_path / "names.pth")
    refused(read_pth, tmp_path / "names.pth", "expected at most 4194304 bytes that name tensors, got ")
    torch.save({str(n): torch.zeros(1) for n in range(10_001)}, tmp_path / "parts.pth")
    refused(read_pth, tmp_path / "parts.pth", "expected at most 10000 parts, got 100")


def test_tensors_that_are_no_plain_numbers(tmp_path):
    for tensor in (torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"a": {"LUT": tensor}}, tmp_path / "a.pth")
        refused(read_pth, tmp_path / "a.pth", "expected (LUT as plain numbers|a dict|.*PyTorch)|not a PyTorch")
    torch.save({"0": {"LUT": torch.zeros(1).expand(3, 256, 256, 256)}}, tmp_path / "a.pth")
    refused(read_pth, tmp_path / "a.pth", r"expected LUT as large as it says, \(3, 256, 256, 256\), got fewer numbers")


def test_published_luts_that_float32_does_not_hold(tmp_path):
    torch.save({"0": {"LUT": torch.full((3, 5, 5, 5), 1e39, dtype=torch.float64)}}, tmp_path / "LUTs.pth")
    torch.save({}, tmp_path / "classifier.pth")
    refused(
        lambda path: lut3d.convert(path, tmp_path / "classifier.pth"),
        tmp_path / "LUTs.pth",
        r"LUT 0, got up to 1e\+39$",
    )


def test_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "a.pth")

    def load(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"
        )

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError, match=r"a\.pth: out of memory"):
        read_pth(tmp_path / "a.pth")
