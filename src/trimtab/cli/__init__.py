"""The command line: ``trimtab fit``, ``eval``, ``predict``, ``report``, ``export``, ``bench``."""

from trimtab.cli.commands import main

__all__ = ["main"]
