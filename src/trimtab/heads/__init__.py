"""Heads: what turns a backbone's output into the task's."""

from __future__ import annotations

from trimtab.heads.base import Features, Graded, Head
from trimtab.heads.classifier import Classifier
from trimtab.heads.segmenter import Segmenter, SegmenterConfig, make_segmenter

__all__ = ["Classifier", "Features", "Graded", "Head", "Segmenter", "SegmenterConfig", "make_segmenter"]
