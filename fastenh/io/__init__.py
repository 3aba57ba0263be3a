"""Photos and files, in and out; every write is atomic.

`header` says what formats there are, `photos` reads and writes them, through OpenImageIO by rows (`rows`) or through
Pillow and others as a whole (`whole`); `metadata` carries EXIF, XMP, IPTC and resolution as bytes, `colour` goes
between a file's colours and sRGB. Data sets are read as bare pixels; LUT files become modules (`luts`).
"""

from fastenh.io.header import RAW_SUFFIXES, SUFFIXES, Header
from fastenh.io.luts import LutFile, read_lut, write_lut
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
