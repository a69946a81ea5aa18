"""The matrix products of a model that only decodes: weights packed once, in the number format that was asked for.

A packed model stands beside the one that it was made of, with other linear layers, one for one. Activations,
keys and values stay in float32, except where the hardware multiplies bfloat16: there the whole model is cast.
Legend: O = outputs, I = inputs, G = groups of inputs.
"""

from __future__ import annotations

import copy
import itertools
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.errors import BadInput, RunFailed
from linnet.model import kernels
from linnet.model.heads import Head
from linnet.model.model import Model

Weights = Literal["float32", "bfloat16", "float16", "int8", "int4"]
SMALLEST = 1 << 15  # a smaller matrix lies in the cache whatever its layout
INT4_GROUP = 32

# The kernels of torch, looked up once and called without the checks of `torch.ops`: a step calls them many times.
BLOCKED = torch.ops.mkldnn._linear_pointwise.default._op
HALF = torch.ops.quantized.linear_dynamic_fp16.default._op
INT8 = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op

Product = Callable[[Tensor, Tensor | None], nn.Module]  # weight [O, I] and bias [O] -> a module like nn.Linear


class PackedLinear(nn.Module, ABC):
    """A linear layer whose weights only its own kernel can read.

    A compiled graph holds tensors and numbers, and packed weights are neither: it calls the layer by its number.
    """

    numbered: ClassVar[weakref.WeakValueDictionary[int, PackedLinear]] = weakref.WeakValueDictionary()
    numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.bias = None if bias is None else bias.detach()
        self.number = next(self.numbers)
        self.numbered[self.number] = self

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """What the kernel gives for `x`, inside and outside of a compiled graph."""
        if torch.compiler.is_compiling():
            found: Tensor = torch.ops.linnet.product(x, self.number, self.outputs)
            return found
        return self.multiply(x)

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """The kernel itself."""


def _product_of(x: Tensor, number: int, outputs: int) -> Tensor:
    return PackedLinear.numbered[number].multiply(x)


