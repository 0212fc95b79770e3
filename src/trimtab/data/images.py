"""Images of a set: files, or images of a set that comes with trimtab."""

from __future__ import annotations

import abc
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from PIL import Image

from trimtab.data.decode import open_allowed
from trimtab.errors import DataError


class BuiltInSet(abc.ABC):
    """A set of labelled images that comes with trimtab and lies in no folder.

    An image is known by its split and its number in it, from 0, and made when it is asked for.
    Subclasses are frozen dataclasses, so that equal sets have equal images.

    Attributes:
        edition: Counted up when the same name begins to stand for other images.
    """

    edition: ClassVar[int] = 1

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name for ``fit``."""

    @property
    @abc.abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the classes of masks, by their numbers; nothing for a set without masks."""
        return ()

    @property
    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Number of images of each split."""

    @abc.abstractmethod
    def labels(self, split: str) -> tuple[str, ...]:
        """The class of every image of a split."""

    @abc.abstractmethod
    def image(self, split: str, number: int) -> Image.Image:
        """One image, grey or in colour."""

    def mask(self, split: str, number: int) -> Image.Image:
        """Return the class of every pixel of an image; 0 is background.

        Raises:
            DataError: The set has no masks.
        """
        raise DataError(f"The images of {self.name} have no masks; those of sprites/... do.")

    def images(self, split: str) -> tuple[BuiltInImage, ...]:
        """All images of a split; none is made yet."""
        return tuple(BuiltInImage(self, split, number) for number in range(self.sizes[split]))


@dataclass(frozen=True)
class BuiltInImage:
    """Reference to an image of a set that comes with trimtab, as a path refers to a file.

    As text it is the set's name, the split and the number, ``sprites/shape/test/0007``.
    """

    of: BuiltInSet
    split: str
    number: int

    def __str__(self) -> str:
        return f"{self.of.name}/{self.split}/{self.number:04}"

    @property
    def name(self) -> str:
        """The same; a file's path has a name, too."""
        return str(self)

    def open(self) -> Image.Image:
        """The image."""
        return self.of.image(self.split, self.number)

    def mask(self) -> Image.Image:
        """Its mask, as large as the image (see `BuiltInSet.mask`).

        Raises:
            DataError: The set has no masks.
        """
        return self.of.mask(self.split, self.number)


ImageSource: TypeAlias = "Path | BuiltInImage"
"""Where an image comes from. As text, it is a name to show and to tell it by."""


def open_image(image: str | ImageSource) -> Image.Image:
    """Open an image, whatever it comes from.

    Raises:
        DataError: It is no regular file, or of a format that is not opened (see `open_allowed`).
        Exception: Whatever Pillow raises of a file that it cannot read.
    """
    return image.open() if isinstance(image, BuiltInImage) else open_allowed(image)


def stamp(image: ImageSource) -> tuple[str, int]:
    """Identify an image without opening it: its file's name and size, or its name and edition."""
    return image.name, image.of.edition if isinstance(image, BuiltInImage) else image.stat().st_size


def drawn(*key: object) -> bytes:
    """A number that only ``key`` decides, on every machine, to put things in a random order by."""
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()


def randomness(*key: object) -> random.Random:
    """Random numbers that only ``key`` decides. Use ``random()`` alone.

    Python promises the same ``random()`` for a seed in every version, and of nothing else.
    """
    return random.Random(drawn(*key))  # noqa: S311
