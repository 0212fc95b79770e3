"""The segmentation heads: name to class; a new one is a line here and its file.

The options, the command line and the tests read the names from here, and no head is imported for that.
"""

from __future__ import annotations

from collections.abc import Mapping

DECODERS: Mapping[str, str] = {
    "linear": "trimtab.heads.segmenter:PatchClassifier",
    "setr-pup": "trimtab.heads.setr:ProgressiveUpsampling",
    "dpt": "trimtab.heads.dpt:DensePrediction",
}
"""Where each head that :class:`~trimtab.heads.segmenter.SegmenterConfig` can name is defined, ``"module:Class"``; a
class is called with a configuration, a backbone and the number of classes."""
