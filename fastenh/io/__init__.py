"""Photos and files, in and out: 8-bit JPEG and PNG for now, through Pillow; every write is atomic."""

from fastenh.io.files import check_free, replacing
from fastenh.io.photos import SUFFIXES, read_photo, write_photo

__all__ = ["SUFFIXES", "check_free", "read_photo", "replacing", "write_photo"]
