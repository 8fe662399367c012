"""Credentials and control characters in text of others: neither is kept or shown."""

import logging

import pytest

from fastvideo.v1.dataset.config import parse_config
from fastvideo.v1.dataset.progress.failures import read_failures, record_failure
from fastvideo.v1.dataset.sources.prompt_row import rejected
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.shown_text import printable, shown, without_secrets
from fastvideo.v1.worker.failures import classify
from flows.cli import run
from tasks.artifacts import escape

SECRET = "f1d0c0ffee5ec2e7f1d0c0ffee5ec2e7"  # fixed: the names of tests have it, and all processes must agree on them
WITH_SECRETS = [
    f"https://me:{SECRET}@host/a.png",
    f"s3://{SECRET}@bucket/a",
    f"s3://AKIA:wJal/{SECRET}/b+x@bucket/a",
    f"https://me:a/{SECRET}@x@host:9/a",
    f"https://b.s3.amazonaws.com/a.png?X-Amz-Credential={SECRET}&X-Amz-Date=1&X-Amz-Signature={SECRET}",
    f"https://b.s3.amazonaws.com/a.png?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=1",
    f"https://storage.googleapis.com/b/a?GoogleAccessId={SECRET}&X-Goog-Signature={SECRET}",
    f"https://a.blob.core.windows.net/c/a.png?sv=2024&sp=r&sig={SECRET}",
    f"https://d.cloudfront.net/a.png?Policy={SECRET}&Key-Pair-Id={SECRET}",
    f"https://host/a?page=2&access_token={SECRET}#{{}}",
    f"http://host/a?api_key={SECRET};password={SECRET}",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_no_secret_of_a_uri_is_kept_or_shown(uri, capsys):
    for text in (uri, f"before '{uri}' after", f'{{"event": "failed", "error": "{uri}"}}'):
        assert SECRET not in without_secrets(text) and "***" in without_secrets(text)
        assert len(without_secrets(text).split()) == len(text.split())
    row = rejected("p.jsonl:1", uri, f"image {uri!r} does not exist")
    assert SECRET not in f"{row.value}{row.reason}"
    init_logger("tests").warning("cannot read %s", uri)
    try:
        raise OSError(uri)
    except OSError:
        logging.getLogger("fastvideo.tests").exception("failed")
    assert run(["dataset", "status", "--output", uri]) == 1, "and no server was asked"
    shown_text = capsys.readouterr()
    assert SECRET not in shown_text.err + shown_text.out


@pytest.mark.parametrize("uri", WITH_SECRETS)
@pytest.mark.parametrize("key", ["prompts", "output", "store", "model", "engine.lora_path", "engine.step_skip_rule"])
def test_a_config_with_a_secret_in_it_is_refused(uri, key):
    with pytest.raises(ValueError, match=r"must carry no credentials|set both or neither") as error:
        parse_config(
            {"prompts": "shapes", "output": "here", key: uri}
            if "." not in key
            else {"prompts": "shapes", "output": "here"},
            {key: uri} if "." in key else None,
        )
    assert SECRET not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b/c",
        "http://host:9000/a@b",
        "hf://datasets/a/b@main/c",
        "https://host/a?id=7&page=2",
        "a prompt: x@y.z, key=value",
    ],
)
def test_what_is_no_secret_stays(uri):
    assert without_secrets(uri) == uri


def test_records_of_failures_hold_no_secret(tmp_path):
    class RunAt:
        from fastvideo.v1.dataset.objects.store import Store

        name, output = "a", Store(str(tmp_path))

    record_failure(RunAt, Phase.DENOISE, "0" * 40, WITH_SECRETS[0], f"  raise OSError('{WITH_SECRETS[2]}')", 3)
    (record,) = read_failures(RunAt, Phase.DENOISE)
    assert SECRET not in str(record) and "***" in record["error"] and "***" in record["traceback"]
    error_file = tmp_path / "error.json"
    error_file.write_text(f'{{"message": {{"message": "OSError: {WITH_SECRETS[2]}", "extraInfo": {{}}}}}}')
    assert SECRET not in classify(error_file, 1).message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b31mred", r"\x9b31mred"),
        ("back\b\b and\rover", r"back\x08\x08 and\rover"),
        ("left \u202egnp.exe", r"left \u202egnp.exe"),
        ("two\u2028lines", r"two\u2028lines"),
        ("\ud800", r"\ud800"),
        ("a\tb\nc", "a\tb\nc"),
        ("日本語 क्‍ष 👩‍🎤", "日本語 क्‍ष 👩‍🎤"),
    ],
)
def test_a_terminal_has_nothing_to_obey(text, expected):
    assert printable(text) == shown(text) == expected


def test_artifacts_show_markup_as_text():
    text = escape("<script>alert(1)</script> [x](javascript:a) `b` | c\x1b[1m\nd")
    assert not set("<>[`|\x1b\n") & set(text)
