"""Frozen timm vision transformers, opened at their block boundaries; the one room that knows timm's insides."""

from trimtab.backbone.backbone import Backbone, reasons_not_to_open
from trimtab.backbone.fingerprint import classifier_names

__all__ = ["Backbone", "classifier_names", "reasons_not_to_open"]
