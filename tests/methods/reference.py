"""VPT, SHIP and SVPT written a second time: dense, slow, from the description of the papers and nothing else.

Every prompt is a token of one concatenated sequence, attention is a softmax over an explicit matrix, images and
tokens are looped over. Only parameters are read off a plain timm ViT (class token, ordinary blocks); SVPT's runs
timm's own modules, so that it knows other special tokens too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass
class Switches:
    """Where paper and official code differ, or a part is turned off."""

    inside: str = "carry"
    feature_scale: float = 0.1
    mix: str = "convex"
    attention: str = "decoupled"
    p2ip: str = "last"
    path: str = "project"
    class_token_may_be_salient: bool = True
    attribute_mix: float = 0.1
    temperature: float = 1.0
    matching_tokens: int = 10


class PlainViT:
    """The parameters of a timm ViT, and its arithmetic by hand."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.weights = {name: value.detach() for name, value in network.named_parameters()}
        self.depth = len(network.blocks)
        self.heads = network.blocks[0].attn.num_heads

    def embed(self, images: Tensor) -> Tensor:
        """Patches by an explicit unfolding, then class token and positions."""
        weight, bias = self.weights["patch_embed.proj.weight"], self.weights["patch_embed.proj.bias"]
        size = weight.shape[-1]
        cut = images.unfold(2, size, size).unfold(3, size, size)  # (B, 3, h, w, size, size)
        patches = torch.einsum("bchwij,dcij->bhwd", cut, weight).flatten(1, 2) + bias
        cls = self.weights["cls_token"].expand(len(images), -1, -1)
        return torch.cat([cls, patches], 1) + self.weights["pos_embed"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def queries_keys_values(self, i: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, S, d)."""
        q, k, v = self.linear(f"blocks.{i}.attn.qkv", normed).chunk(3, -1)
        batch, length, width = q.shape
        split = (batch, length, self.heads, width // self.heads)
        return q.view(split).transpose(1, 2), k.view(split).transpose(1, 2), v.view(split).transpose(1, 2)

    def finish(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """Projection, residual, MLP, residual."""
        x = x + self.linear(f"blocks.{i}.attn.proj", attended)
        hidden = self.linear(f"blocks.{i}.mlp.fc1", self.norm(f"blocks.{i}.norm2", x))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + self.linear(f"blocks.{i}.mlp.fc2", hidden)

    def class_features(self, x: Tensor) -> Tensor:
        return self.norm("norm", x)[:, 0]


def _softmax_rows(logits: Tensor) -> Tensor:
    exponential = torch.exp(logits - logits.amax(-1, keepdim=True).detach())
    return exponential / exponential.sum(-1, keepdim=True)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def vpt(network: nn.Module, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """Class features of VPT: one set of prompts is shallow, one per block is deep."""
    vit = PlainViT(network)
    x = vit.embed(images)
    length = len(prompts[0])
    for i in range(vit.depth):
        if i < len(prompts):
            inserted = prompts[i].expand(len(images), -1, -1)
            rest = x[:, 1:] if i == 0 else x[:, 1 + length :]
            x = torch.cat([x[:, :1], inserted, rest], 1)
        q, k, v = vit.queries_keys_values(i, vit.norm(f"blocks.{i}.norm1", x))
        weights = _softmax_rows(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]))
        x = vit.finish(i, x, _merge_heads(weights @ v))
    return vit.class_features(x)


@dataclasses.dataclass
class SHIPPrompts:
    """SHIP's tensors; a part that is turned off has length 0."""

    starts: tuple[int, ...]
    independent: list[Tensor]
    shared: Tensor
    attribute: list[Tensor]
    prototypes: Tensor

    @property
    def attribute_starts(self) -> list[int]:
        """The last hierarchies, as many as there are sets."""
        return list(self.starts)[len(self.starts) - len(self.attribute) :]


def _salient(logits: Tensor, count: int, switches: Switches) -> list[list[int]]:
    """Of each image, the positions of its ``count`` highest logits."""
    chosen = []
    for row in logits.tolist():
        allowed = range(0 if switches.class_token_may_be_salient else 1, len(row))
        chosen.append(sorted(allowed, key=lambda position: -row[position])[:count])
    return chosen


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def _attribute_prompts(x: Tensor, logits: Tensor, learned: Tensor, prototypes: Tensor, switches: Switches) -> Tensor:
    """AP of every image: its salient tokens in terms of the prototypes, mixed with the learned ones."""
    made = []
    for image, positions in enumerate(_salient(logits, len(learned), switches)):
        rows = []
        for slot, position in enumerate(positions):
            token = x[image, position]
            similarity = torch.stack([_cosine(token, prototype) for prototype in prototypes])
            pattern = _softmax_rows(similarity / switches.temperature) @ prototypes
            rows.append(switches.attribute_mix * pattern + (1 - switches.attribute_mix) * learned[slot])
        made.append(torch.stack(rows))
    return torch.stack(made)


def _ship_block(vit: PlainViT, i: int, x: Tensor, prompts: Tensor, switches: Switches) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and prompts after block ``i``, and the class token's mean logits over the tokens."""
    n = x.shape[1]
    both = torch.cat([x, prompts], 1)
    normed = vit.norm(f"blocks.{i}.norm1", both)
    q, k, v = vit.queries_keys_values(i, normed)
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    everything = _merge_heads(_softmax_rows(logits) @ v)
    tokens, s = everything[:, :n], switches.feature_scale
    if switches.attention == "decoupled":
        tokens = _merge_heads(_softmax_rows(logits[:, :, :n, :n]) @ v[:, :, :n])
        if prompts.shape[1]:
            seen = _merge_heads(_softmax_rows(logits[:, :, :n, n:]) @ v[:, :, n:])
            tokens = tokens + s * seen if switches.mix == "additive" else (1 - s) * tokens + s * seen
    last = i == vit.depth - 1
    attend = switches.p2ip == "all" or (switches.p2ip == "last" and last) or switches.attention == "plain"
    of_prompts = everything[:, n:] if attend else normed[:, n:]
    after = vit.finish(i, both, torch.cat([tokens, of_prompts], 1))
    kept = prompts if switches.path == "identity" and not attend else after[:, n:]
    return after[:, :n], kept, logits[:, :, 0, :n].mean(1)


def ship(
    network: nn.Module, images: Tensor, given: SHIPPrompts, switches: Switches
) -> tuple[Tensor, Tensor, list[int]]:
    """Class features, unweighted matching loss, and the length of the sequence in every block."""
    vit = PlainViT(network)
    x, batch = vit.embed(images), len(images)
    shared = given.shared.expand(batch, -1, -1)
    prompts, logits, lengths, hierarchy = x[:, :0], torch.zeros(batch, x.shape[1]), [], -1
    for i in range(vit.depth):
        starts = i in given.starts
        hierarchy += starts
        independent = given.independent[hierarchy].expand(batch, -1, -1) if given.independent else x[:, :0]
        length = independent.shape[1]
        attribute = prompts[:, length : prompts.shape[1] - shared.shape[1]]
        if starts:
            attribute = x[:, :0]
            if i in given.attribute_starts:
                learned = given.attribute[given.attribute_starts.index(i)]
                attribute = _attribute_prompts(x, logits, learned, given.prototypes, switches)
            attribute_at_start = attribute
        elif switches.inside == "reinsert":
            attribute = attribute_at_start
        else:
            independent = prompts[:, :length]
        prompts = torch.cat([independent, attribute, shared], 1)
        lengths.append(x.shape[1] + prompts.shape[1])
        x, prompts, logits = _ship_block(vit, i, x, prompts, switches)
    return vit.class_features(x), matching_loss(x, prompts, logits, switches), lengths


def matching_loss(x: Tensor, prompts: Tensor, logits: Tensor, switches: Switches) -> Tensor:
    """Mean over images and prompts of the cosine distance to the nearest salient token."""
    total = []
    for image, positions in enumerate(_salient(logits, switches.matching_tokens, switches)):
        for prompt in prompts[image]:
            distances = [1 - _cosine(prompt, x[image, position]) for position in positions]
            total.append(torch.stack(distances).min())
    return torch.stack(total).mean()


def class_tokens(network: nn.Module, images: Tensor) -> Tensor:
    """The class token after every block of the untouched network: (images, depth, D)."""
    vit, x, found = PlainViT(network), PlainViT(network).embed(images), []
    for i in range(vit.depth):
        x, _, _ = _ship_block(vit, i, x, x[:, :0], Switches(attention="plain"))
        found.append(x[:, 0])
    return torch.stack(found, 1)


def affinity(features: Tensor) -> Tensor:
    """Mean over images of the cosine similarity of every pair of blocks."""
    images, depth, _ = features.shape
    matrix = torch.zeros(depth, depth, dtype=features.dtype)
    for image in features:
        for a in range(depth):
            for b in range(depth):
                matrix[a, b] += _cosine(image[a], image[b]) / images
    return matrix


def hierarchy(matrix: Any, threshold: float) -> tuple[int, ...]:
    """The official recursion: walk on from a kept block, and recurse at the first one under the threshold."""
    if threshold >= 1:
        return tuple(range(len(matrix)))

    def search(kept: int) -> list[int]:
        for block in range(kept + 1, len(matrix)):
            if float(matrix[kept][block]) < threshold:
                return [kept, *search(block)]
        return [kept]

    return tuple(search(0))


@dataclasses.dataclass
class SVPTReading:
    """Which of the readings of SVPT is meant."""

    connection: str = "dynamic"
    gate_from: str = "output"
    gate_shape: str = "token"
    gate: float = 0.5
    source: str = "input"
    form: str = "additive"
    salient: int = 0
    pairing: str = "attention"
    added: str = "normalised"


@dataclasses.dataclass
class SVPTTensors:
    """SVPT's tensors; what a reading has not is ``None``. Gates and strengths begin with block 1."""

    prompts: Tensor
    gate_weight: Tensor | None
    gate_bias: Tensor | None
    strength: Tensor | None


def svpt(network: nn.Module, images: Tensor, given: SVPTTensors, reading: SVPTReading) -> Tensor:
    """Pooled features of SVPT: every prompt is a token of timm's own modules, one image after the other."""
    tokens = network.norm_pre(network._pos_embed(network.patch_embed(images)))
    left = torch.stack([_svpt_image(network, image, given, reading) for image in tokens])
    return network.forward_head(network.norm(left), pre_logits=True)


def _svpt_image(network: nn.Module, x: Tensor, given: SVPTTensors, reading: SVPTReading) -> Tensor:
    """The tokens of one image (T, D) as they leave the last block."""
    length, pooled = len(x), _pooled_positions(network, len(x))
    entered = output = logits = x[:0]
    for i, block in enumerate(network.blocks):
        fed = given.prompts[i]
        if i > 0 and reading.connection != "none":
            shared = output if reading.source == "output" else entered
            gate = _svpt_gate(i - 1, fed, shared, output, given, reading)
            fed = (fed if reading.form == "additive" else (1 - gate) * fed) + gate * shared
        if i > 0 and given.strength is not None:
            attention = _patch_attention(logits, pooled, range(network.num_prefix_tokens, length))
            x = _svpt_enhanced(x, attention, given.strength[i - 1], fed, reading)
        both, logits = _dense_block(block, torch.cat([x, fed]))
        x, output, entered = both[:length], both[length:], fed
    return x


def _pooled_positions(network: nn.Module, length: int) -> list[int]:
    if getattr(network, "dist_token", None) is not None:
        return [0, 1]
    return [0] if network.global_pool == "token" else list(range(network.num_prefix_tokens, length))


def _svpt_gate(
    link: int, own: Tensor, shared: Tensor, output: Tensor, given: SVPTTensors, reading: SVPTReading
) -> Tensor:
    """A gate for every entry of the prompts (P, D)."""
    if reading.connection == "fixed":
        return torch.full_like(own, reading.gate)
    looked_at = {"output": [output], "prompts": [own, shared], "constant": []}[reading.gate_from]
    weights = given.gate_weight[link] if looked_at else []
    bias, rows, evidence = given.gate_bias[link], [], []
    for j in range(len(own)):
        seen = [weight * _standardised(prompts[j]) for weight, prompts in zip(weights, looked_at, strict=True)]
        evidence.append(sum(seen, torch.zeros_like(own[j])))
    of_all = sum(evidence) / len(evidence)
    for j in range(len(own)):
        logit = {
            "token": lambda j=j: evidence[j].sum() + (bias[0] if looked_at else bias[j]),
            "channel": lambda: of_all + bias,
            "scalar": lambda: of_all.sum() + bias[0],
        }[reading.gate_shape]()
        rows.append(1 / (1 + torch.exp(-logit)) * torch.ones_like(own[j]))
    return torch.stack(rows)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5)


