"""Names that trimtab.data had before."""

from __future__ import annotations

import pytest

import trimtab.data


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("Codes", "LabelEncoding"),
        ("MaskPreprocess", "SegmentationTransform"),
        ("held_out_scene_part", "held_out_segmentation_part"),
        ("named_scene_splits", "named_segmentation_splits"),
        ("note_of_turns", "orientation_note"),
        ("open_scene_split", "open_segmentation_split"),
        ("open_scenes", "open_segmentation_data"),
        ("write_scene_split", "write_segmentation_split"),
    ],
)
def test_a_former_name_still_works_with_a_warning(former: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{former} is now {name}"):
        assert getattr(trimtab.data, former) is getattr(trimtab.data, name)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        trimtab.data.no_such_name  # noqa: B018
