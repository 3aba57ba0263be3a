"""Photos and files, in and out: 8-bit JPEG and PNG for now, through Pillow; every write is atomic.

Data sets are read through OpenImageIO, as bare pixels: 16 bit and TIFF too. LUT files become modules.
"""

from fastenh.io.files import check_free, replacing
from fastenh.io.luts import LutFile, read_lut, write_lut
from fastenh.io.photos import SUFFIXES, read_photo, write_photo
from fastenh.io.pixels import PIXEL_SUFFIXES, read_pixels, read_size

__all__ = [
    "PIXEL_SUFFIXES",
    "SUFFIXES",
    "LutFile",
    "check_free",
    "read_lut",
    "read_photo",
    "read_pixels",
    "read_size",
    "replacing",
    "write_lut",
    "write_photo",
]
