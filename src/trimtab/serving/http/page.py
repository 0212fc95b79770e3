"""The page at ``/``: one file, which asks this server and nobody else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from trimtab.reporting.page import render

_TEMPLATE = Path(__file__).parent / "try.html"


def page(_: Request) -> Response:
    """Answer with the page; what may run and be shown is told by digest."""
    content, policy = _made()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(content, headers=headers, media_type="text/html")


@functools.cache
def _made() -> tuple[bytes, str]:
    text = render(_TEMPLATE)
    styles, scripts = (
        " ".join(_digest(found) for found in re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL))
        for kind in ("style", "script")
    )
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
