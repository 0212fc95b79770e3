"""The command line of the server."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from trimtab.cli.show import show
from trimtab.options import add_options, given_options, read_options
from trimtab.progress import default_progress

if TYPE_CHECKING:
    from trimtab.serving.catalog import Catalog

_CONFIG = "trimtab.serving.config:ServeConfig"


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``trimtab serve``."""
    parser.set_defaults(run=_serve)
    text = "result folders of fit, folders that have some, or NAME=DIR to choose a task's name"
    parser.add_argument("places", metavar="RUN_OR_FOLDER", nargs="+", help=text)
    add_options(parser, read_options(_CONFIG))


def _serve(args: argparse.Namespace) -> None:
    from trimtab.serving.config import ServeConfig
    from trimtab.serving.server import serve

    config = ServeConfig(**given_options(args, read_options(_CONFIG)))
    serve(args.places, config, progress=default_progress(), started=_started)


def _started(address: str, catalog: Catalog) -> None:
    names = [task.name for task in catalog.tasks()]
    backbones = sorted({task.bank.backbone.name for task in catalog.tasks()})
    precisions = sorted({task.facts.precision for task in catalog.tasks()})
    show({"page": f"{address}/", "tasks": names, "backbones": backbones, "precision": precisions})
    if names:
        print(f"Next: curl --data-binary @IMAGE.jpg {address}/predict/{names[0]}")
    # Whoever started it may wait for this in a pipe.
    sys.stdout.flush()
