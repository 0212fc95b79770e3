"""Multipart bodies, taken apart in memory."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from trimtab.serving.refused import RefusedError

_MOST_TEXTS = 100
_LONGEST_HEADER = 8192


@dataclasses.dataclass(frozen=True)
class Form:
    """A multipart body."""

    files: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    """Each with the name of its field."""
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    """What is no file, by field."""


def parsed_form(content_type: str, content: bytes, max_files: int) -> Form:
    """Take a multipart body apart.

    Args:
        content_type: The header, which has the boundary.
        content: The body.
        max_files: Most files.

    Raises:
        RefusedError: If it is none, or has more files (413) or fields than are allowed.
    """
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise _unreadable("its Content-Type has no boundary")
    parts = _Parts(max_files)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise _unreadable(" ".join(str(error).split())[:200]) from error
    if not parts.ended:
        raise _unreadable("it ends within a part")
    return parts.form


class _Parts:
    """The parts of a body, as the parser finds them."""

    def __init__(self, max_files: int) -> None:
        self.form, self.ended = Form(), False
        self._max_files, self._num_texts = max_files, 0
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._content = bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._content = b"", bytearray()

    def _add(self, to: bytearray, data: bytes) -> None:
        to.extend(data)
        if len(to) > _LONGEST_HEADER:
            raise _unreadable(f"a part has a header of more than {_LONGEST_HEADER} bytes")

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _unreadable("a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self.form.files.append((name, bytes(self._content)))
        else:
            # Of one name the last is kept; each has cost its time.
            self.form.texts[name] = self._content.decode("utf-8", "replace")
            self._num_texts += 1
        if len(self.form.files) > self._max_files:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The form has more than the {self._max_files} images that are allowed; send fewer at a time.",
            )
        if self._num_texts > _MOST_TEXTS:
            raise _unreadable(f"it has more than {_MOST_TEXTS} fields")

    def _end(self) -> None:
        self.ended = True


def _unreadable(why: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, f"The multipart body cannot be read: {why}.")
