"""Verification: whatever is done to a data set is found, named and, if asked, made good by the next run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastvideo.v1.dataset.keeping.object_check import Kind
from fastvideo.v1.dataset.keeping.verify import Verification, verify
from fastvideo.v1.dataset.layout import input_path, latents_path, object_path, video_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

PROMPTS = [f'{{"prompt": "p{number}"}}' for number in range(4)]


@pytest.fixture
def run(make_config, make_whole) -> Run:
    whole = make_whole(make_config(*PROMPTS))
    publish(whole)
    return whole


def check(run: Run, **settings) -> Verification:
    return verify(run.output, [run], list_runs(run.output), **settings)


def named(found: Verification) -> dict[Kind, set[str]]:
    return {kind: {finding.path for finding in found.findings if finding.kind == kind} for kind in found.counts}


def change(run: Run, path: str, how: Callable[[bytearray], object]) -> str:
    file = Path(run.objects.uri(path))
    data = bytearray(file.read_bytes())
    how(data)
    file.write_bytes(data)
    return path


def flip(data: bytearray) -> None:
    data[-7] ^= 1


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def test_a_whole_data_set_is_whole(run: Run) -> None:
    seen = []
    found = check(run, progress=lambda objects, size: seen.append((objects, size)))
    assert (found.num_objects, found.counts) == (5 + 4 + 4, {})
    assert seen[-1] == (found.num_objects, found.num_bytes)
    assert not found.is_damaged and not found.has_gaps


def test_damage_and_gaps_are_found_and_a_run_makes_them_good(run: Run, make_config, make_whole) -> None:
    first, second, third, fourth = (sample.id for sample in run.iter_samples())
    text = next(iter(run.iter_batches(["input_id"])))["input_id"][0].as_py()
    damaged = {
        change(run, latents_path(run.keys[Phase.DENOISE], first), flip),  # its video exists
        change(run, video_path(run.keys[Phase.DECODE], second), flip),
        change(run, input_path(run.keys[Phase.ENCODE], text), cut),
    }
    gone = {latents_path(run.keys[Phase.DENOISE], third), video_path(run.keys[Phase.DECODE], fourth)}
    for path in gone:
        run.objects.delete(path)
    found = check(run)
    assert named(found) == {Kind.DAMAGED: damaged, Kind.BROKEN: gone}
    assert found.is_damaged and found.has_gaps and found.num_put_aside == 0
    assert all(run.objects.exists(path) for path in damaged), "nothing is touched unless asked"

    repaired = check(run, repair=True)
    assert repaired.num_put_aside == 3 and not repaired.is_damaged and repaired.has_gaps
    assert len(run.objects.list("damaged")) == 3
    assert named(check(run)) == {Kind.BROKEN: damaged | gone}
    make_whole(make_config(*PROMPTS))
    assert check(run).counts == {}


def test_a_video_of_another_length_than_its_sample_asks_for_is_damaged(run: Run, make_object) -> None:
    sample = next(run.iter_samples())
    path = video_path(run.keys[Phase.DECODE], sample.id)
    run.objects.delete(path)
    shorter = replace(run, sampling=replace(run.sampling, num_frames=5))
    make_object(shorter, Phase.DECODE, sample.id)
    for info in run.output.list(f"runs/{run.name}/ledger/decode"):
        run.output.delete(info.path)
    (finding,) = (finding for finding in check(run).findings if finding.kind == Kind.DAMAGED)
    assert finding.path == path and finding.reason == "num_frames=5, and its sample asks for 17"


def test_what_harms_nobody_is_told_apart(run: Run, make_config, make_whole, make_object) -> None:
    _, denoise, decode = (run.keys[phase] for phase in ALL_PHASES)
    orphan, nobodys = object_path(Phase.DENOISE, denoise, "f" * 32), "e" * 16
    run.objects.create(orphan, b"anything")
    run.objects.create(object_path(Phase.DECODE, nobodys, "f" * 32), b"of a run that is gone")
    other = make_whole(make_config(*PROMPTS, video={"crf": 30}))  # shares all but its videos
    new = plan_run(make_config(*PROMPTS, '{"prompt": "new"}')).run
    unindexed = [sample.id for sample in new.iter_samples()][-1]
    make_object(run, Phase.DENOISE, unindexed)
    assert named(check(run)) == {
        Kind.UNINDEXED: {latents_path(denoise, unindexed)},
        Kind.ORPHAN: {orphan},
    }
    runs = list_runs(run.output)
    found = verify(run.output, runs, runs)
    assert named(found)[Kind.ORPHAN] == {orphan, f"decode/{nobodys}"}
    assert found.num_objects == 5 + 5 + 4 + 4 and other.keys[Phase.DECODE] != decode
    assert not found.is_damaged and not found.has_gaps


def test_a_ledger_row_without_object_is_a_gap(make_config, make_whole) -> None:
    run = make_whole(make_config(*PROMPTS))  # never published
    lost = latents_path(run.keys[Phase.DENOISE], next(run.iter_samples()).id)
    run.objects.delete(lost)
    found = check(run)
    assert named(found) == {Kind.LOST: {lost}} and found.has_gaps


def test_a_store_of_its_own_is_not_searched_for_orphans(make_config, make_whole, tmp_path: Path) -> None:
    run = make_whole(make_config(*PROMPTS, store=str(tmp_path / "store")))
    publish(run)
    run.objects.create(object_path(Phase.DECODE, run.keys[Phase.DECODE], "f" * 32), b"another output's")
    assert check(run).counts == {}
    cut_file = change(run, video_path(run.keys[Phase.DECODE], next(run.iter_samples()).id), cut)
    assert named(check(run)) == {Kind.DAMAGED: {cut_file}}


@pytest.mark.parametrize("s3", ["moto"], indirect=True)
def test_a_data_set_on_s3(make_config, make_whole, s3_store: Store) -> None:
    run = make_whole(replace(make_config(*PROMPTS), output=s3_store.uri("")))
    publish(run)
    path = latents_path(run.keys[Phase.DENOISE], next(run.iter_samples()).id)
    data = bytearray(run.objects.read(path))
    flip(data)
    run.objects.overwrite(path, bytes(data))
    found = check(run, repair=True)
    assert named(found) == {Kind.DAMAGED: {path}} and found.num_objects == 13
    assert not run.objects.exists(path)
