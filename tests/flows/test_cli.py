"""The command line as a person meets it: one line for a mistake, exit codes that a script can use."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from flows.cli import run
from flows.dataset_commands import parse_keys
from flows.generate_dataset import generate_dataset
from tests.s3_servers import BUCKET, use_server

pytestmark = pytest.mark.xdist_group("prefect")  # one Prefect server for all flows
ROOT = Path(__file__).parents[2]


def test_help_is_quick():
    """It imports nothing that takes seconds."""
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli", "--help"]
    answer = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "prefect", "pyarrow", "diffusers", "transformers"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("dataset", "the following arguments are required: COMMAND"),
        ("dataset run --output o", "the config needs a value for 'prompts'"),
        ("dataset run --prompts shapes", "the config needs a value for 'output'"),
        ("dataset run --prompts p --output o --shard_sise 4", "did you mean 'shard_size'?"),
        ("dataset run --prompts p --output o --jobs none", "jobs='none': input should be a valid integer"),
        ("dataset run --prompts p --output o --jobs", "--jobs needs a value"),
        ("dataset run --prompts p --output o extra", "'extra' belongs to no option"),
        ("dataset plan --prompts nowhere.txt --output o", "nowhere.txt"),
        ("dataset plan --prompts p --output o --config nowhere.yaml", "'nowhere.yaml' does not exist"),
        ("dataset plan --prompts p --output o --price -3", "--price: '-3' must be a number of at least 0"),
        ("dataset plan --prompts p --output o --price nan", "--price: 'nan' must be a number of at least 0"),
        ("dataset plan --prompts p --output o --price much", "--price: 'much' must be a number of at least 0"),
        ("dataset status --output o --watch -3", "--watch: '-3' must be a number of at least 0.1"),
        ("dataset status --output o --watch 0", "--watch: '0' must be a number of at least 0.1"),
        ("dataset gc --output o --older-than -1", "--older-than: '-1' must be a number of at least 0"),
        ("dataset gc --output o --older-than nan", "--older-than: 'nan' must be a number of at least 0"),
        ("dataset reproduce i --output o --psnr nan", "--psnr: 'nan' must be a number of at least 0"),
        ("dataset status", "the following arguments are required: --output"),
        ("dataset status --output nowhere --jobs 2", "unrecognized arguments: --jobs 2"),
        ("dataset status --output nowhere", "holds no run yet"),
        ("dataset publish --output nowhere", "holds no run yet"),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, tmp_path, line, message):
    monkeypatch.chdir(tmp_path)
    assert run(line.split()) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.parametrize("error", [StoreUnavailable("the store is unavailable"), ConnectionError("nobody answers")])
def test_an_outage_is_told_from_a_mistake(capsys, monkeypatch, error):
    monkeypatch.setattr("fastvideo.v1.dataset.runs.run.open_run", Mock(side_effect=error))
    assert run(["dataset", "reproduce", "abc", "--output", "anywhere"]) == 75
    assert capsys.readouterr().err == f"fastvideo: error: {error}\n"


@pytest.mark.usefixtures("prefect_harness")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{folder}/file/output"], "choose a writable place"),
        (["--output", "/proc/output"], "choose a writable place"),
        (["--output", "{folder}/output", "--model", "{folder}/no-model"], "no-model"),
        (["--output", "{folder}/output", "--pools.wave", "run-wave/nosuch"], "it has none of run-wave"),
        (["--output", "{folder}/output", "--pools.wave", "nosuch"], "pools.wave='nosuch' is no deployment on the Pr"),
        (["--output", "{folder}/output", "--gpu_limit", "nosuch"], "`prefect gcl create nosuch --limit"),
    ],
)
def test_a_mistake_that_the_flow_finds_is_one_line(capfd, tmp_path, arguments, message):
    (tmp_path / "file").write_text("not a folder")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert run(["dataset", "run", "--prompts", "shapes", *given]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not list(tmp_path.glob("output/runs/*")), "nothing was planned"


@pytest.mark.usefixtures("prefect_harness")
@pytest.mark.parametrize(
    ("secret", "bucket", "message"),
    [("wrong-secret", BUCKET, "access refused"), ("right-secret", "no-such-bucket", "the bucket does not exist")],
)
def test_what_a_server_refuses_is_one_line_without_its_secrets(
    capfd, monkeypatch, seaweed, tmp_path, secret, bucket, message
):
    use_server(monkeypatch, seaweed)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert run(["dataset", "run", "--prompts", "shapes", "--output", f"s3://{bucket}/{tmp_path.name}"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert "secret" not in err.lower().replace("aws_secret_access_key", "")


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        ("run", "0 all done, 2 samples failed, 3 samples missing, 1 a mistake, 75 a store or server is away"),
        ("plan", "exit codes: 0 planned, whatever is missing, 1 a mistake"),
        ("verify", "130 interrupted (Ctrl-C), 4 damaged objects"),
    ],
)
def test_help_tells_the_exit_codes(capsys, command, codes):
    with pytest.raises(SystemExit):
        run(["dataset", command, "--help"])
    assert codes in " ".join(capsys.readouterr().out.split())


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="holds no run"):
        run(["dataset", "status", "--output", "/nowhere", "--debug"])


def test_keys_come_in_both_spellings():
    parsed = parse_keys(["--jobs=2", "--sampling.negative_prompt", "-- a = b", "--video.crf", "3"])
    assert parsed == {"jobs": "2", "sampling.negative_prompt": "-- a = b", "video.crf": "3"}


def test_plan_counts_and_changes_nothing(capsys, tmp_path, write_prompts):
    line = ["dataset", "plan", "--prompts", write_prompts(5), "--output", str(tmp_path / "out"), "--json"]
    assert run([*line, "--repeats", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["samples"], plan["new"], plan["rejected"]) == (10, 10, 0)
    assert {phase: counts["missing"] for phase, counts in plan["phases"].items()} == {
        "encode": 6,
        "denoise": 10,
        "decode": 10,
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prefect_harness")
def test_status_and_publish_tell_by_exit_code(capsys, tmp_path, jobs, write_prompts):
    output = str(tmp_path / "out")
    config = RunConfig(prompts=write_prompts(3), output=output)
    generate_dataset(config)
    capsys.readouterr()
    assert run(["dataset", "status", "--output", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phases"]["decode"]["done"] == 3
    assert run(["dataset", "publish", "--output", output]) == 0
    assert "3 videos in" in capsys.readouterr().out
    next((tmp_path / "out" / "decode").rglob("*.mp4")).unlink()
    assert run(["dataset", "status", "--output", output]) == 3
    assert "2 of 3 done, 1 missing" in capsys.readouterr().out
    jobs.bad_ids = {path.stem for path in (tmp_path / "out" / "denoise").rglob("*.safetensors")}
    assert generate_dataset(config)["exit_code"] == 2
    assert run(["dataset", "status", "--output", output]) == 2
