"""A frozen timm vision transformer, opened at its block boundaries.

The only file that knows timm's insides. A method runs the blocks one by one and decides what each of them
may attend to besides the image's own tokens:

* ``context``: prompts that are attended to and do not attend; nothing but extra keys and values.
* full prompts (``Stream.prompts``): tokens that attend, are transformed, and flow on.

Shapes: B images, K prefix tokens, N patches, T = K + N tokens, P prompts, D width, H heads, d head width.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import timm
import timm.data
import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.errors import BackboneError, nearest
from trimtab.noise import Noise, drop
from trimtab.stream import Attend, AttentionInputs, Context, KeysValues, Stream, softmax_attention

# Younger than timm 1.0.
_ATTENTION_ROPE = getattr(timm.layers, "AttentionRope", EvaAttention)


BesideMLP: TypeAlias = Callable[[Tensor], Tensor]


class _Twins(threading.local):
    """A thread's own copy of a module's structure; the tensors are the module's."""

    module: _Opened | None = None

    def __deepcopy__(self, memo: object) -> _Twins:
        return _Twins()

    def __reduce__(self) -> tuple[type[_Twins], tuple[()]]:
        return _Twins, ()


class _Opened(nn.Module):
    """A timm module whose parts are run as calls of it, so that its parameters can be swapped."""

    inside: Any

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self._twins = _Twins()

    def forward(self, part: Callable[..., Any], *arguments: Any) -> Any:
        return part(self.inside, *arguments)

    def run(self, weights: Mapping[str, Tensor], part: Callable[..., Any], *arguments: Any) -> Any:
        """``part`` of the module, with ``weights`` in place of its own by their names."""
        if not weights:
            return part(self.inside, *arguments)
        named = {f"inside.{name}": value for name, value in weights.items()}
        if torch.compiler.is_compiling():
            # What is traced swaps nothing when it runs.
            return functional_call(self, named, (part, *arguments))
        # For the length of a call the tensors are really swapped, which no other thread may see.
        if self._twins.module is None:
            tensors = (*self.inside.parameters(), *self.inside.buffers())
            self._twins.module = _Opened(copy.deepcopy(self.inside, {id(value): value for value in tensors}))
        # Moving a module to a device makes new buffers.
        buffers = {f"inside.{name}": value for name, value in self.inside.named_buffers()}
        return functional_call(self._twins.module, {**buffers, **named}, (part, *arguments))


def _run_block(
    block: Any,
    tokens: Tensor,
    prompts: Tensor,
    rope: Tensor | None,
    context: Context | None,
    attend: Attend,
    pooled: slice | None,
    keep: tuple[Tensor, Tensor] | None,
    beside_mlp: BesideMLP | None,
) -> tuple[Tensor, Tensor | None]:
    """One pre-norm block as a function of tokens, full prompts and context."""
    attn = block.attn
    x = torch.cat([tokens, prompts], 1) if prompts.shape[1] else tokens
    normed = block.norm1(x)
    queries, own = _heads(attn, normed, rope, tokens.shape[1])
    inputs = AttentionInputs(queries, own, _join(block, context), num_tokens=tokens.shape[1], scale=attn.scale)
    attended = attend(inputs).transpose(1, 2).flatten(2)
    x = _residuals(block, x, normed, attended, keep, beside_mlp)
    return x, None if pooled is None else _pooled_logits(inputs, pooled)


def _join(block: Any, context: Context | None) -> KeysValues | None:
    parts = [context] if isinstance(context, (Tensor, KeysValues)) else context
    if not parts:
        return None
    return KeysValues.join([p if isinstance(p, KeysValues) else _prompt_keys_values(block, p) for p in parts])


def _prompt_keys_values(block: Any, prompts: Tensor) -> KeysValues:
    batched = prompts if prompts.ndim == 3 else prompts[None]
    return _keys_values(block.attn, block.norm1(batched))


def _bypass(block: Any, prompts: Tensor, keep: tuple[Tensor, Tensor] | None) -> Tensor:
    normed = block.norm1(prompts)
    return _residuals(block, prompts, normed, normed, keep)


