"""The tasks of VTAB-1k, FGVC and ADE20K, one row each: classes, sizes, what a label means, and where the data is.

Sizes and class counts are those that google-research/task_adaptation asserts in its tests (VTAB-1k) and of the papers'
split files (FGVC). docs/benchmarks-data.md says what of this table has met the real sources.

References:
    | Zhai et al., A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark (2019)
    | Jia et al., Visual Prompt Tuning (2022), section 4 and table 8
    | Zhou et al., Scene Parsing through ADE20K Dataset (CVPR 2017)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SUITES = ("vtab1k", "fgvc", "ade20k")
"""The suites, as the command line names them."""


@dataclass(frozen=True)
class Archive:
    """A file that the makers of a set, or somebody after them, give away.

    Attributes:
        file: The name it is stored and looked for under.
        url: Where it is; empty where a person has to fetch it.
        hub: The hub's data set that has it, ``owner/name@revision``; goes before ``url``.
        bytes: Its size, where it is known; 0 otherwise.
        checksum: ``"sha256:..."`` or ``"md5:..."``, where one is published; empty otherwise.
        by_hand: How a person gets it, where no program can.
    """

    file: str
    url: str = ""
    hub: str = ""
    bytes: int = 0
    checksum: str = ""
    by_hand: str = ""


@dataclass(frozen=True)
class BenchmarkTask:
    """One row of the table.

    Attributes:
        name: As in the published tables.
        suite: ``"vtab1k"``, ``"fgvc"`` or ``"ade20k"``.
        group: ``"natural"``, ``"specialized"``, ``"structured"``, ``"fgvc"`` or ``"segmentation"``.
        classes: How many there are.
        sizes: Images of each split. VTAB-1k: ``train800``, ``val200``, ``train800val200``, ``test``. FGVC: ``train``,
            ``val``, ``test``. ADE20K: ``train``, ``val``.
        label_order: What the numbers 0, 1, ... of the labels stand for.
        builder: The TensorFlow data set that the benchmark was made from; empty where it was not.
        lossless: Whether the original images are raw pixels or PNG, so that a JPEG file can only be a damaged copy.
        hub: The hub's data set with this task as parquet; empty where there is none.
        hub_seen: Whether somebody has seen that data set, and its name is not only inferred.
        folders: The task's folder in a tree of NOAH's layout, under all names in use.
        archive: The images.
        splits: The split files, where they are apart from the images.
        inside: Where in the archive the paths of the split files start; they are looked for elsewhere, too.
        licence: What is known of the terms.
        note: What else to know.
    """

    name: str
    suite: str
    group: str
    classes: int
    sizes: Mapping[str, int]
    label_order: str
    builder: str = ""
    lossless: bool = False
    hub: str = ""
    hub_seen: bool = False
    folders: tuple[str, ...] = ()
    archive: Archive | None = None
    splits: Archive | None = None
    inside: str = ""
    licence: str = "its makers' terms; read them before you use it"
    note: str = ""

    @property
    def splits_written(self) -> dict[str, int]:
        """Images of each split of the prepared folder, by the names train, val and test."""
        if "train800" not in self.sizes:
            return dict(self.sizes)
        return {"train": self.sizes["train800"], "val": self.sizes["val200"], "test": self.sizes["test"]}


def _vtab(
    name: str,
    group: str,
    classes: int,
    test: int,
    label_order: str,
    builder: str,
    hub: str,
    folders: str = "",
    **more: object,
) -> BenchmarkTask:
    return BenchmarkTask(
        name=name,
        suite="vtab1k",
        group=group,
        classes=classes,
        sizes={"train800": 800, "val200": 200, "train800val200": 1000, "test": test},
        label_order=label_order,
        builder=builder,
        hub=f"bramtoula/vtab_{hub}",
        folders=tuple((folders or name).split()),
        **more,  # type: ignore[arg-type]
    )


_NAMES = "names of classes in alphabetical order"
_DISTANCE = "distance of the nearest object below 8.0, 8.5, 9.0, 9.5, 10.0, or above"

_VTAB = (
    _vtab("cifar100", "natural", 100, 10000, _NAMES, "cifar100:3.0.2", "cifar100", "cifar cifar100",
          lossless=True, hub_seen=True, note="val200 is train[45000:45200]; copies as JPEG cost up to ten points"),
    _vtab("caltech101", "natural", 102, 6084, _NAMES, "caltech101:3.0.1", "caltech101",
          note="101 categories and one of background images"),
    _vtab("dtd", "natural", 47, 1880, _NAMES, "dtd:3.0.1", "dtd"),
    _vtab("oxford_flowers102", "natural", 102, 6149, "the makers' class numbers 1 to 102",
          "oxford_flowers102:2.1.1", "flowers102"),
    _vtab("oxford_iiit_pet", "natural", 37, 3669, "the makers' class numbers 1 to 37, alphabetical apart from case",
          "oxford_iiit_pet:3.2.0", "pets", "oxford_iiit_pet oxford_pet"),
    _vtab("svhn", "natural", 10, 26032, "digits 0 to 9", "svhn_cropped:3.0.0", "svhn", lossless=True),
    _vtab("sun397", "natural", 397, 21750, _NAMES, "sun397/tfds:4.0.0", "sun397",
          note="one image of the original set cannot be decoded"),
    _vtab("patch_camelyon", "specialized", 2, 32768, "no tumour, tumour in the middle", "patch_camelyon:2.0.0",
          "patch_camelyon", lossless=True, hub_seen=True, licence="CC0"),
    _vtab("eurosat", "specialized", 10, 5400, _NAMES, "eurosat/rgb:2.0.0", "eurosat",
          note="60, 20 and 20 percent of 27000 images"),
    _vtab("resisc45", "specialized", 45, 6300, _NAMES, "resisc45:3.0.0", "resisc45",
          note="TensorFlow's builder wants the archive fetched by hand"),
    _vtab("diabetic_retinopathy", "specialized", 5, 42670, "grade 0 to 4",
          "diabetic_retinopathy_detection/btgraham-300:3.0.0", "retinopathy",
          licence="Kaggle's terms of the competition; not to be passed on"),
    _vtab("clevr_count", "structured", 8, 15000, "3 to 10 objects", "clevr:3.1.0", "clevr_count", lossless=True,
          note="test is the builder's validation split"),
    _vtab("clevr_dist", "structured", 6, 15000, _DISTANCE, "clevr:3.1.0", "clevr_distance", lossless=True,
          note="test is the builder's validation split"),
    _vtab("dmlab", "structured", 6, 22735, "the makers' class numbers 0 to 5", "dmlab:2.0.1", "dmlab"),
    _vtab("kitti", "structured", 4, 711, "nearest vehicle below 8 m, 8 to 20 m, further, none", "kitti:3.2.0",
          "kitti_distance", lossless=True),
    _vtab("dsprites_loc", "structured", 16, 73728, "sixteen equal parts of the width", "dsprites:2.0.0",
          "dsprites_location", lossless=True),
    _vtab("dsprites_ori", "structured", 16, 73728, "sixteen parts of the turn, of 2 or 3 of 40 steps", "dsprites:2.0.0",
          "dsprites_orientation", lossless=True),
    _vtab("smallnorb_azi", "structured", 18, 12150, "azimuth 0 to 340 degrees in steps of 20", "smallnorb:2.0.0",
          "smallnorb_azimuth", lossless=True, note="val200 and test are halves of the makers' test part"),
    _vtab("smallnorb_ele", "structured", 9, 12150, "elevation 30 to 70 degrees in steps of 5", "smallnorb:2.0.0",
          "smallnorb_elevation", lossless=True, note="val200 and test are halves of the makers' test part"),
)  # fmt: skip

_FGVC_HUB = "XiN0919/FGVC@921e8dce38536cd5982739d85d5e9235d2cb2a76"
_FGVC_SPLITS = Archive("json.zip", hub=_FGVC_HUB)


def _fgvc(
    name: str, classes: int, sizes: tuple[int, int, int], label_order: str, archive: Archive, **more: object
) -> BenchmarkTask:
    return BenchmarkTask(
        name=name,
        suite="fgvc",
        group="fgvc",
        classes=classes,
        sizes=dict(zip(("train", "val", "test"), sizes, strict=True)),
        label_order=label_order,
        archive=archive,
        splits=_FGVC_SPLITS,
        **more,  # type: ignore[arg-type]
    )


_FGVC = (
    _fgvc("cub200_2011", 200, (5394, 600, 5794), "the makers' class numbers 001 to 200",
          Archive("CUB_200_2011.tgz", hub=_FGVC_HUB, bytes=1150585339,
                  checksum="md5:97eceeb196236b17998738112f37df78"),
          folders=("cub", "cub200"), inside="CUB_200_2011/images"),
    _fgvc("nabirds", 555, (21536, 2393, 24633), "the makers' class numbers, 295 to 1010 with gaps",
          Archive("nabirds.tar.gz", by_hand="fill in the form at https://dl.allaboutbirds.org/nabirds (the download "
                  "wants a registration)"),
          folders=("nabird",), inside="nabirds/images", note="val has images of 553 of the 555 classes"),
    _fgvc("oxford_flowers", 102, (1020, 1020, 6149), "the makers' class numbers 1 to 102",
          Archive("102flowers.tgz", url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                  checksum="md5:52808999861908f626f3c1f4e79d11fa"),
          folders=("flower",)),
    _fgvc("stanford_dogs", 120, (10800, 1200, 8580), "the makers' class numbers 1 to 120",
          Archive("images.tar", url="http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar"),
          folders=("dog",), inside="Images"),
    _fgvc("stanford_cars", 196, (7329, 815, 8041), "the makers' class numbers 1 to 196",
          Archive("car_ims.tgz", hub=_FGVC_HUB, bytes=1956628579,
                  checksum="sha256:4d96e3e3e892c6b7e4a71959325c7de4804037d27ba5aaf1c756100fd94a5342"),
          folders=("car",), note="the makers' own address is gone; VPT and GIFT have train and val of their own"),
)  # fmt: skip

_ADE20K = BenchmarkTask(
    name="ade20k",
    suite="ade20k",
    group="segmentation",
    classes=150,
    sizes={"train": 20210, "val": 2000},
    label_order="objectInfo150.txt; 0 in a mask is none of them and ignored",
    archive=Archive(
        "ADEChallengeData2016.zip", url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    ),
    inside="ADEChallengeData2016",
    note="papers report on val; there is no test split with masks",
)

TASKS: Mapping[str, Mapping[str, BenchmarkTask]] = {
    suite: {task.name: task for task in tasks}
    for suite, tasks in (("vtab1k", _VTAB), ("fgvc", _FGVC), ("ade20k", (_ADE20K,)))
}
"""By suite, then by name, in the order of the papers' columns."""