def _shape_of(x: Tensor, number: int, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


OPERATORS = torch.library.Library("linnet", "DEF")
OPERATORS.define("product(Tensor x, int number, int outputs) -> Tensor")
OPERATORS.impl("product", _product_of, "CPU")
torch.library.register_fake("linnet::product", _shape_of, lib=OPERATORS)


class Blocked(PackedLinear):
    """Float weights in the blocked layout of oneDNN, which streams faster than rows of a plain matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def multiply(self, x: Tensor) -> Tensor:
        product: Tensor = BLOCKED(x, self.packed, self.bias, "none", [], "")
        return product


class Half(PackedLinear):
    """Weights in float16, multiplied and summed in float32: half the bytes, on any processor."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), self.bias)

    def multiply(self, x: Tensor) -> Tensor:
        product: Tensor = HALF(x, self.packed)
        return product


class Int8(PackedLinear):
    """Weights in int8 with a scale for each output; activations are rounded row by row, so rows stay independent.

    Without VNNI two products of 8 bits could overflow the 16 bits that they are added in, so activations get 7.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        weight = weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():  # torch deprecates the type that its own kernel asks for, and has no other
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed: Any = torch.ops.quantized.linear_prepack(rounded, None)
        self.zero = 128 if has_vnni() else 64

    def forward(self, x: Tensor) -> Tensor:
        # The kernel knows one scale for all rows: each row is brought to [-1, 1] before, and back after.
        most = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        product = self.product(x / most) * most
        return product if self.bias is None else product + self.bias

    def multiply(self, x: Tensor) -> Tensor:
        product: Tensor = INT8(x, 1 / (self.zero - 1), self.zero, self.packed)
        return product


class Int4(PackedLinear):
    """Weights in 4 bits with a scale and a zero for each group of inputs; activations stay in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        outputs, inputs = weight.shape
        grouped = weight.detach().float().view(outputs, inputs // INT4_GROUP, INT4_GROUP)  # [O, G, 32]
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        scale = (high - low).clamp(min=1e-8) / 15
        rounded = ((grouped - low) / scale).round().clamp(0, 15).to(torch.int32).view(outputs, inputs)
        zero = low + 8 * scale  # the operator reads (number - 8) * scale + zero
        self.packed: Tensor = torch._convert_weight_to_int4pack_for_cpu(rounded, 1)
        self.scales = torch.cat((scale, zero), -1).transpose(0, 1).contiguous()  # [G, O, 2]

    def multiply(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        product = torch._weight_int4pack_mm_for_cpu(flat, self.packed, INT4_GROUP, self.scales)
        product = product.view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


class Streamed(nn.Module):
    """Weights as they are, for the compiled step of a single row, which multiplies and sums them as they come.

    No library call reads memory faster, and the compiler fuses what stands before and after. Prompts, being many
    rows, are multiplied by torch. Rounded weights come with a scale for each output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() or x.numel() != self.inputs:
            weight = self.weight.to(x.dtype)
            return F.linear(x, weight if self.scale is None else weight * self.scale[:, None], self.bias)
        # With strides of its own, what stands before is computed once; else it is computed for each output.
        row = x.reshape(self.inputs).as_strided((1, self.inputs), (self.inputs, 1))
        product = (self.weight.float() * row.float()).sum(-1)  # [O]
        product = product if self.scale is None else product * self.scale
        product = product.to(x.dtype).view(*x.shape[:-1], self.outputs)
        return product if self.bias is None else product + self.bias


class PackedHead(Head):
    """The output layer with a packed product; it scores and samples, and cannot learn."""

    def __init__(self, head: Head, product: Product) -> None:
        nn.Module.__init__(self)
        self.softcap, self.vocabulary = head.softcap, head.vocabulary
        self.product = product(head.weight, head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.product(hidden)
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def named(name: str) -> Weights:
    """The number format of this name."""
    for weights in get_args(Weights):
        if weights == name:
            found: Weights = weights
            return found
    raise BadInput(f"weights cannot be in {name}; they can be in {', '.join(get_args(Weights))}")


def packed(model: Model, weights: Weights, *, single: bool = False) -> Model:
    """A model beside this one with its products in this number format: it can decode and score, and cannot learn.

    It shares the memory of what is not packed, and shows the weights of now: after more training, pack again.
    `single` prepares it for compiled steps of one row.
    """
    if model.device.type == "cuda":
        if weights in ("int8", "int4"):
            raise BadInput(f"{weights} weights are for the processor; on CUDA bfloat16 streams half of the bytes")
        return _copied(model, getattr(torch, weights))
    native = weights == "bfloat16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    made = _copied(model, torch.bfloat16 if native else torch.float32)
    # Without AVX-512 compilers convert bytes one by one.
    streamed = single and (weights not in ("int8", "int4") or (weights == "int8" and kernels.WIDE))
    product = _streamed(weights) if streamed else _product(weights)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and (streamed or _worth_it(child.weight, weights)):
                setattr(parent, name, product(child.weight, child.bias))
    if streamed or _worth_it(made.head.weight, weights):
        made.head = PackedHead(made.head, product)
    return made


def _copied(model: Model, dtype: torch.dtype) -> Model:
    """The same modules over the same weights, or over rounded ones; nothing in it learns."""
    for name, weight in model.named_parameters():
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise RunFailed(f"{name} holds weights that are not finite numbers; nothing can be computed with them")
    weights = {
        id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in model.parameters()
    }
    return copy.deepcopy(model, weights).eval()


def _product(weights: Weights) -> Product:
    if weights == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _rounded_to_bfloat16
    kinds: dict[str, Product] = {"float16": Half, "int8": Int8, "int4": Int4}
    return kinds.get(weights, Blocked)


def _rounded_to_bfloat16(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Where no instruction multiplies bfloat16: weights of its precision, in float32 products."""
    return Blocked(weight.to(torch.bfloat16).float(), bias)


def _streamed(weights: Weights) -> Product:
    if weights == "int8":
        return _streamed_bytes
    stored: torch.dtype = getattr(torch, weights)
    return lambda weight, bias: Streamed(weight.to(stored), bias)


def _streamed_bytes(weight: Tensor, bias: Tensor | None) -> Streamed:
    """Weights in int8; nothing else is rounded."""
    scale = weight.detach().abs().amax(1).clamp(min=1e-12) / 127
    return Streamed((weight.detach() / scale[:, None]).round().to(torch.int8), bias, scale)


def _worth_it(weight: Tensor, weights: Weights) -> bool:
    """Whether this matrix gains anything, and fits what the kernels take."""
    if weights == "int4":
        return weight.shape[1] % INT4_GROUP == 0 and weight.shape[0] % 16 == 0
    return weights != "float32" or weight.numel() >= SMALLEST


def has_vnni() -> bool:
    """Whether the processor adds four products of 8 bits in 32 bits at once."""
    return bool(torch.cpu._is_vnni_supported())
