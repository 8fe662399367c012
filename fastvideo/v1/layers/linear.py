"""Linear layers split over the tensor-parallel group; each parameter knows how to load its own slice.

Legend: ``i`` input features, ``o`` output features. Megatron-LM (arXiv 1909.08053), section 3.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.distributed.communication import all_gather, all_reduce
from fastvideo.v1.layers.low_rank import LowRankBranch, WeightDelta
from fastvideo.v1.layers.quantization import QuantizedRows, quantize_rows, quantized_linear
from fastvideo.v1.layers.weight_loading import check_shape, copy_exactly


class LinearBase(nn.Module):
    """Weight ``[o, i]`` and bias ``[o]``, of which subclasses keep a slice; ``branch`` is an adapter kept apart."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_sizes: list[int]  # of the inputs that this rank holds
    quantized: list[QuantizedRows] | None = None  # the weight's part for each input, once quantize() is called
    branch: LowRankBranch | None = None

    def _create_parameters(self, input_size: int, output_size: int, bias: bool) -> None:
        self.input_sizes = [input_size]
        self.weight = nn.Parameter(torch.empty(output_size, input_size), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]
        if bias:
            self.bias = nn.Parameter(torch.empty(output_size), requires_grad=False)
            self.bias.weight_loader = self.load_bias  # type: ignore[attr-defined]
        else:
            self.register_parameter("bias", None)

    def quantize(self) -> None:
        """Trades the weight for one of 8-bit floats; from then on inputs may be :class:`QuantizedRows`."""
        parts = self.weight.data.split(self.input_sizes, dim=1)
        self.quantized = [quantize_rows(part) for part in parts]
        self.register_parameter("weight", None)

    def multiply(self, *inputs: torch.Tensor | QuantizedRows) -> torch.Tensor:
        """The product with this rank's weight, summed over ``inputs``, plus the bias."""
        if self.quantized is not None:
            (first, part), *rest = zip(inputs, self.quantized, strict=True)
            out = quantized_linear(first, part, self.bias)
            for x, part in rest:
                out += quantized_linear(x, part, None)
            return out
        tensors = cast(tuple[torch.Tensor, ...], inputs)  # layers that quantize their output are quantized together
        (first, weight), *others = zip(tensors, self.weight.split(self.input_sizes, dim=1), strict=True)
        out = F.linear(first, weight, self.bias)
        for x, weight in others:
            out.flatten(0, -2).addmm_(x.flatten(0, -2), weight.t())
        return out if self.branch is None else self.branch.added_to(out, *tensors)

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        raise NotImplementedError

    def load_bias(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        raise NotImplementedError

    def whole_shape(self, part: int) -> torch.Size:
        """``[o, i]`` of the checkpoint's weight that is part ``part`` of this one, on all ranks together."""
        return self.weight.shape

    def low_rank_branch(self, delta: WeightDelta, part: int) -> LowRankBranch:
        """What ``delta`` of part ``part`` adds, for this rank's slice and in the weight's dtype.

        Raises ``ValueError`` if it is for a weight of another shape.
        """
        assert delta.down is not None, "a branch is made of a pair"
        delta.check_fits(self.whole_shape(part))
        up = torch.zeros(len(self.weight), len(delta.down), dtype=torch.float32)
        self.load_weight(nn.Parameter(up, requires_grad=False), delta.up, part)  # the rows that are ours
        return LowRankBranch(delta.down.to(self.weight), (up * delta.strength).to(self.weight))


class ReplicatedLinear(LinearBase):
    """A plain linear layer, whole on every rank. ``[..., i] -> [..., o]``."""

    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self._create_parameters(input_size, output_size, bias)

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        copy_exactly(param.data, loaded)

    load_bias = load_weight

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:
        return self.multiply(x)


class MergedColumnParallelLinear(LinearBase):
    """Several column-parallel layers over one input as one matrix product.

    ``output_sizes`` are the parts' full sizes; a rank's output holds its slice of every part, in order:
    ``[..., i] -> [..., sum(output_sizes) / tp]``. A part of fewer units than there are ranks, say grouped key heads,
    is held by several: ``replicas`` gives for each part how many neighbours hold the same slice, mostly 1.
    """

    def __init__(
        self, input_size: int, output_sizes: list[int], bias: bool = True, replicas: list[int] | None = None
    ) -> None:
        super().__init__()
        self._group = get_tp_group()
        self._replicas = replicas or [1] * len(output_sizes)
        self.part_sizes = [
            self._group.shard_size(size * copies, "output_size")
            for size, copies in zip(output_sizes, self._replicas, strict=True)
        ]
        self._create_parameters(input_size, sum(self.part_sizes), bias)

    def whole_shape(self, part: int) -> torch.Size:
        rows = self.part_sizes[part] * self._group.size // self._replicas[part]
        return torch.Size((rows, self.weight.shape[1]))

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        size, copies = self.part_sizes[part], self._replicas[part]
        check_shape(loaded, (size * self._group.size // copies, *param.shape[1:]))
        mine = loaded.narrow(0, self._group.rank // copies * size, size)
        copy_exactly(param.data.narrow(0, sum(self.part_sizes[:part]), size), mine)

    load_bias = load_weight

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:
        return self.multiply(x)


class ColumnParallelLinear(MergedColumnParallelLinear):
    """A linear layer split over its outputs: ``[..., i] -> [..., o / tp]``, or ``[..., o]`` with ``gather_output``."""

    def __init__(self, input_size: int, output_size: int, bias: bool = True, gather_output: bool = False) -> None:
        super().__init__(input_size, [output_size], bias)
        self.gather_output = gather_output

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:
        out = super().forward(x)
        return all_gather(out, dim=-1, group=self._group) if self.gather_output else out


class MergedRowParallelLinear(LinearBase):
    """A linear layer over several inputs, split over each and summed over ranks: ``[..., i_k / tp], ... -> [..., o]``.

    ``full_sizes`` are the inputs' full sizes; they are never concatenated.
    """

    def __init__(self, full_sizes: list[int], output_size: int, bias: bool = True) -> None:
        super().__init__()
        self._group = get_tp_group()
        self.full_sizes = full_sizes
        part_sizes = [self._group.shard_size(size, "input_size") for size in full_sizes]
        self._create_parameters(sum(part_sizes), output_size, bias)
        self.input_sizes = part_sizes

    def whole_shape(self, part: int) -> torch.Size:
        return torch.Size((len(self.weight), sum(self.full_sizes)))

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        check_shape(loaded, (len(param), sum(self.full_sizes)))
        mine = [self._group.shard(piece, dim=1) for piece in loaded.split(self.full_sizes, dim=1)]
        copy_exactly(param.data, torch.cat(mine, dim=1))

    def load_bias(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        # Every rank adds its bias before the sum, so only the first holds it: a bias is counted once.
        copy_exactly(param.data, loaded if self._group.rank == 0 else torch.zeros_like(loaded))

    def low_rank_branch(self, delta: WeightDelta, part: int) -> LowRankBranch:
        assert delta.down is not None, "a branch is made of a pair"
        delta.check_fits(self.whole_shape(part))
        down = torch.zeros(len(delta.down), sum(self.input_sizes), dtype=torch.float32)
        self.load_weight(nn.Parameter(down, requires_grad=False), delta.down)  # the columns that are ours
        return LowRankBranch(down.to(self.weight), (delta.up.float() * delta.strength).to(self.weight))

    def forward(self, *inputs: torch.Tensor | QuantizedRows) -> torch.Tensor:
        return all_reduce(self.multiply(*inputs), self._group)


class RowParallelLinear(MergedRowParallelLinear):
    """A linear layer split over its inputs, summed over ranks: ``[..., i / tp] -> [..., o]``.

    With ``input_is_parallel=False`` every rank passes the whole input and takes its own slice of it.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = True, input_is_parallel: bool = True) -> None:
        super().__init__([input_size], output_size, bias)
        self.input_is_parallel = input_is_parallel

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:  # type: ignore[override]
        if not self.input_is_parallel:
            assert isinstance(x, torch.Tensor), "rows are quantized after they are split"
            x = self._group.shard(x, dim=-1)
        return super().forward(x)
