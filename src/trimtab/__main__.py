"""``python -m trimtab``, which ``accelerate launch -m trimtab`` also runs."""

from __future__ import annotations

import sys

from trimtab.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
