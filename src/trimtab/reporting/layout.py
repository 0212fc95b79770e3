"""Which of the prompts of each block belong to which set, and what is seen of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.methods.base import PromptSet
from trimtab.reporting import pictures
from trimtab.reporting.attention import Attention
from trimtab.reporting.figure import shown
from trimtab.reporting.parts import Captioned
from trimtab.reporting.thumbnails import overlay

_MAPS = 2
"""Prompts whose attention is laid over an image."""
MAPS = (
    "Prompts: how much of its attention each patch gives to one prompt; shown are two that tell patches apart best, of "
    "different sets if there are several."
)
SCALE = "Every picture has its own scale: dark is little, yellow is much."


class Layout:
    """The prompts of all blocks, in the order in which attention is told of."""

    def __init__(self, sets: Sequence[PromptSet], attention: Attention) -> None:
        self.attention = attention
        self.sets = [one for one in sets if one.count]
        counts = [sum(one.count for one in self.sets if i in one.blocks) for i in range(len(attention.pooled))]
        seen = [pooled.shape[1] for pooled in attention.pooled]
        if counts != seen:
            # A method that does not say how its prompts are laid out.
            self.sets = [
                PromptSet(f"{count} prompts", count, tuple(i for i, n in enumerate(seen) if n == count))
                for count in sorted({n for n in seen if n})
            ]

    def columns(self, one: PromptSet, i: int) -> slice:
        """The places of a set's prompts among those of a block that has them."""
        before = [other for other in self.sets[: self.sets.index(one)] if i in other.blocks]
        first = sum(other.count for other in before)
        return slice(first, first + one.count)

    def shares(self, given: Sequence[Tensor]) -> list[tuple[str, list[float | None]]]:
        """Return the attention given to each prompt set in each block, and to all together if there are several.

        Args:
            given: (B, P) of each block: what some tokens of each image give to each prompt.
        """
        means = [values.mean(0) for values in given]
        rows: list[tuple[str, list[float | None]]] = [
            (
                one.name,
                [float(p[self.columns(one, i)].sum()) if i in one.blocks else None for i, p in enumerate(means)],
            )
            for one in self.sets
        ]
        if len(rows) > 1:
            rows.append(("all prompts", [float(p.sum()) if len(p) else None for p in means]))
        return rows

    def picture(self, given: Sequence[Tensor], whose: str) -> Captioned | None:
        """Draw the shares, if there are prompts; ``whose`` attention it is, in words."""
        rows = self.shares(given)
        if not rows:
            return None
        drawn = pictures.shares([name for name, _ in rows], [row for _, row in rows], whose)
        return drawn, (
            f"What part of the attention of {whose} goes to each prompt set, mean over heads and over the images "
            "looked at closely below."
        )

    def overlays(self, pixels: Tensor, k: int, what: str) -> list[Captioned]:
        """Draw where the patches of the ``k``-th image, ``what`` in words, attend to some prompts."""
        drawn = []
        for name, i, column in self.maps():
            alt = f"Where patches of {what} attend to {name} in block {i}."
            under = shown(f"{name}, block {i}")
            drawn.append((overlay(pixels, self.attention.patches[i][k, ..., column], alt), under))
        return drawn

    def maps(self) -> list[tuple[str, int, int]]:
        """The prompts that tell patches apart best, of different sets first: a name, the block, the place in it."""
        found = [(*self._spread(one, i), one, i) for one in self.sets for i in one.blocks]
        found.sort(key=lambda entry: -entry[0])
        # The first of each set before the others.
        firsts = {entry[2].name: entry for entry in reversed(found)}
        chosen = [entry for entry in found if firsts[entry[2].name] is entry]
        chosen = (chosen + [entry for entry in found if entry not in chosen])[:_MAPS]
        return [
            (
                (f"{one.name}, " if len(self.sets) > 1 else "") + f"prompt {column - self.columns(one, i).start + 1}",
                i,
                column,
            )
            for _, column, one, i in chosen
        ]

    def _spread(self, one: PromptSet, i: int) -> tuple[float, int]:
        # Of the prompt whose weight varies most over the patches of an image: how much it does, and its place.
        columns = self.columns(one, i)
        values: Tensor = self.attention.patches[i][..., columns]
        spread = values.flatten(1, 2).std(1, correction=0).mean(0)
        return float(spread.max()), columns.start + int(spread.argmax())
