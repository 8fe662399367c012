"""HunyuanVideo's prompts to text embeddings (arXiv 2412.03603, section 4.3; reference: diffusers
``HunyuanVideoPipeline._get_llama_prompt_embeds``).
"""

from typing import Any

import torch

from fastvideo.v1.pipelines.stages.text_batches import tokenize
from fastvideo.v1.pipelines.stages.text_encoding import TextEncodingStage

# What the language model is asked; it reads this before every prompt, and the transformer never sees it.
PROMPT_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
TEMPLATE_LENGTH = 95  # tokens before the prompt

_SKIP_LAYERS = 2  # the last layers are about the next word


class LlamaTextEncodingStage(TextEncodingStage):
    """A Llama's hidden states of a prompt within a template, two layers before the last, zero where it is padding.

    ``max_length`` counts the tokens of the prompt, without the template before it. Raises ``ValueError`` for a
    tokenizer that makes another number of tokens of the template.
    """

    version = 1

    def __init__(self, text_encoder: Any, tokenizer: Any, max_length: int = 256) -> None:
        super().__init__(text_encoder, tokenizer, max_length)
        if tokenizer is not None:  # as where the stage's phase is not built
            num_tokens = len(tokenizer(PROMPT_TEMPLATE.partition("{}")[0]).input_ids)
            if num_tokens != TEMPLATE_LENGTH:
                raise ValueError(
                    f"this tokenizer makes {num_tokens} tokens of HunyuanVideo's prompt template, not "
                    f"{TEMPLATE_LENGTH}; use the tokenizer.json that came with the model"
                )

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``[b, l, e]`` and their mask ``[b, l]`` for ``l`` the ``max_length``."""
        prompts = [PROMPT_TEMPLATE.format(text) for text in texts]
        embeds, mask = self.embed(tokenize(self.tokenizer, prompts, TEMPLATE_LENGTH + self.max_length))
        return embeds[:, TEMPLATE_LENGTH:], mask[:, TEMPLATE_LENGTH:]

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(ids, mask, skip_layers=_SKIP_LAYERS)
