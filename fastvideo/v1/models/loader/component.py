"""One component of a pipeline, loaded: a model on its device, a tokenizer, a scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.distributed.parallel_state import get_replica_group
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.layer_offload import offload_blocks
from fastvideo.v1.models.loader.adapter import read_adapter, tell_of_one_expert
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.loader.weight_files import tensor_names
from fastvideo.v1.models.loader.weights import check_key, load_weights
from fastvideo.v1.models.registry import locate_model, resolve_model
from fastvideo.v1.models.vaes.base import VideoAutoencoder

_AUTO_PRECISION = {"cpu": torch.float32, "cuda": torch.bfloat16}


def resolve_device(choice: str) -> torch.device:
    """The device that ``FastVideoArgs.device`` names; ``cuda`` without a GPU raises ``ValueError``."""
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise ValueError(
            "device='cuda' but no GPU is visible; use device='cpu', or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if choice == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def component_dtype(name: str, args: FastVideoArgs, device: torch.device) -> torch.dtype:
    """The data type of component ``name`` under ``args``: its own precision setting, decided for ``device``."""
    if name.startswith("vae"):
        precision = args.vae_precision
    elif name.startswith(("text_encoder", "image_encoder")):
        precision = args.text_encoder_precision
    else:
        precision = args.precision
    if precision != "auto":
        return getattr(torch, precision)
    return torch.float32 if name.startswith(("vae", "image_encoder")) else _AUTO_PRECISION[device.type]


def check_component(repository: ModelRepository, name: str, class_name: str) -> None:
    """Raises ``ValueError`` if nothing serves component ``name``, or its model refuses its config or weights.

    Of weights it reads the names alone, and those only for a model that has ``refused_keys``.
    """
    if name.startswith(("tokenizer", "image_processor")):
        return
    if name.startswith("scheduler"):
        locate_model(class_name)  # its module takes seconds to import
        return
    served = resolve_model(class_name)
    if issubclass(served, Model):
        with _naming_config(repository, name) as config:
            served.config_class.from_dict(config)
        for key in tensor_names(repository, name) if served.refused_keys else ():
            check_key(served, key, f"{repository.root}/{name}")


def load_component(repository: ModelRepository, name: str, class_name: str, args: FastVideoArgs) -> Any:
    """Component ``name`` of the repository, ready to run on the device that ``args`` choose.

    With ``expert_offload`` a second transformer stays in host memory, for :class:`ModelSwap` to bring to the device.
    With ``shard_weights`` or ``layer_offload`` a model of blocks never has more than its own part, or two blocks and
    what stands outside them, on the device; the host holds one parameter, or all blocks. ``layer_offload``
    leaves a VAE where it is.
    """
    if name.startswith("tokenizer"):
        return load_tokenizer(repository, name)
    if name.startswith("image_processor"):
        return load_image_processor(repository, name)
    if name.startswith("scheduler"):
        return resolve_model(class_name).from_config(repository.read_json(f"{name}/scheduler_config.json"))
    device = resolve_device(args.device)
    dtype = component_dtype(name, args, device)
    model_class = resolve_model(class_name)
    if dtype is torch.float16 and model_class.overflows_float16:
        raise ValueError(f"{name} cannot be float16: values of {class_name} leave its range; take bfloat16 or float32")
    with _naming_config(repository, name) as config:
        model = build_model(model_class, config, _home(name, model_class, args), dtype)
    if _is_shared_out(model_class, args):
        from fastvideo.v1.models.sharding import shard_blocks  # FSDP takes seconds to import

        shard_blocks(model, get_replica_group(), device)
    elif model_class.block_lists and args.layer_offload:
        offload_blocks(model, device)
    if name == "transformer_2" and args.lora_path:
        tell_of_one_expert(args.lora_path)
    deltas = read_adapter(model, args.lora_path, args.lora_scale) if name == "transformer" and args.lora_path else None
    load_weights(model, repository, name, deltas, device)
    if name.startswith("transformer") and args.quantization is not None:
        model.quantize()
    select_attention_backends(model, device, dtype, args.attention_backend)
    return model


@contextmanager
def _naming_config(repository: ModelRepository, name: str) -> Iterator[dict[str, Any]]:
    """The config of component ``name``; a ``ValueError`` about it names its file."""
    file = f"{name}/config.json"
    config = repository.read_json(file)
    try:
        yield config
    except ValueError as error:
        raise ValueError(f"{repository.root}/{file}: {error}") from None


def _home(name: str, model_class: type[Model], args: FastVideoArgs) -> torch.device:
    """Where the weights of component ``name`` are made; on the meta device, to be placed block by block."""
    if _is_shared_out(model_class, args) or (model_class.block_lists and args.layer_offload):
        return torch.device("meta")
    if args.expert_offload and name == "transformer_2":
        return torch.device("cpu")
    return resolve_device(args.device)


def _is_shared_out(model_class: type[Model], args: FastVideoArgs) -> bool:
    return args.shard_weights and (bool(model_class.block_lists) or issubclass(model_class, VideoAutoencoder))


def build_model(model_class: type[Model], config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Model:
    """A model with uninitialised weights in ``dtype`` on ``device``; its ``float32_modules`` stay in float32."""
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(config))

    def empty(name: str, parameter: nn.Parameter) -> torch.Tensor:
        kept = any(part in model.float32_modules for part in name.split("."))
        # Not empty_like: of a meta tensor it works out the strides in Python, and imports sympy for it.
        kind = torch.float32 if kept else dtype
        return torch.empty_strided(parameter.shape, parameter.stride(), dtype=kind, device=device)

    model.place_parameters(empty)
    model.dtype = dtype
    return model.eval()


def load_tokenizer(repository: ModelRepository, name: str) -> Any:
    """The tokenizer in folder ``name``."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    files = repository.files(name)
    if not files:
        raise ValueError(f"{repository.root}/{name} is missing: the component named in model_index.json has no folder")
    config = f"{name}/tokenizer_config.json"
    kind = repository.read_json(config).get("tokenizer_class", "")
    if not isinstance(kind, str):
        raise ValueError(f"{repository.root}/{config}: tokenizer_class={kind!r} must be the name of a class")
    # transformers 5 rebuilds a Llama tokenizer as SentencePiece and so changes its tokens: the file is the truth.
    generic = "tokenizer.json" in files and kind.startswith(("Llama", "PreTrained", "TokenizersBackend"))
    tokenizer_class = PreTrainedTokenizerFast if generic else AutoTokenizer
    with repository.local(*(f"{name}/{file}" for file in files)) as paths:
        return tokenizer_class.from_pretrained(str(paths[0].parent), local_files_only=True, trust_remote_code=False)


def load_image_processor(repository: ModelRepository, name: str) -> Any:
    """CLIP's image preprocessing as folder ``name`` configures it: resize, crop and normalise, in Pillow.

    transformers also has it in torchvision, with other pixels; results shall not hang on what is installed.
    """
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_dict(repository.read_json(f"{name}/preprocessor_config.json"))
