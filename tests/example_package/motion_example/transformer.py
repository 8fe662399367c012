"""A transformer whose videos are their own mirror image."""

import torch

from fastvideo.v1.models.dits.wan import WanTransformer3DModel


class MirroredTransformer(WanTransformer3DModel):
    """Wan's weights; the prediction is the mean of that for the latents and that for their mirror image."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        flow, mirrored = (
            super(MirroredTransformer, self).forward(latents, encoder_hidden_states, timestep)
            for latents in (hidden_states, hidden_states.flip(-1))
        )
        return (flow + mirrored.flip(-1)) / 2
