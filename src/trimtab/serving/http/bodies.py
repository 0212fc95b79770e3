"""Bodies: of requests, received up to a size and in time and taken apart, and of answers in JSON."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from trimtab.serving.refused import RefusedError, overloaded

_MOST_VALUES = 100_000
"""Values of a JSON body: short ones take a hundred times their own bytes, and no thread runs while they are read."""


class Pending:
    """Bytes of all bodies that are being received or answered.

    Args:
        max_bytes: Most of them.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._held = max_bytes, 0

    def take(self, count: int) -> None:
        """Count more bytes in.

        Raises:
            RefusedError: If there would be too many (503).
        """
        if self._held + count > self._max_bytes:
            raise overloaded(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The server holds {self._held} bytes of requests already and may {self._max_bytes}; try again.",
                1,
            )
        self._held += count

    def give(self, count: int) -> None:
        """Count bytes out."""
        self._held -= count


class Body:
    """The body of a request while it is held: ``async with Body(...) as content``.

    Args:
        request: The request.
        pending: Where its bytes are counted.
        max_bytes: Most of them.
        seconds: How long it may take to arrive.
    """

    def __init__(self, request: Request, pending: Pending, max_bytes: int, seconds: float) -> None:
        self._request, self._pending = request, pending
        self._max_bytes, self._seconds = max_bytes, seconds
        self._held = 0

    async def __aenter__(self) -> bytes:
        try:
            return await self._received()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._pending.give(self._held)
        self._held = 0

    async def _received(self) -> bytes:
        request = self._request
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is compressed; send it as it is.")
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told[:20]) > self._max_bytes:
            raise self._too_large()
        parts = []
        try:
            with anyio.fail_after(self._seconds):
                async for part in request.stream():
                    if self._held + len(part) > self._max_bytes:
                        raise self._too_large()
                    self._pending.take(len(part))
                    self._held += len(part)
                    parts.append(part)
        except TimeoutError as error:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT, f"The body did not arrive within {self._seconds:g} s; send it faster."
            ) from error
        return b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than the {self._max_bytes} bytes that are allowed; send less at a time.",
        )


def parsed_json(content: bytes) -> dict[str, Any]:
    """Read a body that is an object of JSON.

    Raises:
        RefusedError: If it is none, or has far more values (413) than a request needs.
    """
    if sum(content.count(mark) for mark in b",[{") > _MOST_VALUES:
        raise RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The JSON has more than the {_MOST_VALUES} values that are allowed; send fewer at a time.",
        )
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {str(error)[:200]}.") from error
    if not isinstance(value, dict):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is JSON but no object; send {...}.")
    return value


def image_of_base64(value: object, what: str) -> bytes:
    """Decode an image that is written in base64, perhaps as a ``data:`` URL.

    Raises:
        RefusedError: If it is none. No other URL is ever fetched.
    """
    if not isinstance(value, str):
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{what} is no text; send the image's bytes in base64.")
    if value[:5].lower() == "data:":
        value = value.partition(",")[2]
    elif "://" in value[:20]:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{what} is a URL, and none is fetched; send the image itself.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"{what} is no base64 ({error}); send the image's bytes so."
        ) from error


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type that a request says its body has, in small letters and without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer in JSON of ASCII alone: a label may hold what no encoding has."""
    return Response(json.dumps(value, allow_nan=False), status, headers, "application/json")
