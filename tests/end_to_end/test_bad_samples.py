"""What a user sees of bad rows and bad samples."""

import json
from pathlib import Path

from tests.end_to_end.commands import FastVideo

ROWS = [
    '{"prompt": "a red ball"}',
    '{"prompt": " "}',
    '{"prompt": "b", "guidance": 1e38}',
    '{"prompt": "c", "height": 63}',
]


def test_bad_rows_and_samples_stay_alone(fastvideo: FastVideo, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", str(tmp_path / "output")
    prompts.write_text("\n".join(ROWS))
    small = ["--sampling.num_inference_steps", "4", "--sampling.num_frames", "5"]
    ended = fastvideo("dataset", "run", "--prompts", prompts, "--output", output, "--json", *small, expect=2)
    summary = json.loads(ended.stdout)
    assert f"{prompts}:2: empty prompt" in ended.stderr and f"{prompts}:4: height=63 must be" in ended.stderr
    assert "denoising gave NaN" in ended.stderr
    assert (summary["rejected"], summary["published"]["num_rows"], summary["failed_shards"]) == (2, 1, [])
