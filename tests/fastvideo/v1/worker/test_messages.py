"""What workers answer, as the process that called them reads it."""

import pickle

import torch

from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.messages import Done, pack


class OnGPU(torch.Tensor):
    """Says that it is on a GPU, of which it needs none: all that can be done with it is to copy it to the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device="cuda")

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten._to_copy.default and kwargs["device"] == torch.device("cpu")
        return args[0].values


def test_every_tensor_of_an_answer_comes_to_the_cpu():
    values = torch.randn(5)
    on_gpu = [OnGPU(value) for value in values[:, None]]
    batch = ForwardBatch(prompt=["a"], latents=on_gpu[0], prompt_embeds=on_gpu[1:3], timesteps=values)
    batch.scheduler_state = {"last": on_gpu[3]}
    batch.custom["own"] = on_gpu[4]
    read = pickle.loads(pack(Done((batch, {})))).value[0]
    tensors = [read.latents, *read.prompt_embeds, read.scheduler_state["last"], read.custom["own"]]
    assert torch.equal(torch.cat(tensors), values) and torch.equal(read.timesteps, values)
