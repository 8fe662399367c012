"""The import paths that users' scripts lean on."""

import subprocess
import sys
from importlib import import_module

import pytest

NAMES = {
    "fastvideo": ["VideoGenerator", "FastVideoArgs", "SamplingParams"],
    "fastvideo.v1.pipelines.pipeline_batch_info": ["ForwardBatch"],
    "fastvideo.v1.pipelines.composed_pipeline_base": ["ComposedPipelineBase"],
    "fastvideo.v1.pipelines.stages": [
        "PipelineStage",
        "InputValidationStage",
        "TextEncodingStage",
        "CLIPTextEncodingStage",
        "ImageEncodingStage",
        "TimestepPreparationStage",
        "LatentPreparationStage",
        "DenoisingStage",
        "DecodingStage",
    ],
    "fastvideo.v1.models.dits": [],
    "fastvideo.v1.models.vaes": [],
    "fastvideo.v1.models.encoders": [],
    "fastvideo.v1.models.schedulers": [],
    "fastvideo.v1.attention": ["LocalAttention", "DistributedAttention", "_Backend"],
    "fastvideo.v1.layers.linear": ["ColumnParallelLinear", "RowParallelLinear"],
    "fastvideo.v1.layers.vocab_parallel_embedding": ["VocabParallelEmbedding"],
    "fastvideo.v1.forward_context": ["get_forward_context", "set_forward_context"],
    "fastvideo.v1.fastvideo_args": ["FastVideoArgs"],
    "fastvideo.v1.worker": ["Executor", "GPUWorker", "MultiProcExecutor"],
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_can_be_imported(module):
    loaded = import_module(module)
    assert all(hasattr(loaded, name) for name in NAMES[module])


def test_sampling_overrides_are_the_sampling_parameters():
    from dataclasses import fields

    from fastvideo.v1.sampling_params import SamplingOverrides, SamplingParams

    decided_by_the_model = {"guidance_mode"}
    names = [f.name for f in fields(SamplingParams) if f.name not in decided_by_the_model]
    assert [f.name for f in fields(SamplingOverrides)] == names


def test_an_import_of_fastvideo_loads_no_torch():
    code = "import sys, fastvideo, fastvideo.v1.worker, fastvideo.v1.dataset.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("module", ["fastvideo", "fastvideo.v1.worker"])
def test_a_name_that_does_not_exist_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module(module).nothing
