"""What a bank keeps of trained methods, so that one batch holds images of many of them.

A method says by :meth:`~trimtab.methods.base.Method.banked` what is kept of it: a :class:`Banked` here, or one of its
own. What is of one class and :attr:`Banked.kind` is run in one pass of the backbone, each image by its own.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.backbone.per_image import PerImage
from trimtab.stream import Attend, AttentionInputs, KeysValues, Stream, softmax_attention


class Mixture:
    """A pass of the backbone in which each image is steered by a method of its own."""

    weights: Mapping[str, Tensor] = {}
    """Tensors in place of the backbone's own, by timm's names; of images that differ, ``PerImage``."""

    def embed(self, backbone: Backbone, images: Tensor, *, pooled_only: bool = False) -> Stream:
        """Embed normalised images (B, 3, height, width)."""
        return backbone.embed(images, weights=self.weights, pooled_only=pooled_only)

    def step(self, i: int, backbone: Backbone, stream: Stream) -> Stream:
        """Run block ``i``; as it is by default."""
        return backbone.block(i, stream)


class Banked(nn.Module, abc.ABC):
    """What a bank keeps of a trained method; its tensors are buffers, which move with it."""

    @property
    def kind(self) -> Hashable:
        """What of the method must be alike in one pass; nothing by default."""
        return None

    @property
    def order(self) -> tuple[int | str, ...]:
        """Where images stand in a pass: those of equal order are neighbours."""
        return ()

    @property
    def plain(self) -> bool:
        """Whether features are the backbone's own, so that an image is run once for all such tasks."""
        return False

    def halve(self) -> None:
        """Keep in half precision what is stored of prompts; nothing by default."""

    @staticmethod
    @abc.abstractmethod
    def mix(parts: Sequence[Any], backbone: Backbone) -> Mixture:
        """Return what runs one pass.

        Args:
            parts: For each image what is kept of its method, of one class and kind, in :attr:`order`.
            backbone: What is tuned.
        """


class BankedPrompts(Banked):
    """Stored keys and values of each block, and full prompts that flow on from the first.

    Args:
        contexts: Keys and values (1, H, P, d) of each block; empty for none.
        prompts: (P, D) full prompts that enter the first block.
    """

    prompts: Tensor | None

    def __init__(self, contexts: Sequence[KeysValues | None] = (), prompts: Tensor | None = None) -> None:
        super().__init__()
        self.lengths = tuple(0 if context is None else context.keys.shape[2] for context in contexts)
        for i, context in enumerate(contexts):
            if context is not None:
                self.register_buffer(f"keys_{i}", context.keys[0].detach().clone())
                self.register_buffer(f"values_{i}", context.values[0].detach().clone())
        self.register_buffer("prompts", None if prompts is None else prompts.detach().clone())

    @property
    def kind(self) -> Hashable:
        """Whether full prompts flow on, whose rows the others would have to carry."""
        return self.prompts is not None

    @property
    def order(self) -> tuple[int, ...]:
        """The numbers of prompts."""
        return (0 if self.prompts is None else self.prompts.shape[0], *self.lengths)

    @property
    def plain(self) -> bool:
        """Whether there is no prompt."""
        return self.prompts is None and not any(self.lengths)

    def halve(self) -> None:
        """Keep keys and values in half precision."""
        for name, value in list(self.named_buffers()):
            if name != "prompts":
                setattr(self, name, value.half())

    def context(self, i: int) -> KeysValues | None:
        """The keys and values of block ``i``, each (H, P, d)."""
        if i >= len(self.lengths) or not self.lengths[i]:
            return None
        return KeysValues(self.get_buffer(f"keys_{i}"), self.get_buffer(f"values_{i}"))

    @staticmethod
    def mix(parts: Sequence[BankedPrompts], backbone: Backbone) -> Mixture:
        """Each image attends to its own prompts."""
        return _PromptMixture(parts)


class Run(NamedTuple):
    """Images of a batch, one after the other, that have equally many prompts."""

    rows: slice
    context: KeysValues | None
    """(b or 1, H, P, d)."""
    prompts: int = 0
    """How many full prompts each of them has."""


def runs_of(contexts: Sequence[KeysValues | None], prompts: Sequence[int] = ()) -> list[Run]:
    """Group the images of a batch by how many prompts they have, neighbours together.

    Args:
        contexts: Keys and values (H, P, d) of each image.
        prompts: Numbers of full prompts; none by default.
    """

    def lengths(row: int) -> tuple[int, int]:
        context = contexts[row]
        return (0 if context is None else context.keys.shape[1], prompts[row] if prompts else 0)

    runs = []
    for (_, full), group in itertools.groupby(range(len(contexts)), lengths):
        rows = list(group)
        given = [context for context in contexts[rows[0] : rows[-1] + 1] if context is not None]
        runs.append(Run(slice(rows[0], rows[-1] + 1), stacked(given) if given else None, full))
    return runs


def stacked(contexts: Sequence[KeysValues]) -> KeysValues:
    """Stack keys and values (H, P, d) of images: (b, H, P, d), or (1, H, P, d) where all are the same tensors."""
    if all(context.keys is contexts[0].keys for context in contexts):
        return KeysValues(contexts[0].keys[None], contexts[0].values[None])
    same = len({context.keys.dtype for context in contexts}) == 1
    as_first = contexts if same else [KeysValues(c.keys.float(), c.values.float()) for c in contexts]
    return KeysValues(torch.stack([c.keys for c in as_first]), torch.stack([c.values for c in as_first]))


