"""HEIC, through libheif (pillow-heif)."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastenh.io.formats.base import QUALITY, Format, Header, Unsupported, check_memory, check_size
from fastenh.io.formats.boxes import boxes
from fastenh.io.metadata import EXIF_START, Metadata, changed_exif, coded_profile, exif_orientation
from fastenh.io.xmp import announced, upright_xmp


class Heic(Format):
    name = "HEIC"
    suffixes = (".heic", ".heif", ".hif")
    start = re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.S)
    depths = ("uint8", "uint16")
    any_name = True
    package = "pillow-heif"

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        import pillow_heif

        file = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
        image = file[file.primary_index]
        check_size(*image.size)
        info: dict[str, Any] = image.info
        icc, nclx = info.get("icc_profile") or b"", info.get("nclx_profile") or {}
        codes = nclx.get("color_primaries", 2), nclx.get("transfer_characteristics", 2)
        if not icc:
            try:
                icc = coded_profile(*codes, 1 if image.mode.startswith("L") else 3)
            except ValueError as error:
                raise Unsupported(error) from None
        try:
            pixels = np.array(image).reshape(image.size[1], image.size[0], -1)
        except Exception:
            check_memory(*image.size)
            raise
        exif, xmp = (info.get("exif") or b"").removeprefix(EXIF_START), info.get("xmp") or b""
        listed, kinds = announced(xmp), info.get("aux", ())
        left_out = ["the gain map"] if listed.gain_map or any("hdrgainmap" in kind for kind in kinds) else []
        left_out += ["the depth map"] if info.get("depth_images") else []
        left_out += ["the video"] if listed.video else []
        # libheif applies the orientation to the pixels; EXIF and XMP still state it.
        orientation = exif_orientation(exif)
        exif, xmp = changed_exif(exif, 1, image.size), upright_xmp(xmp, orientation, *image.size)
        codes = codes if nclx else (1, 13)
        header = Header.of(self.name, pixels, Metadata(icc, exif, xmp), chroma=info.get("chroma"), codes=codes)
        return replace(header, notes=(f"left out {' and '.join(left_out)}",) if left_out else ()), pixels

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        import pillow_heif

        if pixels.shape[2] == 2:  # gray with alpha, which HEIC does not have
            pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]] + (";16" if pixels.dtype == np.uint16 else "")
        file = pillow_heif.from_bytes(mode, (header.width, header.height), np.ascontiguousarray(pixels).tobytes())
        about, out = header.metadata, io.BytesIO()
        if about.icc:
            file[0].info["icc_profile"] = about.icc
        primaries, curve = header.storage.get("codes", (1, 13))
        options: dict[str, Any] = {"color_primaries": primaries, "transfer_characteristics": curve}
        if header.storage.get("chroma"):
            options["chroma"] = header.storage["chroma"]
        options |= {"exif": about.exif or None, "xmp": about.xmp or None}
        options["quality"] = QUALITY if quality is None else quality
        file.save(out, full_range_flag=1, matrix_coefficients=6, **options)
        return out.getvalue()

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """Boxes up to the one that describes the picture and the one that holds it, in either order."""
        missing = {b"meta", b"mdat"}
        for kind, _, _ in boxes(file, 0, size):
            missing.discard(kind)
            if not missing:
                return True
        return False
