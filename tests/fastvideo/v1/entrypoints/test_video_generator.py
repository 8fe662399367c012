"""What the generator says before it works."""

from dataclasses import replace

import pytest
import torch

from fastvideo import SamplingParams, VideoGenerator


@pytest.mark.parametrize(
    ("prompt", "output_path", "message"),
    [
        ("a cat", "/nowhere/cat.mp4", r"output_path='/nowhere/cat.mp4' lies in '/nowhere', which is no folder"),
        ("a \ud83d cat", None, r"prompt is not UTF-8: '\\ud83d' at 2 is no character by itself"),
        (7, None, "prompt must be text, not int"),
    ],
)
def test_a_request_that_must_fail_does_so_before_the_model_is_asked(prompt, output_path, message):
    with pytest.raises(ValueError, match=message):
        VideoGenerator(executor=None).generate_video(prompt, output_path)


class BlackExecutor:
    """A model that draws nothing."""

    def collective_rpc(self, method: str) -> list[SamplingParams]:
        return [SamplingParams(guidance_scale=5.0)]

    def execute_forward(self, batch, context):
        return replace(batch, frames=torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("sampling", "is_told"),
    [({}, False), ({"guidance_scale": 1.0}, True), ({"guidance_mode": "embedded"}, True)],
)
def test_a_negative_prompt_that_is_not_used_is_told(sampling, is_told, caplog):
    VideoGenerator(BlackExecutor()).generate_video("a cat", negative_prompt="gray", **sampling)
    assert [message.partition(":")[0] for message in caplog.messages] == ["negative_prompt is not used"] * is_told
    caplog.clear()
    VideoGenerator(BlackExecutor()).generate_video("a cat", **sampling)
    assert caplog.messages == []
