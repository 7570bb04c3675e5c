"""Clips in folders of images, one image a frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from datamodules.clips.errors import damage
from datamodules.clips.folders import children
from datamodules.clips.pictures import check_png, opened, pixel_type, pixels
from datamodules.clips.reader import ClipReader

STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")

CAMERAS = ("JPEG", "MPO")  # formats in which cameras note how they were held
LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class FolderReader(ClipReader):
    """A clip whose frames are the images in a folder, in natural order (img2 before img10).

    Images are 8-bit of any kind, 16-bit gray, or gray floats in [0, 1]; 16-bit colour is reduced
    to 8 bits. JPEGs are turned upright as their file says.

    Args:
        path: The folder; what is no image in it is passed over.

    Raises:
        OSError: If there is no such folder or something in it may not be read.
        ValueError: If it has no images, they differ in size or type, or one is a stack of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [f for f in children(path) if f.suffix.lower() in STILL_SUFFIXES]
        if not self.files:
            raise ValueError(
                f"{path}: a folder without images ({', '.join(STILL_SUFFIXES)}): give a folder of "
                "images, or a file"
            )
        self.num_frames = len(self.files)
        for file in self.files:
            with opened(file) as image:
                pictures = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                if pictures > 1:
                    raise ValueError(
                        f"{file}: {pictures} pictures in one file: save such a stack as an array "
                        "(.npy), or each picture as a file"
                    )
                size, dtype = _upright_size(image), pixel_type(image)
            if file == self.files[0]:
                self._set_frame_size(*size)
                self.dtype = dtype
            if size != self.frame_size:
                height, width = self.frame_size
                raise ValueError(
                    f"{file}: {size[0]} x {size[1]} pixels, but {self.files[0].name} has {height} "
                    f"x {width}: bring all images to one size"
                )
            if dtype != self.dtype:
                raise ValueError(
                    f"{file}: pixels are {dtype}, but those of {self.files[0].name} {self.dtype}: "
                    "bring all images to one type"
                )

    def _decode(self, numbers: range) -> Iterator[NDArray[Any]]:
        for number in numbers:
            file = self.files[number]
            with opened(file) as image:
                if image.format == "PNG":
                    check_png(file)
                with damage(file, "image"):
                    if image.format in CAMERAS:
                        ImageOps.exif_transpose(image, in_place=True)
                    frame = pixels(image)
            yield frame


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image turned as its EXIF data says, before it is."""
    if image.format in CAMERAS and image.getexif().get(ExifTags.Base.Orientation) in LYING:
        return image.width, image.height
    return image.height, image.width
