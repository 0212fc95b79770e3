"""Images that clients send: decoded from bytes, by the formats and up to the size that are allowed."""

from __future__ import annotations

import io
from http import HTTPStatus

from PIL import Image

from trimtab.data import why_unreadable
from trimtab.data.decode import open_allowed
from trimtab.errors import DataError
from trimtab.serving.refused import RefusedError
from trimtab.tasks.answers import ReadImage
from trimtab.tasks.base import AnyPreprocess, Task


def read_image(content: bytes, task: Task, preprocess: AnyPreprocess, max_pixels: int) -> ReadImage:
    """Decode an image and preprocess it for a task.

    Args:
        content: The file.
        task: What it is for.
        preprocess: Of the task.
        max_pixels: Most pixels; it is asked before any is decoded.

    Raises:
        RefusedError: If it is no image of an allowed format (415), cannot be decoded (422) or is too large (413).
    """
    # A damaged file makes Pillow's decoders fail in any way.
    try:
        with open_allowed(io.BytesIO(content)) as image:
            _check_size(image, max_pixels)
            return task.read_image(image, preprocess)
    except RefusedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("it has far too many pixels", max_pixels) from error
    except DataError as error:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The image cannot be read: {error}.") from error
    except Exception as error:
        raise RefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"The image cannot be read: {why_unreadable(error)}; send another file."
        ) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _too_large(f"it has {image.width}x{image.height} pixels", max_pixels)


def _too_large(what: str, max_pixels: int) -> RefusedError:
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The image is too large: {what}, and {max_pixels} are allowed; send it smaller.",
    )
