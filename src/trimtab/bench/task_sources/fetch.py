"""Downloads from the hub (by huggingface_hub) and from URLs, resumed and verified.

URLs are fetched here because pooch (1.9) starts an interrupted download anew.
"""

from __future__ import annotations

import hashlib
import http.client
import inspect
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.progress import Progress

_BLOCK = 1 << 20
_ATTEMPTS = 3
_PATIENCE = 60.0
"""Seconds without an answer after which an attempt has failed."""
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its name, size and SHA-256 (empty for small ones, which the hub keeps in git)."""

    name: str
    bytes: int
    sha256: str


class Repository:
    """A data set of the Hugging Face hub at one revision; one question is asked of the hub.

    Args:
        name: ``"owner/name"``.
        revision: A commit, branch or tag; the newest without it. The commit it stands for is in ``revision``.

    Raises:
        DataError: The hub does not answer, or has no such repository or revision.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        from huggingface_hub import HfApi

        self.name, self._endpoint = name, os.environ.get("HF_ENDPOINT") or None
        try:
            info = HfApi(endpoint=self._endpoint).dataset_info(name, revision=revision, files_metadata=True)
        except Exception as error:  # the hub's client raises whatever its layers raise
            raise DataError(f"The hub's data set {name} cannot be had: {_reason(error, revision)}.") from error
        if not info.sha:
            raise DataError(f"The hub does not say which revision of {name} it has; try again later.")
        self.revision = info.sha
        self.files = {
            sibling.rfilename: HubFile(
                sibling.rfilename, sibling.size or 0, sibling.lfs["sha256"] if sibling.lfs is not None else ""
            )
            for sibling in info.siblings or ()
        }

    def fetch(self, name: str, folder: Path, progress: Progress) -> Path:
        """Download a file into ``folder`` unless it is there, and verify its checksum.

        Raises:
            DataError: It cannot be had, or is damaged.
        """
        from huggingface_hub import hf_hub_download

        wanted = self.files.get(name)
        if wanted is None:
            raise DataError(f"The hub's data set {self.name} has no file {name} at revision {self.revision}.")
        with progress.stage(f"Downloading {name}", _megabytes(wanted.bytes), "MB") as advance:
            # Releases that cannot be told how to show progress show their own.
            given = inspect.signature(hf_hub_download).parameters
            bar: dict[str, Any] = {"tqdm_class": _bar(_Counted(advance))} if "tqdm_class" in given else {}
            try:
                path = Path(
                    hf_hub_download(
                        self.name,
                        name,
                        repo_type="dataset",
                        revision=self.revision,
                        local_dir=folder,
                        endpoint=self._endpoint,
                        **bar,
                    )
                )
            except Exception as error:
                raise DataError(
                    f"{name} of the hub's data set {self.name} cannot be had: {_reason(error, self.revision)}; "
                    "the same command goes on with what is there."
                ) from error
        if wanted.sha256:
            check(path, f"sha256:{wanted.sha256}", progress, remove=True)
        return path


def fetch_url(url: str, path: Path, progress: Progress) -> None:
    """Download a URL into a file, resuming an earlier attempt.

    Args:
        url: An ``http`` or ``https`` address.
        path: Where to; it is there whole or not at all.
        progress: Reports progress.

    Raises:
        DataError: It cannot be had.
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _go_on(url, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if final or attempt == _ATTEMPTS:
                raise DataError(
                    f"{url} cannot be downloaded ({error}); try again later (what is there is kept), or fetch "
                    f"{path.name} by hand and name its folder with --from DIR."
                ) from error
    part.replace(path)
    _edition(part).unlink(missing_ok=True)


def size_of_url(url: str) -> int:
    """Ask for the size of a URL in bytes.

    Raises:
        DataError: It does not answer.
    """
    try:
        with _open(url, {}, method="HEAD") as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} does not answer ({error}); try again later, or fetch {url.rpartition('/')[2]} by hand and name "
            "its folder with --from DIR."
        ) from error


def check(path: Path, checksum: str, progress: Progress, *, remove: bool = False) -> str:
    """Compute the checksum of a file and compare it with the expected ``"sha256:..."`` or ``"md5:..."``, if any.

    Raises:
        DataError: They differ. With ``remove`` the file is removed, so that it is fetched anew.
    """
    kind, _, wanted = (checksum or "sha256:").partition(":")
    found = hashlib.new(kind, usedforsecurity=False)
    with progress.stage(f"Checking {path.name}", _megabytes(path.stat().st_size), "MB") as advance:
        counted = _Counted(advance)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
                counted(len(block))
    if wanted and found.hexdigest() != wanted:
        if remove:
            path.unlink()
        raise DataError(
            f"{path} is damaged or another file: its {kind} is {found.hexdigest()}, and it should be {wanted}; "
            f"{'run the same command to fetch' if remove else 'remove it to have it fetched, or fetch'} it anew."
        )
    return f"{kind}:{found.hexdigest()}"


def _go_on(url: str, part: Path, progress: Progress) -> None:
    """Append to a part of a file what is missing."""
    edition = _edition(part)
    have = part.stat().st_size if part.is_file() and edition.is_file() else 0
    # If-Range: should the file at the address have changed, all of the new one comes.
    asked = {"Range": f"bytes={have}-", "If-Range": edition.read_text(encoding="utf-8")} if have else {}
    try:
        answer = _open(url, asked)
    except urllib.error.HTTPError as error:
        # A process may have been killed when all of it was here: then nothing is left to ask for.
        if have and error.headers.get("Content-Range") == f"bytes */{have}":
            return
        raise
    with answer:
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length or 0)
        stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if stamp:
            edition.write_text(stamp, encoding="utf-8")
        else:
            edition.unlink(missing_ok=True)
        title = f"Downloading {part.name.removesuffix('.part')}"
        with progress.stage(title, _megabytes(total), "MB", have // _MEGABYTE) as advance:
            counted = _Counted(advance, have)
            with part.open("ab" if goes_on else "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    counted(len(block))
    if length is not None and part.stat().st_size != total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def _open(url: str, headers: dict[str, str], method: str = "GET") -> Any:
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url} is no http address.")
    request = urllib.request.Request(  # noqa: S310 - checked above
        url, headers={"User-Agent": "trimtab", "Accept-Encoding": "identity", **headers}, method=method
    )
    return urllib.request.urlopen(request, timeout=_PATIENCE)  # noqa: S310


def _edition(part: Path) -> Path:
    """Which edition of the file at an address a part is of."""
    return part.with_name(f"{part.name}.edition")


class _Counted:
    """Bytes told as whole megabytes."""

    def __init__(self, advance: Callable[[int], None], before: int = 0) -> None:
        self._advance, self._rest = advance, before % _MEGABYTE

    def __call__(self, count: int) -> None:
        whole, self._rest = divmod(self._rest + count, _MEGABYTE)
        if whole:
            self._advance(whole)


def _megabytes(count: int) -> int:
    return max(1, round(count / _MEGABYTE))


def _bar(counted: Callable[[int], None]) -> type:
    """What the hub's client shows progress with: nothing, told on."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})
            counted(int(settings.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            counted(int(n or 0))
            return None

    return Bar


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "its owner asks for more; accept that on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub shows no data set of this name"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    return f"the hub does not answer or refuses ({type(error).__name__}); check the network"
