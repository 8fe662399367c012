"""What a user sees of bad rows, bad samples and bad arguments."""

import json
from pathlib import Path

import pytest

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
    steps = ["--sampling.num_inference_steps", "4"]
    ended = fastvideo("dataset", "run", "--prompts", prompts, "--output", output, "--json", *steps, expect=2)
    summary = json.loads(ended.stdout)
    assert f"{prompts}:2: empty prompt" in ended.stderr and f"{prompts}:4: height=63 must be" in ended.stderr
    assert "denoising gave NaN" in ended.stderr
    assert (summary["rejected"], summary["published"]["num_rows"], summary["failed_shards"]) == (2, 1, [])
    again = fastvideo("dataset", "retry", "--output", output, expect=2)
    assert "denoising gave NaN" in again.stderr, "the failed sample was tried anew"
    fastvideo("dataset", "status", "--output", output, expect=2)
    next(Path(output).glob("decode/*/*/*.mp4")).unlink()
    status = fastvideo("dataset", "status", "--output", output, "--json", expect=3)
    assert json.loads(status.stdout)["phases"]["decode"]["missing"] == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--output", "{folder}/file/output"], "choose a writable place"),
        (["--model", "{folder}/no-model"], "no-model"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, fastvideo: FastVideo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    ended = fastvideo("dataset", "run", "--prompts", "shapes", "--output", tmp_path / "output", *given, expect=1)
    assert ended.stdout == "" and ended.stderr.count("\n") == 1 and words in ended.stderr
