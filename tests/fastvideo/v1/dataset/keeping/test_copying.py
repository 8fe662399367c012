"""Copies: resumable, checked, and not to be seen before they are whole."""

import datasets
import pytest

from fastvideo.v1.dataset.keeping.copying import copy_output
from fastvideo.v1.dataset.keeping.object_check import Kind
from fastvideo.v1.dataset.keeping.verify import verify
from fastvideo.v1.dataset.layout import latents_path, planning_path, step_path, video_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.pipelines.phase import Phase

PROMPTS = [f'{{"prompt": "p{number}"}}' for number in range(3)]


@pytest.fixture
def run(make_config, make_whole) -> Run:
    whole = make_whole(make_config(*PROMPTS))
    publish(whole)
    return whole


@pytest.fixture
def target(tmp_path) -> Store:
    return Store(str(tmp_path / "copy"))


def contents(store: Store) -> dict[str, bytes]:
    return {info.path: store.read(info.path) for info in store.list("")}


def is_verified(output: Store) -> bool:
    runs = list_runs(output)
    return verify(output, runs, runs).counts == {}


def test_a_copy_is_the_same_data_set_and_goes_on_with_what_is_new(run, target, make_config, make_whole, tmp_path):
    there = contents(run.output)
    run.output.create(step_path(run.keys[Phase.DENOISE], "e" * 32), b"half way")
    run.output.create("damaged/x", b"")
    run.output.create(planning_path(run.name, "abc"), b"")  # somebody looks for images, here and not in the copy
    report = copy_output(run.output, target)
    assert report.is_whole and (report.num_objects, report.num_there) == (4 + 3 + 3, 0)
    assert contents(target) == there
    assert len(datasets.load_dataset(target.uri(""), split="train", cache_dir=str(tmp_path / "cache"))) == 3
    again = copy_output(run.output, target)
    assert (again.num_objects, again.num_there) == (0, 10) and contents(target) == there
    publish(make_whole(make_config(*PROMPTS, '{"prompt": "new"}')))
    more = copy_output(run.output, target)
    assert (more.num_objects, more.num_there) == (3, 10)
    assert is_verified(target) and {**contents(run.output), **contents(target)} == contents(run.output)


def test_a_copy_that_is_cut_off_shows_no_run_and_goes_on(run, target, monkeypatch):
    whole = Store.create

    def create(self, path, data):
        if self is target and len(contents(target)) >= 5:
            raise OSError("the network is gone")
        return whole(self, path, data)

    monkeypatch.setattr(Store, "create", create)
    with pytest.raises(OSError, match="the network is gone"):
        copy_output(run.output, target)
    monkeypatch.undo()
    num_there = len(contents(target))
    assert 5 <= num_there < 10 and list_runs(target) == []
    report = copy_output(run.output, target)
    assert (report.num_there, report.num_objects) == (num_there, 10 - num_there)
    assert contents(target) == contents(run.output)


def test_damage_is_not_copied_and_keeps_the_copy_from_being_seen(run, target, make_config, make_whole):
    first, second, _ = (sample.id for sample in run.iter_samples())
    damaged, gone = latents_path(run.keys[Phase.DENOISE], first), video_path(run.keys[Phase.DECODE], second)
    run.output.overwrite(damaged, run.output.read(damaged)[:-3])
    run.output.delete(gone)
    report = copy_output(run.output, target)
    assert {(finding.kind, finding.path) for finding in report.problems} == {
        (Kind.DAMAGED, damaged),
        (Kind.BROKEN, gone),
    }
    assert report.num_objects == 8 and list_runs(target) == [] and not target.list("data")
    run.output.set_aside(damaged)
    make_whole(make_config(*PROMPTS))
    assert copy_output(run.output, target).is_whole and is_verified(target)


def test_a_copy_holds_the_objects_of_a_store_apart_itself(make_config, make_whole, target, tmp_path):
    apart = make_whole(make_config(*PROMPTS, store=str(tmp_path / "store")))
    publish(apart)
    copy_output(apart.output, target)
    (copied,) = list_runs(target)
    assert copied.store_uri is None and [part.missing for part in scan(copied).values()] == [0, 0, 0]
    assert is_verified(target)
    row = datasets.load_dataset(target.uri(""), split="train", cache_dir=str(tmp_path / "cache"))[0]
    assert row["video_path"].startswith("decode/") and row["image_path"] is None


def test_a_target_of_others_is_left_alone(run, target):
    path = latents_path(run.keys[Phase.DENOISE], next(run.iter_samples()).id)
    target.create(path, b"something else")
    with pytest.raises(ValueError, match="is there with 14 bytes"):
        copy_output(run.output, target)
    assert contents(target)[path] == b"something else" and list_runs(target) == []
    with pytest.raises(ValueError, match="is the data set itself"):
        copy_output(run.output, run.output)


def test_to_s3_and_back(run, s3_store: Store, target):
    copy_output(run.output, s3_store)
    assert contents(s3_store) == contents(run.output)
    copy_output(s3_store, target)
    assert contents(target) == contents(run.output)