def _residuals(
    block: Any,
    x: Tensor,
    normed: Tensor,
    attended: Tensor,
    keep: tuple[Tensor, Tensor] | None,
    beside_mlp: BesideMLP | None = None,
) -> Tensor:
    """The block from the softmax core's output on: projection, layer scale, residuals, MLP."""
    attn = block.attn
    if getattr(attn, "norm", None) is not None:
        attended = attn.norm(attended)
    if getattr(attn, "gate", None) is not None:
        attended = attended * attn.gate(normed).sigmoid()
    update = _layer_scale(block, 1, attn.proj(attended))
    x = x + (update if keep is None else update * keep[0])
    update = _layer_scale(block, 2, block.mlp(block.norm2(x)))
    beside = None if beside_mlp is None else beside_mlp(x)
    x = x + (update if keep is None else update * keep[1])
    return x if beside is None else x + beside


def _layer_scale(block: Any, which: int, update: Tensor) -> Tensor:
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{which}")
        update = update if gamma is None else gamma * update
    else:
        update = getattr(block, f"ls{which}")(update)
    return update


def _project(attn: Any, x: Tensor, with_queries: bool) -> list[Tensor]:
    """Queries (if wanted), keys and values of ``x`` (B, S, D), each (B, heads, S, d)."""
    if attn.qkv is None:
        layers = ([attn.q_proj] if with_queries else []) + [attn.k_proj, attn.v_proj]
        head_dim = attn.proj.in_features // attn.num_heads
        return [layer(x).unflatten(-1, (-1, head_dim)).transpose(1, 2) for layer in layers]
    bias = attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    skip = 0 if with_queries else attn.qkv.weight.shape[0] // 3
    projected = F.linear(x, attn.qkv.weight[skip:], None if bias is None else bias[skip:])
    parts = 3 if with_queries else 2
    return list(projected.unflatten(-1, (parts, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))


def _keys_values(attn: Any, normed: Tensor) -> KeysValues:
    """Keys and values of prompts: no position, rotary or otherwise."""
    keys, values = _project(attn, normed, with_queries=False)
    return _repeat_groups(attn, KeysValues(_qk_norm(attn, "k_norm", keys).to(values.dtype), values))


def _heads(attn: Any, normed: Tensor, rope: Tensor | None, num_tokens: int) -> tuple[Tensor, KeysValues]:
    """Queries, keys and values of tokens and full prompts; rotary positions on the patches only."""
    queries, keys, values = _project(attn, normed, with_queries=True)
    queries, keys = _qk_norm(attn, "q_norm", queries), _qk_norm(attn, "k_norm", keys)
    if rope is not None:
        queries = _rotate(attn, queries, rope, num_tokens)
        keys = _rotate(attn, keys, rope, num_tokens)
    own = KeysValues(keys.to(values.dtype), values)
    return queries.to(values.dtype), _repeat_groups(attn, own)


def _qk_norm(attn: Any, name: str, x: Tensor) -> Tensor:
    norm = getattr(attn, name, None)  # timm 1.0's EvaAttention has none
    return x if norm is None else norm(x)


def _rotate(attn: Any, x: Tensor, rope: Tensor, num_tokens: int) -> Tensor:
    prefix = attn.num_prefix_tokens
    half = {"half": True} if getattr(attn, "rotate_half", False) else {}
    patches = apply_rot_embed_cat(x[:, :, prefix:num_tokens], rope, **half)
    return torch.cat([x[:, :, :prefix], patches.to(x.dtype), x[:, :, num_tokens:]], 2)


def _repeat_groups(attn: Any, pair: KeysValues) -> KeysValues:
    """Grouped-query attention: each key and value head serves several query heads."""
    groups = getattr(attn, "num_kv_groups", 1)
    if groups == 1:
        return pair
    return KeysValues(pair.keys.repeat_interleave(groups, dim=1), pair.values.repeat_interleave(groups, dim=1))


def _pooled_logits(inputs: AttentionInputs, pooled: slice) -> Tensor:
    # The mean of several queries' logits is the mean query's logits: one row, whatever the pooling.
    query = inputs.queries[:, :, : inputs.num_tokens][:, :, pooled].mean(2, keepdim=True)
    keys = inputs.own.keys[:, :, : inputs.num_tokens]
    return (query * inputs.scale @ keys.transpose(-2, -1)).squeeze(2)


class Backbone(nn.Module):
    """A frozen timm ``VisionTransformer`` or ``Eva``, run block by block.

    The model given is shared, not copied: its parameters are frozen and it is kept in eval mode.

    Args:
        model: A timm model.
        name: The name to be recorded; timm's own architecture name by default.

    Raises:
        BackboneError: If the model cannot be opened, with every reason.

    Example:
        >>> import timm, torch
        >>> backbone = Backbone(timm.create_model("test_vit"))
        >>> stream = backbone.embed(torch.zeros(2, 3, 160, 160))
        >>> for i in range(backbone.depth):
        ...     stream = backbone.block(i, stream)
        >>> backbone.pool(stream).shape
        torch.Size([2, 64])
    """

    model: Any

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        super().__init__()
        config = getattr(model, "pretrained_cfg", None) or {}
        self.name = name or config.get("architecture") or type(model).__name__
        reasons = reasons_not_to_open(model)
        if reasons:
            raise BackboneError(
                f"Backbone {self.name!r} cannot be opened: {'; '.join(reasons)}. "
                "Use a timm VisionTransformer or Eva made of ordinary pre-norm blocks."
            )
        self.model = model.requires_grad_(False).eval()
        self._fingerprint: str | None = None
        self._open()

    def _open(self) -> None:
        # Kept out of the module tree: the same parameters must not be listed twice.
        self._blocks = tuple(_Opened(block).eval() for block in self.model.blocks)
        self._whole = (_Opened(self.model).eval(),)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return int(self.model.embed_dim)

    @property
    def num_heads(self) -> int:
        """H, attention heads in a block."""
        return int(self._blocks[0].inside.attn.num_heads)

    @property
    def num_features(self) -> int:
        """Width of what :meth:`pool` returns."""
        return int(getattr(self.model, "head_hidden_size", self.model.num_features))

    @property
    def num_prefix_tokens(self) -> int:
        """K: class, distillation and register tokens before the patches."""
        return int(self.model.num_prefix_tokens)

    @property
    def num_patches(self) -> int:
        """N, patches of an image of :attr:`image_size`."""
        return int(self.model.patch_embed.num_patches)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return getattr(self.model, "cls_token", None) is not None

    @property
    def pooled_tokens(self) -> slice:
        """Which of the T tokens pooling reads: the class token, both of a distilled model's, or the patches."""
        if isinstance(self.model, VisionTransformerDistilled):
            return slice(0, 2)
        if getattr(self.model, "attn_pool", None) is None and self.model.global_pool == "token":
            return slice(0, 1)
        whole = getattr(self.model, "pool_include_prefix", False) or (
            # Eva's map pooling reads the prefix tokens too.
            isinstance(self.model, Eva) and getattr(self.model, "attn_pool", None) is not None
        )
        return slice(0 if whole else self.num_prefix_tokens, None)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        # Not patch_embed.patch_size: a convolutional stem shrinks the image before it is cut.
        (height, width), (rows, columns) = self.image_size, self.model.patch_embed.grid_size
        return height // int(rows), width // int(columns)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        height, width = self.model.patch_embed.img_size
        return int(height), int(width)

    @property
    def data_config(self) -> dict[str, Any]:
        """What the weights were trained with: ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``."""
        config = timm.data.resolve_data_config({}, model=self.model)
        kept = {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
        # From the JSON of a hub's repository they come as lists.
        return {**kept, "mean": tuple(kept["mean"]), "std": tuple(kept["std"])}

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 values of all weights but the classifier's."""
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self.model)
        return self._fingerprint

    def set_image_size(self, height: int, width: int) -> None:
        """Resize the position embeddings for images of another size; the fingerprint stays.

        Raises:
            BackboneError: If the size is not a multiple of the patch size.
        """
        if (height, width) == self.image_size:
            return
        patch = self.patch_size
        if height < 1 or width < 1 or height % patch[0] or width % patch[1]:
            below, above = (
                tuple(max(s // p + k, 1) * p for s, p in zip((height, width), patch, strict=True)) for k in (0, 1)
            )
            raise BackboneError(
                f"Image size {height}x{width} is not a multiple of the patch size {patch[0]}x{patch[1]} of "
                f"{self.name!r}; use {below[0]}x{below[1]} or {above[0]}x{above[1]}."
            )
        if not hasattr(self.model, "set_input_size"):
            raise BackboneError(
                f"timm {timm.__version__} cannot change the image size of {self.name!r} from "
                f"{self.image_size[0]}x{self.image_size[1]}; install a newer timm."
            )
        _ = self.fingerprint  # of the weights as they are in the file
        self.model.set_input_size(img_size=(height, width))
        self._open()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: a frozen backbone drops nothing."""
        return super().train(False)

    def embed(
        self, images: Tensor, *, noise: Noise | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> Stream:
        """Images (B, 3, height, width), normalised, to the sequence before block 0.

        Args:
            images: What is to be looked at.
            noise: Where random numbers come from in training.
            weights: Tensors to use, from here to :meth:`pool`, in place of the backbone's own parameters, by
                timm's names (:meth:`named_weights` has them).

        Raises:
            BackboneError: If the images have another size than the backbone.
        """
        model = self.model
        if not getattr(model, "dynamic_img_size", False) and tuple(images.shape[-2:]) != self.image_size:
            raise BackboneError(
                f"Images are {images.shape[-2]}x{images.shape[-1]} but {self.name!r} takes "
                f"{self.image_size[0]}x{self.image_size[1]}; resize them or call set_image_size."
            )
        weights = weights or {}
        tokens, rope = self._outside(_embed, images, weights)
        patch = self.patch_size
        return Stream(
            tokens=tokens,
            prompts=tokens[:, :0],
            grid_size=(-(-images.shape[-2] // patch[0]), -(-images.shape[-1] // patch[1])),
            rope=rope,
            noise=noise or Noise(),
            weights=weights,
        )

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The backbone's own parameters by timm's names, without those of timm's classifier."""
        skip = tuple(f"{name}." for name in classifier_names(self.model))
        return {name: value for name, value in self.model.named_parameters() if not name.startswith(skip)}

    def named_layers(self) -> dict[str, nn.Module]:
        """Linear layers, norms and convolutions by timm's names, without timm's classifier."""
        skip = classifier_names(self.model)
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter) and name not in skip
        }

    def check_weights(self, names: Iterable[str]) -> None:
        """Make sure that every name is that of a tensor that can be swapped.

        Raises:
            BackboneError: If one is not, with the nearest.
        """
        # Also those that are None, as a layer's missing bias.
        known = {
            f"{place}.{name}" if place else name
            for place, module in self.model.named_modules()
            for name in (*module._parameters, *module._buffers)
        }
        for name in names:
            if name not in known:
                raise BackboneError(f"{self.name!r} has no tensor {name!r} to be swapped.{nearest(name, known)}")

    def _outside(self, part: Callable[..., Any], x: Tensor, weights: Mapping[str, Tensor]) -> Any:
        outside = {name: value for name, value in weights.items() if not name.startswith("blocks.")}
        return self._whole[0].run(outside, part, x)

    def _inside(self, i: int, part: Callable[..., Any], weights: Mapping[str, Tensor], *arguments: Any) -> Any:
        before = f"blocks.{i}."
        own = {name[len(before) :]: value for name, value in weights.items() if name.startswith(before)}
        return self._blocks[i].run(own, part, *arguments)

    def block(
        self,
        i: int,
        stream: Stream,
        *,
        context: Context | None = None,
        attend: Attend = softmax_attention,
        beside_mlp: BesideMLP | None = None,
        saliency: bool = False,
        drop_path: float = 0.0,
    ) -> Stream:
        """Run block ``i``.

        Args:
            i: Block, counted from 0.
            stream: What enters it.
            context: Prompts that are attended to and do not attend: tensors (P, D), (1, P, D) or (B, P, D)
                at the block's input, :class:`KeysValues`, or a sequence of these.
            attend: Replaces the softmax core.
            beside_mlp: Maps the sequence (B, T + P, D) before the MLP and its norm to what is added to it besides
                the MLP's output.
            saliency: Also compute the pooled tokens' row of logits, into ``Stream.saliency``.
            drop_path: Probability of dropping each of the two residual branches for an image.
        """
        rope = stream.rope
        if rope is not None and getattr(self.model, "rope_mixed", False):
            rope = rope[i]
        keep = self._keep(stream.noise, drop_path, stream.tokens, per_image=True)
        pooled = self.pooled_tokens if saliency else None
        arguments = (stream.tokens, stream.prompts, rope, context, attend, pooled, keep, beside_mlp)
        x, logits = self._inside(i, _run_block, stream.weights, *arguments)
        tokens = stream.tokens.shape[1]
        return stream.replace(tokens=x[:, :tokens], prompts=x[:, tokens:], saliency=logits)

    def bypass(
        self,
        i: int,
        prompts: Tensor,
        stream: Stream,
        *,
        drop_path: float = 0.0,
        per_image: bool | None = None,
    ) -> Tensor:
        """Run block ``i`` on prompts (1 or B, P, D) with its softmax core left out.

        The normalised prompts go straight to the output projection: ``p += W_o LN1(p) + b_o``, then the MLP.
        Prompts of batch 1 stay of batch 1. Drop-path is drawn for every image if ``per_image`` and once for the
        batch otherwise; by default it goes by the prompts' batch, which cannot tell where there is one image.
        """
        per_image = prompts.shape[0] > 1 if per_image is None else per_image
        keep = self._keep(stream.noise, drop_path, prompts, per_image=per_image)
        bypassed: Tensor = self._inside(i, _bypass, stream.weights, prompts, keep)
        return bypassed

    def _keep(self, noise: Noise, rate: float, like: Tensor, *, per_image: bool) -> tuple[Tensor, Tensor] | None:
        if rate == 0.0:
            return None
        ones = like.new_ones(())

        def draw() -> Tensor:
            uniform = noise.per_image(like.shape[0], 1, 1, like=like) if per_image else noise.shared(1, like=like)
            return drop(ones, rate, uniform)

        return draw(), draw()

    def keys_values(self, i: int, prompts: Tensor, weights: Mapping[str, Tensor] | None = None) -> KeysValues:
        """Keys and values of prompts (P, D), (1, P, D) or (B, P, D) at the input of block ``i``."""
        pair: KeysValues = self._inside(i, _prompt_keys_values, weights or {}, prompts)
        return pair

    def feature(self, stream: Stream) -> Tensor:
        """(B, D): the mean of the tokens that pooling reads, as they leave a block (before the final norm)."""
        return stream.tokens[:, self.pooled_tokens].mean(1)

    def normalised(self, stream: Stream) -> Tensor:
        """(B, T, D): the tokens after timm's final norm."""
        tokens: Tensor = self._outside(_norm, stream.tokens, stream.weights)
        return tokens

    def pool(self, stream: Stream) -> Tensor:
        """(B, num_features): what timm's own classifier would read. Prompts are never pooled."""
        pooled: Tensor = self._outside(_norm_and_pool, stream.tokens, stream.weights)
        return pooled

    def grid(self, stream: Stream) -> Tensor:
        """(B, D, h, w): the normalised patch tokens in their places, without prefix tokens or prompts."""
        patches = self.normalised(stream)[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(patches.shape[0], -1, *stream.grid_size)


def _embed(model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    embedded = model._pos_embed(model.patch_embed(images))
    tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    if getattr(model, "norm_pre", None) is not None:
        tokens = model.norm_pre(tokens)
    return tokens, rope


def _norm(model: Any, tokens: Tensor) -> Any:
    return model.norm(tokens)


def _norm_and_pool(model: Any, tokens: Tensor) -> Any:
    return model.forward_head(model.norm(tokens), pre_logits=True)


def reasons_not_to_open(model: Any) -> list[str]:
    """Why a model cannot be opened at its block boundaries, in words; empty if it can."""
    if not isinstance(model, (VisionTransformer, Eva)):
        return [f"{type(model).__name__} is neither a timm VisionTransformer nor an Eva"]
    reasons = []
    dtype = next(model.parameters()).dtype
    if dtype in (torch.float16, torch.bfloat16):
        reasons.append(f"its weights are {dtype}; call model.float(), and use autocast for speed")
    if type(model).forward_features not in (VisionTransformer.forward_features, Eva.forward_features):
        reasons.append(f"{type(model).__name__} runs its blocks in a way of its own")
    blocks = {type(block).__name__ for block in model.blocks if type(block) not in (Block, EvaBlock)}
    for name in sorted(blocks):
        reasons.append(f"its blocks are {name}s, not pre-norm blocks with attention and MLP in sequence")
    known = (Attention, EvaAttention, _ATTENTION_ROPE)
    attention = [getattr(block, "attn", None) for block in model.blocks]
    for name in sorted({type(attn).__name__ for attn in attention if type(attn) not in known} - {"NoneType"}):
        reasons.append(f"its attention is {name}, not ordinary softmax attention")
    if any(getattr(attn, "attn_dim", model.embed_dim) != model.embed_dim for attn in attention):
        reasons.append("its attention is wider or narrower than its tokens")
    return reasons


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of timm's own classifier layers, which trimtab neither uses nor fingerprints."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return tuple(names) if isinstance(names, (list, tuple)) else (names,)


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    skip = tuple(f"{name}." for name in classifier_names(model))
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(skip):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