def attend_by_runs(runs: Sequence[Run], attends: Sequence[Attend]) -> Attend:
    """Attend run by run: nothing is padded, and each image has the arithmetic that it has alone.

    Args:
        runs: They cover the batch.
        attends: The softmax core of each run.
    """
    count = runs[-1].rows.stop

    def attend_all(inputs: AttentionInputs) -> Tensor:
        windows = inputs.queries.shape[0] // count
        most = inputs.own.keys.shape[2] - inputs.num_tokens
        seen = []
        for run, attend in zip(runs, attends, strict=True):
            rows = slice(run.rows.start * windows, run.rows.stop * windows)
            own = inputs.replace(context=None).of_images(rows)
            if run.prompts < most:
                own = _without_padding(own, run.prompts)
            left = attend(own.replace(context=run.context and run.context.repeat(windows)))
            # What pads attends to nothing.
            seen.append(F.pad(left, (0, 0, 0, inputs.queries.shape[2] - left.shape[2])).transpose(1, 2))
        # Heads beside each other, as the fused attention leaves them.
        return torch.cat(seen).transpose(1, 2)

    return attend_all


def attention_of(runs: Sequence[Run], attends: Sequence[Attend] = ()) -> dict[str, Any]:
    """Return how a block attends by runs: options of :meth:`Backbone.block`; each run by a softmax by default."""
    attends = attends or [softmax_attention] * len(runs)
    if len(runs) == 1:
        return {"context": runs[0].context, "attend": attends[0]}
    return {"attend": attend_by_runs(runs, attends)}


def _without_padding(inputs: AttentionInputs, prompts: int) -> AttentionInputs:
    """Return the inputs with the first full prompts only."""
    keys = slice(0, inputs.num_tokens + prompts)
    return inputs.replace(
        queries=inputs.queries[:, :, : inputs.num_queries + prompts],
        own=KeysValues(inputs.own.keys[:, :, keys], inputs.own.values[:, :, keys]),
        mask=None if inputs.mask is None else inputs.mask[:, :, keys, keys],
    )


class _PromptMixture(Mixture):
    """Images that attend to stored keys and values of their own, and full prompts of their own that flow on."""

    def __init__(self, parts: Sequence[BankedPrompts]) -> None:
        self.parts = parts
        self.full = [0 if part.prompts is None else part.prompts.shape[0] for part in parts]

    def step(self, i: int, backbone: Backbone, stream: Stream) -> Stream:
        if i == 0 and any(self.full):
            stream = stream.with_prompts(padded([part.prompts for part in self.parts if part.prompts is not None]))
        runs = runs_of([part.context(i) for part in self.parts], self.full)
        return backbone.block(i, stream, **attention_of(runs))


def padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors (n, ...) that differ in n, with zeros at the end: (B, most, ...)."""
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


class Change(NamedTuple):
    """What becomes of one of the backbone's parameters: ``diag(scale) W + up down``, or another vector."""

    vector: Tensor | None = None
    """(n,) in place of a bias, or of what a norm multiplies by."""
    scale: Tensor | None = None
    """(out,) factors on the outputs."""
    down: Tensor | None = None
    """(rank, in)."""
    up: Tensor | None = None
    """(out, rank)."""


class BankedWeights(Banked):
    """Changes of the backbone's parameters, by timm's names.

    Args:
        changes: What becomes of each; ``Backbone.varies_by_image`` holds for all.
    """

    def __init__(self, changes: Mapping[str, Change]) -> None:
        super().__init__()
        self.names = tuple(changes)
        for n, change in enumerate(changes.values()):
            for part, value in change._asdict().items():
                if value is not None:
                    self.register_buffer(f"{part}_{n}", value.detach().clone())

    def changes(self) -> dict[str, Change]:
        """The changes by name."""
        parts = [{part: getattr(self, f"{part}_{n}", None) for part in Change._fields} for n in range(len(self.names))]
        return {name: Change(**part) for name, part in zip(self.names, parts, strict=True)}

    @staticmethod
    def mix(parts: Sequence[BankedWeights], backbone: Backbone) -> Mixture:
        """Each image is run with its own parameters; none has a copy of a layer."""
        # One task may have many images.
        of_task = {id(part): part.changes() for part in parts}
        changes = [of_task[id(part)] for part in parts]
        names = dict.fromkeys(name for part in of_task.values() for name in part)
        mixture = Mixture()
        mixture.weights = {
            name: _varied([part.get(name, Change()) for part in changes], backbone.own_tensor(name)) for name in names
        }
        return mixture


def banked_weights(changes: Mapping[str, Change], backbone: Backbone) -> BankedWeights | None:
    """Keep changes of the backbone's parameters; ``None`` if one of them cannot differ between images."""
    return BankedWeights(changes) if all(map(backbone.varies_by_image, changes)) else None


def _varied(changes: Sequence[Change], own: Tensor | None) -> PerImage:
    """Make one parameter of all images from its changes; images without any have the backbone's ``own``."""
    vectors = [change.vector for change in changes if change.vector is not None]
    if vectors:
        # A layer without a bias is one whose bias is 0.
        rest = torch.zeros_like(vectors[0]) if own is None else own.detach()
        return PerImage.vector(torch.stack([rest if change.vector is None else change.vector for change in changes]))
    if own is None:
        raise RuntimeError("A matrix that the backbone does not have was changed.")
    scales, scale = [change.scale for change in changes], None
    if any(value is not None for value in scales):
        ones = own.new_ones(own.shape[0])
        scale = torch.stack([ones if value is None else value for value in scales])
    if all(change.down is None for change in changes):
        return PerImage.matrix(own, scale=scale)
    none = own.new_zeros(0, own.shape[1]), own.new_zeros(0, own.shape[0])
    down = padded([none[0] if change.down is None else change.down for change in changes])
    up = padded([none[1] if change.up is None else change.up.mT for change in changes]).mT
    return PerImage.matrix(own, scale=scale, down=down, up=up)
