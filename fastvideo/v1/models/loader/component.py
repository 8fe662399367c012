"""One component of a pipeline, loaded: a model on its device, a tokenizer, a scheduler."""

from typing import Any

import torch
from torch import nn

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.distributed.parallel_state import get_replica_group
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.layer_offload import offload_blocks
from fastvideo.v1.models.loader.adapter import read_adapter
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.loader.weights import load_weights
from fastvideo.v1.models.registry import resolve_model
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
    model = build_model(model_class, repository.read_json(f"{name}/config.json"), _home(name, model_class, args), dtype)
    if _is_shared_out(model_class, args):
        from fastvideo.v1.models.sharding import shard_blocks  # FSDP takes seconds to import

        shard_blocks(model, get_replica_group(), device)
    elif model_class.block_lists and args.layer_offload:
        offload_blocks(model, device)
    deltas = read_adapter(model, args.lora_path, args.lora_scale) if name == "transformer" and args.lora_path else None
    load_weights(model, repository, name, deltas, device)
    if name.startswith("transformer") and args.quantization is not None:
        model.quantize()
    select_attention_backends(model, device, dtype, args.attention_backend)
    return model


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
    kind = repository.read_json(f"{name}/tokenizer_config.json").get("tokenizer_class", "")
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
