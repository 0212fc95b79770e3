"""Parameters that differ between the images of a batch, computed without a copy of the layer for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerImage(Tensor):
    """A parameter of a layer that is another for each of B images.

    Stands in for a vector (n,), a bias or what a norm multiplies by, as rows (B, n); or for a matrix or a kernel
    (out, ...) as one that all images share, whose outputs each image scales and, of a matrix, adds a low-rank update
    to: ``W_b = diag(scale_b) W + up_b down_b``. The layers themselves are run as they are; what they call with it
    (linear, convolution, layer norm) is computed for each image. Inputs hold all rows of an image one after the
    other: (B, ...), or (B * windows, ...).

    Anything else that is called with it raises a TypeError; :meth:`Backbone.varies_by_image` says where it serves.
    """

    rows: Tensor | None
    """(B, n) of a vector."""
    shared: Tensor
    """The matrix or kernel that all images share."""
    scale: Tensor | None
    """(B, out)."""
    down: Tensor | None
    """(B, rank, in)."""
    up: Tensor | None
    """(B, out, rank)."""

    @staticmethod
    def vector(rows: Tensor) -> PerImage:
        """Make a vector from its rows (B, n)."""
        made = _subclass(rows[0])
        made.rows, made.shared = rows, rows[0]
        made.scale = made.down = made.up = None
        return made

    @staticmethod
    def matrix(
        shared: Tensor, *, scale: Tensor | None = None, down: Tensor | None = None, up: Tensor | None = None
    ) -> PerImage:
        """Make a matrix (out, in) or a kernel (out, ...) from the shared one and what each image has of its own."""
        made = _subclass(shared)
        made.rows, made.shared, made.scale, made.down, made.up = None, shared, scale, down, up
        return made

    def of_images(self, index: Any) -> PerImage:
        """Return the parameter of some of the images."""
        if self.rows is not None:
            return PerImage.vector(self.rows[index])
        scale, down, up = (None if part is None else part[index] for part in (self.scale, self.down, self.up))
        return PerImage.matrix(self.shared, scale=scale, down=down, up=up)

    def of_outputs(self, index: Any) -> PerImage:
        """Return the part of the parameter that makes some of the outputs."""
        if self.rows is not None:
            return PerImage.vector(self.rows[:, index])
        scale, up = (None if part is None else part[:, index] for part in (self.scale, self.up))
        return PerImage.matrix(self.shared[index], scale=scale, down=self.down, up=up)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute for each image what layers call; read what is asked of the shared tensor, and nothing else."""
        compute = _COMPUTED.get(func)
        if compute is not None:
            return compute(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _READ:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(f"{getattr(func, '__name__', func)} of a parameter that differs between images")


_READ = {"__get__", "dim", "size", "numel", "is_floating_point", "is_complex", "data_ptr"}


def can_vary(layer: nn.Module, leaf: str) -> bool:
    """Whether a parameter of a layer can be a :class:`PerImage`."""
    if leaf == "weight":
        # A weight-standardised convolution computes with its weight.
        return type(layer) in (nn.Linear, nn.Conv2d) or isinstance(layer, nn.LayerNorm)
    return leaf in ("q_bias", "k_bias", "v_bias") or isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm))


def _subclass(tensor: Tensor) -> PerImage:
    made: PerImage = torch.Tensor._make_subclass(PerImage, tensor.detach())
    return made


def _plain(parameter: Tensor | None) -> Tensor | None:
    """Return the part of a parameter that no image has of its own."""
    return parameter if not isinstance(parameter, PerImage) else None


def _spread(rows: Tensor, like: Tensor, channels: int = -1) -> Tensor:
    """Bring rows (B, n) beside the channels of ``like`` (B * windows, ...), in its type."""
    rows = rows.to(like.dtype).repeat_interleave(like.shape[0] // rows.shape[0], 0)
    shape = [1] * like.ndim
    shape[0], shape[channels] = rows.shape
    return rows.view(shape)


def _own(outputs: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, channels: int = -1) -> Tensor:
    """Scale the outputs of a layer without bias, and add what each image has of its own."""
    if isinstance(weight, PerImage):
        if weight.scale is not None:
            outputs = outputs * _spread(weight.scale, outputs, channels)
        if weight.down is not None and weight.up is not None:
            # (B, windows * S, in): the factors are not repeated for every window.
            rows = inputs.reshape(weight.down.shape[0], -1, inputs.shape[-1])
            of_image = torch.bmm(rows, weight.down.to(rows.dtype).mT)
            added = torch.baddbmm(
                outputs.reshape(rows.shape[0], -1, outputs.shape[-1]), of_image, weight.up.to(of_image.dtype).mT
            )
            outputs = added.view(outputs.shape)
    if isinstance(bias, PerImage) and bias.rows is not None:
        outputs = outputs + _spread(bias.rows, outputs, channels)
    elif bias is not None:
        shape = [1] * outputs.ndim
        shape[channels] = -1
        outputs = outputs + bias.to(outputs.dtype).view(shape)
    return outputs


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    shared = weight.shared if isinstance(weight, PerImage) else weight
    # A bias that all share goes along, but where the outputs are scaled before it is added.
    scaled = isinstance(weight, PerImage) and weight.scale is not None
    along = None if scaled else _plain(bias)
    outputs = F.linear(input, shared, along)
    return _own(outputs, input, weight, None if along is not None else bias)


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named: Any) -> Tensor:  # noqa: A002
    shared = weight.shared if isinstance(weight, PerImage) else weight
    return _own(F.conv2d(input, shared, None, *options, **named), input, weight, bias, channels=1)


def _layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normed = F.layer_norm(input, normalized_shape, None, None, eps)
    if isinstance(weight, PerImage) and weight.rows is not None:
        normed = normed * _spread(weight.rows, normed)
    elif weight is not None:
        normed = normed * weight
    if isinstance(bias, PerImage) and bias.rows is not None:
        return normed + _spread(bias.rows, normed)
    return normed if bias is None else normed + bias


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> PerImage:
    """Join vectors, of which some are the same for all images."""
    given = [vector.rows for vector in tensors if isinstance(vector, PerImage) and vector.rows is not None]
    count = given[0].shape[0]
    rows = [
        vector.rows if isinstance(vector, PerImage) and vector.rows is not None else vector.expand(count, -1)
        for vector in tensors
    ]
    return PerImage.vector(torch.cat(rows, 1))


_COMPUTED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    torch.cat: _cat,
    Tensor.__getitem__: PerImage.of_outputs,
}
