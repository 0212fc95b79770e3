"""Distillation: the student's tokens are to say what the teacher's say, most of the time from a part of the patches."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.micro.images import normalise
from scripts.micro.student import Student
from scripts.micro.teacher import Said, open_said


@dataclass(frozen=True)
class Recipe:
    """How the student is trained. The schedule runs by the clock, for the machine is shared."""

    minutes: float = 75.0
    """Of wall time, over all parts of a resumed run."""
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    """Part of the time in which the learning rate rises; a cosine to 0 follows."""
    batch: int = 128
    kept: float = 0.25
    """Part of the patches that the student sees at first, drawn anew for every batch."""
    kept_last: float = 0.5
    """What this part has risen to, evenly, before it sees all of them."""
    whole_from: float = 0.85
    """Part of the time after which it does."""
    temperature: float = 2.0
    logits_weight: float = 1.0
    labels_weight: float = 0.2
    """Of the cross-entropy with the images' own labels: at 128 px the teacher knows less than they do."""
    tokens_weight: float = 1.0
    jitter: float = 0.3
    """Largest change of brightness and contrast."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept."""
    seed: int = 0


def learning_rate(recipe: Recipe, progress: float) -> float:
    """By the part of the time that has gone."""
    if progress < recipe.warmup:
        return recipe.lr * (progress / recipe.warmup + 0.01)
    along = (progress - recipe.warmup) / (1 - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


def jittered(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Brightness and contrast changed, each image by numbers of its own; uint8 to normalised floats."""
    x = normalise(images)
    draws = (torch.rand(x.shape[0], 2, 1, 1, 1, generator=generator) * 2 - 1) * largest
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + draws[:, 0]) + mean + draws[:, 1]).clamp_(-1, 1)


class Targets:
    """The teacher's tokens and logits of a batch, tokens standardised by channel."""

    def __init__(self, said: Said) -> None:
        self.said = said
        sample = torch.from_numpy(said.tokens[:: max(said.tokens.shape[0] // 2000, 1)].astype(np.float32))
        self.scales = [(part.mean(0), part.std(0)) for part in (sample[:, 0], sample[:, 1:].flatten(0, 1))]

    def of(self, rows: Tensor, mirrored: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Class token (B, 192), patches (B, kept, 192), logits (B, 1000).

        Of a mirrored image, the teacher is taken to say the same with its patches mirrored.
        """
        tokens = torch.from_numpy(self.said.tokens[rows.numpy()].astype(np.float32))
        logits = torch.from_numpy(self.said.logits[rows.numpy()].astype(np.float32))
        (class_mean, class_std), (mean, std) = self.scales
        patches = tokens[:, 1:].unflatten(1, (8, 8))
        patches = torch.where(mirrored[:, None, None, None], patches.flip(2), patches).flatten(1, 2)
        patches = patches if keep is None else patches[:, keep]
        return (tokens[:, 0] - class_mean) / class_std, (patches - mean) / std, logits


def losses(
    recipe: Recipe, got: tuple[Tensor, Tensor, Tensor], wanted: tuple[Tensor, Tensor, Tensor], classes: Tensor
) -> list[Tensor]:
    """Those of class token, patches, the teacher's logits and the labels."""
    t = recipe.temperature
    soft = F.kl_div((got[2] / t).log_softmax(1), (wanted[2] / t).softmax(1), reduction="batchmean") * t * t
    return [
        recipe.tokens_weight * F.smooth_l1_loss(got[0], wanted[0]),
        recipe.tokens_weight * F.smooth_l1_loss(got[1], wanted[1]),
        recipe.logits_weight * soft / 5,
        recipe.labels_weight * F.cross_entropy(got[2], classes, label_smoothing=0.1),
    ]


class Training:
    """The loop; everything that a killed run needs to go on is in ``work/student.pt``."""

    def __init__(self, images: Tensor, labels: Tensor, wanted: list[int], work: Path, recipe: Recipe) -> None:
        self.images, self.labels, self.work, self.recipe = images, labels, work, recipe
        self.wanted = torch.tensor(wanted)
        """The teacher's class of each label."""
        torch.manual_seed(recipe.seed)
        self.student, self.average = Student(), Student()
        self.average.load_state_dict(self.student.state_dict())
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        rest = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
        self.targets = Targets(open_said(work, images.shape[0]))
        self.held_out = torch.arange(images.shape[0])[::64]
        """Images that are never trained on, to see how far it is."""
        self.spent, self.step, self.seen, self.curves = 0.0, 0, 0, []
        self.cpu = 0.0
        saved = work / "student.pt"
        if saved.is_file():
            state = torch.load(saved, weights_only=True)
            self.student.load_state_dict(state["student"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.spent, self.step, self.seen, self.cpu = (state[n] for n in ("spent", "step", "seen", "cpu"))
            self.curves = json.loads((work / "curves.json").read_text())["curves"]

    def go(self) -> None:
        """Until the time is over."""
        recipe, count = self.recipe, self.images.shape[0]
        train = torch.ones(count, dtype=torch.bool)
        train[self.held_out] = False
        own = train.nonzero()[:, 0]
        before, cpu_before, started = self.spent, self.cpu, time.monotonic()
        cpu_started = time.process_time()
        told = 0.0
        running: Tensor | None = None
        epoch_rows = torch.empty(0, dtype=torch.long)
        generator = torch.Generator().manual_seed(recipe.seed + 1000 + self.step)
        while True:
            self.spent = before + time.monotonic() - started
            self.cpu = cpu_before + time.process_time() - cpu_started
            progress = self.spent / (60 * recipe.minutes)
            if running is not None and (self.spent - told > 120 or progress >= 1):
                told = self.spent
                self.tell(progress, running)
            if progress >= 1:
                return
            if epoch_rows.shape[0] < recipe.batch:
                epoch_rows = own[torch.randperm(own.shape[0], generator=generator)]
            rows, epoch_rows = epoch_rows[: recipe.batch], epoch_rows[recipe.batch :]
            parts = self.train_step(rows, progress, generator)
            running = parts if running is None else running + 0.02 * (parts - running)

    def train_step(self, rows: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        """One optimiser step; the losses."""
        recipe = self.recipe
        lr = learning_rate(recipe, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        mirrored = torch.rand(rows.shape[0], generator=generator) < 0.5
        pictures = self.images[rows]
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        keep = None
        if progress < recipe.whole_from:
            part = recipe.kept + (recipe.kept_last - recipe.kept) * progress / recipe.whole_from
            keep = torch.randperm(64, generator=generator)[: round(64 * part)].sort().values
        got = self.student(jittered(pictures, recipe.jitter, generator), keep)
        classes = self.wanted[self.labels[rows]]
        parts = losses(recipe, got, self.targets.of(rows, mirrored, keep), classes)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        self.step, self.seen = self.step + 1, self.seen + rows.shape[0]
        decay = min(recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            averaged = list(self.average.parameters())
            torch._foreach_lerp_(averaged, list(self.student.parameters()), 1 - decay)
        return torch.stack([part.detach() for part in parts])

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Of the averaged student on the images held out, among all 1000 classes."""
        logits = torch.cat([self.average(normalise(self.images[rows]))[2] for rows in self.held_out.split(100)])
        return float((logits.argmax(1) == self.wanted[self.labels[self.held_out]]).float().mean())

    @torch.inference_mode()
    def features(self) -> Tensor:
        """(500, 128): the averaged student's class tokens on the images held out."""
        net = self.average.backbone
        parts = [net(normalise(self.images[rows])) for rows in self.held_out.split(100)]
        return torch.cat(parts).clone()

    def tell(self, progress: float, running: Tensor) -> None:
        """Print, and save everything."""
        entry = {
            "minutes": round(self.spent / 60, 2),
            "cpu_minutes": round(self.cpu / 60, 2),
            "images": self.seen,
            "class_token_loss": round(float(running[0]), 4),
            "patches_loss": round(float(running[1]), 4),
            "logits_loss": round(float(running[2]), 4),
            "labels_loss": round(float(running[3]), 4),
            "held_out_accuracy": round(self.accuracy(), 4),
        }
        self.curves.append(entry)
        left = 60 * self.recipe.minutes - self.spent
        print(f"{100 * progress:.0f} %, {left / 60:.0f} min left: {entry}", flush=True)
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "spent": self.spent,
            "step": self.step,
            "seen": self.seen,
            "cpu": self.cpu,
            "features": self.features(),
        }
        torch.save(state, self.work / "student-part.pt")
        (self.work / "student-part.pt").replace(self.work / "student.pt")
        about = {"recipe": asdict(self.recipe), "curves": self.curves}
        (self.work / "curves.json").write_text(json.dumps(about, indent=1))
