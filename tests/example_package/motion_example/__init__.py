"""What FastVideo calls once a process; the classes are imported when they are wanted."""


def register() -> None:
    from fastvideo.v1.attention.selector import register_attention_backend
    from fastvideo.v1.models.registry import register_model
    from fastvideo.v1.pipelines.registry import register_pipeline

    register_model("MirroredTransformer", "motion_example.transformer:MirroredTransformer")
    register_attention_backend("POOLED_ATTN", "motion_example.attention:PooledAttention")
    register_pipeline("MirroredPipeline", "motion_example.pipeline:MirroredPipeline")
