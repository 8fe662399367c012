"""What every model of the framework shares: a config read from the checkpoint and a table of checkpoint names."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatch
from functools import cache
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from torch import nn

from fastvideo.v1.layers.linear import LinearBase
from fastvideo.v1.layers.weight_loading import keep_loader
from fastvideo.v1.logger import init_logger
from fastvideo.v1.models.dits.kept_states import NothingKept

logger = init_logger(__name__)

Blocks = Callable[[torch.Tensor], torch.Tensor]


class BlockRunner(Protocol):
    """What a transformer hands its blocks to: it may leave them out (``dits/step_cache.py``) or watch them."""

    def run(self, tokens: torch.Tensor, signal: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """``blocks(tokens)`` or what stands for it, ``[b, s, d]``; ``signal`` tells how far the input has moved."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture numbers of one model; subclasses declare the fields of the checkpoint's ``config.json``.

    ``unread_keys`` are its published keys that have no bearing on a forward pass.
    """

    unread_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config of a parsed ``config.json``; keys that this model does not know are ignored, and told of once.

        Raises ``ValueError`` for a key that it lacks, or of a model that is not served.
        Those of transformers' configs, which have no ``_class_name``, are not told of: most are of training.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(key for key in values if key not in {*known, *cls.unread_keys} and not key.startswith("_"))
        if unknown and "_class_name" in values:
            _tell_once(cls.__name__, ", ".join(unknown))
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        if missing := [name for name in needed if values.get(name) is None]:
            raise ValueError(f"{', '.join(missing)} must have a value, which {cls.__name__} has no default for")
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in known})


@cache
def _tell_once(config: str, keys: str) -> None:
    logger.info("%s ignores config keys %s", config, keys)


class Model(nn.Module):
    """An inference-only model built from its config, with empty weights, on the current default device.

    ``packed_modules`` maps a merged layer to the checkpoint's separate ones, in order. ``renamed_keys`` are
    replacements within the checkpoint's names, made one after another; ``original_keys`` are such replacements from the
    names of the model's first publication to the checkpoint's, for adapters that use those. ``ignored_keys`` are
    suffixes that a checkpoint may have and the model does not need; ``refused_keys`` are parts of names that tell of
    another kind of model, each with the reason why it is not served. ``float32_modules`` are names that stay in float32
    whatever the model's dtype. ``attends_text_padding`` says whether a transformer was trained to see the zeros after a
    text; one that was not gets its text without them. ``quantized_modules`` are patterns of the names of
    those linear layers that :meth:`quantize` changes: the ones that work on video tokens. ``block_lists`` names the
    lists of blocks, in the order in which they run: nearly all weights, which need not be on a device all at once.
    ``skips_steps`` says whether a transformer's ``forward`` hands its blocks to ``step_cache`` where there is one.
    ``overflows_float16`` says that values of its published weights leave that type's range.
    """

    config_class: ClassVar[type[ModelConfig]]
    packed_modules: ClassVar[dict[str, tuple[str, ...]]] = {}
    renamed_keys: ClassVar[dict[str, str]] = {}
    original_keys: ClassVar[dict[str, str]] = {}
    ignored_keys: ClassVar[tuple[str, ...]] = ()
    refused_keys: ClassVar[dict[str, str]] = {}
    float32_modules: ClassVar[tuple[str, ...]] = ()
    attends_text_padding: ClassVar[bool] = True
    quantized_modules: ClassVar[tuple[str, ...]] = ()
    block_lists: ClassVar[tuple[str, ...]] = ()
    skips_steps: ClassVar[bool] = False
    overflows_float16: ClassVar[bool] = False
    step_cache: BlockRunner | None = None  # while a batch is denoised with step skipping
    kept_states: NothingKept = NothingKept()  # while a batch is denoised, what need not be computed twice

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.get_default_dtype()  # of what the model computes on; some parameters stay in float32
        self.weights_travel = False  # whether blocks get their weights when they run, so that none is to be changed
        self.weights_are_shared_out = False  # whether this process keeps its part alone of some parameters

    def token_grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along t, h and w of latents ``[b, c, t, h, w]``, for a transformer of video."""
        raise NotImplementedError(f"{type(self).__name__} has no canvas of tokens, so no sliding tiles")

    def blocks_in_order(self) -> list[nn.Module]:
        """All blocks of ``block_lists``, in the order in which they run."""
        return [block for name in self.block_lists for block in cast(nn.ModuleList, self.get_submodule(name))]

    def block_sequences(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Blocks in the order in which they run, with the module whose call runs them."""
        return [(self, self.blocks_in_order())]

    def place_parameters(self, place: Callable[[str, nn.Parameter], torch.Tensor]) -> None:
        """Puts what ``place`` makes of each name and parameter in its stead; weight loaders stay."""
        for module_name, module in self.named_modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                placed = nn.Parameter(place(f"{module_name}.{key}".lstrip("."), parameter), requires_grad=False)
                keep_loader(parameter, placed)
                setattr(module, key, placed)

    def check_skips_steps(self) -> None:
        """Raises ``ValueError`` if this model cannot skip steps."""
        if not self.skips_steps:
            raise ValueError(f"{type(self).__name__} cannot skip steps; leave step_skip_threshold empty")

    def quantize(self) -> None:
        """Makes the matrix products of the blocks 8-bit (:mod:`fastvideo.v1.layers.quantization`), an approximation."""
        if not self.quantized_modules:
            raise ValueError(f"{type(self).__name__} has no 8-bit form; leave quantization empty")
        for name, module in self.named_modules():
            if any(fnmatch(name, pattern) for pattern in self.quantized_modules):
                assert isinstance(module, LinearBase), f"{name} is no linear layer of the framework"
                module.quantize()
