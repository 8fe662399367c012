"""A model on a device that cannot hold it: blocks' weights come from host memory, a block ahead of their use."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from fastvideo.v1.models.base import Model
from fastvideo.v1.models.packing import Packing, host_buffer


@dataclass(frozen=True)
class _Block:
    """A block's parameters, with their values in host memory and their places in either of the device's buffers."""

    parameters: list[nn.Parameter]
    home: list[torch.Tensor]
    places: tuple[list[torch.Tensor], ...]
    bytes: torch.Tensor  # the values in host memory, as they are copied

    def point_to(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data = value


def offload_blocks(model: Model, device: torch.device) -> None:
    """Gives the blocks of ``model`` pinned host memory for their weights, and what stands outside them ``device``.

    ``model`` is on the meta device, and has no values yet afterwards. On the device are two blocks at a time: while one
    computes, the next is copied to where the one before it was. On a CPU the same copies are made, in turn.
    """
    blocks = model.blocks_in_order()
    packings = [Packing(list(block.parameters())) for block in blocks]
    *starts, total = accumulate((packing.num_bytes for packing in packings), initial=0)
    host = host_buffer(total, device)
    parts = [host[start : start + packing.num_bytes] for start, packing in zip(starts, packings, strict=True)]
    homes = {
        parameter: home
        for block, packing, part in zip(blocks, packings, parts, strict=True)
        for parameter, home in zip(block.parameters(), packing.views(part), strict=True)
    }
    model.place_parameters(
        lambda name, parameter: homes[parameter] if parameter in homes else torch.empty_like(parameter, device=device)
    )
    model.weights_travel = True
    buffers = torch.empty(2, max(packing.num_bytes for packing in packings), dtype=torch.uint8, device=device)
    offload = _LayerOffload(
        [
            _Block(list(block.parameters()), packing.views(part), tuple(map(packing.views, buffers)), part)
            for block, packing, part in zip(blocks, packings, parts, strict=True)
        ],
        buffers,
    )
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(partial(offload.before, index))
        block.register_forward_hook(partial(offload.after, index), always_call=True)


class _LayerOffload:
    """Which block is in which buffer, and the copies into them.

    After the last block comes the first, for the next call; a call that leaves blocks out costs it one copy.
    """

    def __init__(self, blocks: Sequence[_Block], buffers: torch.Tensor) -> None:
        self._blocks = blocks
        self._buffers = buffers
        self._held: list[int | None] = [None, None]  # the block whose values each buffer has, or is getting
        self._copies = _Copies(buffers.device)

    def before(self, index: int, block: nn.Module, inputs: object) -> None:
        """Points the block's parameters at its values on the device, and starts the copy of the next one's."""
        if index not in self._held:
            self._fetch(index, buffer=0)
        buffer = self._held.index(index)
        self._copies.wait(buffer)
        self._blocks[index].point_to(self._blocks[index].places[buffer])
        following = (index + 1) % len(self._blocks)
        if following not in self._held:
            self._fetch(following, 1 - buffer)

    def after(self, index: int, block: nn.Module, inputs: object, output: object) -> None:
        """Points the block's parameters home again: the buffer will soon hold those of another."""
        self._blocks[index].point_to(self._blocks[index].home)

    def _fetch(self, index: int, buffer: int) -> None:
        values = self._blocks[index].bytes
        self._copies.start(buffer, self._buffers[buffer, : len(values)], values)
        self._held[buffer] = index


class _Copies:
    """Copies on a stream of their own, each after the work that was asked for before it; on a CPU, at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done = [torch.cuda.Event(), torch.cuda.Event()] if self._stream else []

    def start(self, buffer: int, target: torch.Tensor, source: torch.Tensor) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(target.device))  # what was in the buffer has been used
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            if self._stream is not None:
                self._done[buffer].record()

    def wait(self, buffer: int) -> None:
        """Lets the work that is asked for from now on see what was copied to ``buffer``."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._done[buffer])