def _patch_attention(logits: Tensor, pooled: list[int], patches: range) -> dict[int, float]:
    """Of each patch, what the pooled tokens' mean query attends to it, mean over the heads' (H, S, S) logits."""
    total = dict.fromkeys(patches, 0.0)
    for head in logits:
        row = sum(head[position] for position in pooled) / len(pooled)
        exponentials = {patch: math.exp(row[patch].item()) for patch in patches}
        for patch in patches:
            total[patch] += exponentials[patch] / sum(exponentials.values()) / len(logits)
    return total


def _svpt_enhanced(
    x: Tensor, attention: dict[int, float], strength: Tensor, prompts: Tensor, reading: SVPTReading
) -> Tensor:
    """The tokens, with something of the prompts added to the patches that were attended to most."""
    tokens = list(x)
    if reading.added == "normalised":
        prompts = torch.stack([_standardised(prompt) for prompt in prompts])
    for rank, position in enumerate(sorted(attention, key=lambda patch: -attention[patch])[: reading.salient]):
        added = prompts[rank] if reading.pairing == "paired" else None
        if added is None:
            similarity = torch.stack([tokens[position] @ prompt / math.sqrt(x.shape[1]) for prompt in prompts])
            added = sum(weight * prompt for weight, prompt in zip(_softmax_rows(similarity), prompts, strict=True))
        tokens[position] = tokens[position] + strength * added
    return torch.stack(tokens)


def _dense_block(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One image (S, D) through a block of timm's modules, and the logits of every pair in every head."""
    queries, keys, values = block.attn.qkv(block.norm1(x)).chunk(3, -1)
    width, heads, logits = x.shape[1] // block.attn.num_heads, [], []
    for start in range(0, x.shape[1], width):
        head = slice(start, start + width)
        logits.append(queries[:, head] @ keys[:, head].T / math.sqrt(width))
        heads.append(_softmax_rows(logits[-1]) @ values[:, head])
    x = x + block.ls1(block.attn.proj(torch.cat(heads, -1)))
    return x + block.ls2(block.mlp(block.norm2(x))), torch.stack(logits)
