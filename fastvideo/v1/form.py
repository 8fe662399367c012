"""How a config reads as a form: titles, and optional values as plain fields. Prefect's UI draws what this describes."""

import os
from typing import Any

_WORDS = {
    "vae": "VAE",
    "lora": "LoRA",
    "gpu": "GPU",
    "gpus": "GPUs",
    "crf": "CRF",
    "fps": "FPS",
    "tp": "tensor-parallel",
    "sp": "sequence-parallel",
    "cfg": "guidance-parallel",
    "num": "number of",
}


def form(title: str, description: str) -> dict[str, Any]:
    """The ``__pydantic_config__`` of a dataclass that people fill in; a key that it does not have is refused."""

    def polish(schema: dict[str, Any]) -> None:
        schema["description"] = description
        for field in schema["properties"].values():
            _polish(field)

    return {
        "extra": "forbid",
        "title": title,
        "field_title_generator": lambda name, _: _title(name),
        "json_schema_extra": polish,
    }


def _polish(field: dict[str, Any]) -> None:
    """An optional value is a field that may stay empty, not a choice between a value and null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del field["anyOf"]
        field |= kinds[0]
    if "const" in field:
        field["enum"] = [field.pop("const")]
    default = field.get("default")
    if default is None or isinstance(default, dict) or os.path.isabs(str(default)):
        field.pop("default", None)  # nothing, a section's own, or a path that only this host may have


def _title(name: str) -> str:
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]
