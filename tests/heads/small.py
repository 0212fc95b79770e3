"""Small segmentation heads by name, those of a new line in ``DECODERS`` too."""

from __future__ import annotations

from typing import Any

from trimtab.heads import SegmenterConfig
from trimtab.heads.segmenter import segmenter_class


def small_head(head: str, channels: int, **options: Any) -> SegmenterConfig:
    """Configure a head with so many channels, if it has any."""
    if segmenter_class(head).has_channels:
        options["channels"] = channels
    return SegmenterConfig(head=head, **options)
