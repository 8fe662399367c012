"""What breaks under a run, each told in one line that says what to do."""

import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.objects import local_files
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured, StoreUnavailable, translate
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.fingerprint import check_weights, find_model
from fastvideo.v1.dataset.runs.samples import read_requests
from flows.local_server import prefect_server


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("moment", ["write", "fsync"])
def test_a_full_disk_says_so_and_keeps_no_half_object(number, moment, tmp_path, monkeypatch):
    store = Store(str(tmp_path), patience=0)
    store.create("a/whole", b"whole")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    if moment == "fsync":
        monkeypatch.setattr(local_files.os, "fsync", fail)
    else:
        (tmp_path / "large").write_bytes(b"x")
        monkeypatch.setattr("fastvideo.v1.dataset.objects.store._copy", fail)
    with pytest.raises(StoreUnavailable, match=r"the disk is full .*; make room"):
        store.create_from_file("a/half", str(tmp_path / "large")) if moment == "write" else store.create("a/half", b"")
    monkeypatch.undo()
    assert os.listdir(tmp_path / "a") == ["whole"]


def test_a_folder_that_goes_while_another_is_made_in_it_is_not_called_unwritable(tmp_path, monkeypatch):
    def go(folder, **_):
        os.rmdir(os.path.dirname(folder))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(local_files.os, "makedirs", go)
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path), patience=0).create("a/b/x", b"1")


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "RequestExpired"])
def test_a_clock_that_is_off_is_not_called_a_wrong_key(code):
    error = translate(ClientError({"Error": {"Code": code}}, "PutObject"), "s3://bucket/x")
    assert isinstance(error, StoreMisconfigured)
    assert str(error).startswith("s3://bucket/x: this host's clock") and "AWS_" not in str(error)


def test_a_refusal_without_a_reason_names_the_clock_too():
    error = translate(ClientError({"Error": {"Code": "403"}}, "HeadObject"), "s3://bucket/x")
    assert isinstance(error, StoreMisconfigured)
    assert "check AWS_ACCESS_KEY_ID" in str(error) and "this host's clock, which is at 20" in str(error)


def test_a_store_that_is_away_is_named_by_its_address_without_secrets(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:9")
    error = translate(EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), "s3://bucket/x")
    assert isinstance(error, StoreUnavailable)
    assert str(error).endswith("; see that it runs at AWS_ENDPOINT_URL=http://***@127.0.0.1:9")
    assert "AWS" not in str(translate(OSError(errno.EIO, "I/O error"), "/data/x"))


def test_the_last_count_of_requests_is_that_of_the_last_plan_whatever_the_clock(make_config, monkeypatch):
    row = '{"prompt": "a red ball"}'
    run = plan_run(make_config(row, row)).run
    an_hour_behind = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr("fastvideo.v1.dataset.plan.planning.time.time_ns", lambda: an_hour_behind)
    plan_run(make_config(row, row, row))
    assert list(read_requests(run.output, run.name).values()) == [3]


def test_a_prefect_server_that_does_not_answer_is_one_line(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr("flows.local_server._DELAYS", (0.0,))
    message = r"the Prefect server at http://\*\*\*@127.0.0.1:9/api does not answer .*; start it"
    settings = {PREFECT_API_URL: "http://me:secret@127.0.0.1:9/api"}
    with temporary_settings(settings), pytest.raises(ConnectionError, match=message), prefect_server():
        pass


def test_a_run_finds_its_model_or_says_that_it_cannot(make_config, tmp_path):
    model = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    (model / "vae" / "note.txt").write_text("another model than the embedded one")
    run = plan_run(make_config('{"prompt": "a red ball"}', model=str(model))).run
    assert find_model(run, EMBEDDED_MODEL) == str(model), "the default was not meant"
    with pytest.raises(ValueError, match=r"/vae is not what run .* was made with; name its model with --model"):
        find_model(run, str(shutil.copytree(EMBEDDED_MODEL, tmp_path / "other")))
    moved = str(model.rename(tmp_path / "moved"))
    assert find_model(run, moved) == moved
    with pytest.raises(ValueError, match=r"model' is no directory here; give a directory"):
        find_model(run, EMBEDDED_MODEL)
    own = plan_run(make_config('{"prompt": "a red ball"}')).run
    assert find_model(replace(own, model_path="/of/another/host"), EMBEDDED_MODEL) == EMBEDDED_MODEL


def test_weights_that_changed_after_the_plan_make_nothing(make_config, tiny_wan, tmp_path):
    model = Path(shutil.copytree(tiny_wan, tmp_path / "model"))
    run = plan_run(make_config('{"prompt": "a red ball"}', model=str(model), sampling={"height": 32, "width": 32})).run
    check_weights(run, str(model), ["text_encoder", "tokenizer", "transformer"])
    weights = next((model / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    check_weights(run, str(model), ["text_encoder", "tokenizer"])
    with pytest.raises(ValueError, match=r"model/transformer has changed since run .* was planned") as error:
        check_weights(run, str(model), ["transformer"])
    assert "\n" not in str(error.value)
