"""Photos and files, in and out; every write is atomic.

`photos` is the door for photos; `formats` has one file for each format, and `formats.registry` lists them. `metadata`
carries EXIF, XMP, IPTC and resolution as bytes. `colour` converts between a file's colours and sRGB, `encoding` between
stored pixels and what a model sees. `pixels` reads data sets as bare pixels; `luts` reads LUT files as modules, and
`lut_writers` writes them.
"""

from fastenh.io.formats.base import Header
from fastenh.io.formats.registry import RAW_SUFFIXES, SUFFIXES
from fastenh.io.lut_writers import write_lut
from fastenh.io.luts import LutFile, read_lut
from fastenh.io.photos import Photo, read_photo, write_photo
from fastenh.io.pixels import PIXEL_SUFFIXES, read_pixels, read_size

__all__ = [
    "PIXEL_SUFFIXES",
    "RAW_SUFFIXES",
    "SUFFIXES",
    "Header",
    "LutFile",
    "Photo",
    "read_lut",
    "read_photo",
    "read_pixels",
    "read_size",
    "write_lut",
    "write_photo",
]
