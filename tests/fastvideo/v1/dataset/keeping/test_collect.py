"""Garbage collection: all that serves nobody goes, and nothing that anybody needs."""

import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.keeping import collect
from fastvideo.v1.dataset.keeping.collect import Collected, collect_garbage
from fastvideo.v1.dataset.layout import (
    input_path,
    latents_path,
    object_path,
    run_path,
    samples_dir,
    step_path,
    video_path,
)
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

PROMPTS = [f'{{"prompt": "p{number}"}}' for number in range(3)]


def files(store: Store) -> set[str]:
    return {info.path for info in (*store.list(""), *store.list_temporary())}


def collected(*outputs: Store, **settings) -> Collected:
    return collect_garbage(outputs, **{"min_age_hours": 0.0, "delete": True} | settings)


def leave_garbage(run: Run) -> set[str]:
    """Everything that a run's killed processes and predecessors may leave; returns the paths."""
    encode, denoise, decode = (run.keys[phase] for phase in ALL_PHASES)
    done = next(run.iter_samples()).id
    left = {
        input_path(encode, "f" * 32),
        object_path(Phase.DECODE, decode, "f" * 32),
        object_path(Phase.DENOISE, "0" * 16, done),
        step_path("0" * 16, done),
        step_path(denoise, done),
        step_path(denoise, "e" * 32),
        f"images/ab/{'ab' * 32}",
        "damaged/decode/x/00/y.mp4.12345678",
        ".probe/1234",
        "runs/broken/samples/part-000000.parquet",
        "decode/aa/.tmp-1234",
    }
    for path in left:
        run.output.overwrite(path, b"12345")
    return left


def test_garbage_goes_and_all_else_stays(make_config, make_whole) -> None:
    run = make_whole(make_config(*PROMPTS))
    publish(run)
    more = make_config(*PROMPTS, '{"prompt": "unfinished"}', video={"crf": 30})
    newer = plan_run(more).run
    under_way = step_path(run.keys[Phase.DENOISE], [sample.id for sample in newer.iter_samples()][-1])
    run.output.overwrite(under_way, b"half way")
    run.output.create("decode/notes.txt", b"a name that is none of ours")
    kept = files(run.output)
    left = leave_garbage(run)
    dry = collected(run.output, delete=False)
    assert files(run.output) == kept | left and not dry.deleted
    gone = collected(run.output)
    assert files(run.output) == kept
    assert gone.files == dry.files and sum(gone.files.values()) == len(left)
    assert sum(gone.bytes.values()) == 5 * len(left)
    assert collected(run.output).files == {}


def test_what_is_young_stays(make_config, make_whole) -> None:
    run = make_whole(make_config(*PROMPTS))
    left = leave_garbage(run)
    shutil.rmtree(Path(run.output.uri("runs/broken")))
    before = files(run.output)
    assert collected(run.output, min_age_hours=1).files == {}
    for path in left - {"runs/broken/samples/part-000000.parquet"}:
        two_hours_ago = time.time() - 7200
        os.utime(run.output.uri(path), (two_hours_ago, two_hours_ago))
    assert sum(collected(run.output, min_age_hours=1).files.values()) == len(left) - 1
    assert files(run.output) == before - left


def test_a_dropped_run_goes_with_what_it_alone_needs(make_config, make_whole) -> None:
    old = make_whole(make_config(*PROMPTS, video={"crf": 40}))
    third = [sample.id for sample in old.iter_samples()][-1]
    new = make_whole(make_config(*PROMPTS[:2]))
    publish(new)
    with pytest.raises(ValueError, match="run 'nobody' is not there to be dropped"):
        collected(new.output, drop=["nobody"])
    collected(new.output, drop=[old.name])
    assert new.output.folders("runs") == [new.name]
    assert not new.output.folders(f"decode/{old.keys[Phase.DECODE]}")
    assert [part.missing for part in scan(new).values()] == [0, 0, 0]
    assert not new.output.exists(latents_path(new.keys[Phase.DENOISE], third))


def test_a_run_of_a_name_that_two_outputs_have_is_dropped_from_one(make_config, make_whole, tmp_path: Path) -> None:
    """Their prompts differ, and no prompt is in a run's name."""
    cats, dogs = (
        make_whole(replace(make_config(f'{{"prompt": "{name}"}}', store=str(tmp_path / "store")), output=output))
        for name, output in (("cat", str(tmp_path / "cats")), ("dog", str(tmp_path / "dogs")))
    )
    assert cats.name == dogs.name
    both = [cats.output, dogs.output]
    with pytest.raises(ValueError, match=f"more than once; say which: .*cats/runs/{cats.name} and .*dogs/runs/"):
        collected(*both, drop=[cats.name])
    collected(*both, drop=[dogs.output.uri(f"runs/{dogs.name}")])
    assert not dogs.output.folders("runs") and [part.missing for part in scan(cats).values()] == [0, 0, 0]


def test_a_drop_that_was_broken_off_goes_on(make_config, make_whole) -> None:
    old = make_whole(make_config(*PROMPTS, video={"crf": 40}))
    new = make_whole(make_config(*PROMPTS))
    old.output.delete(run_path(old.name))  # the record goes first
    collected(new.output, drop=[old.name], min_age_hours=1)
    assert new.output.folders("runs") == [new.name]


def test_what_a_published_table_names_stays_without_its_run(make_config, make_whole) -> None:
    old = make_whole(make_config(*PROMPTS, video={"crf": 40}))
    publish(old)
    make_whole(make_config(*PROMPTS[:1]))
    collected(old.output, drop=[old.name])
    assert len(old.output.list("decode")) == 3 + 1
    assert len(old.output.list("denoise")) == 3


def test_shards_of_a_broken_wave_go_once_the_run_is_silent(make_config, make_whole) -> None:
    config = make_config(*PROMPTS)
    plan = plan_run(config)
    shards = write_shards(plan.run, plan.scan, config, 0)
    for shard in shards:
        os.utime(plan.run.output.uri(shard.path), (0, 0))
    make_whole(config)  # by whoever works on that wave
    assert collected(plan.run.output, min_age_hours=1).files == {}
    gone = collected(plan.run.output)
    assert gone.files == {"shards of waves that were broken off": len(shards)}


def test_a_run_that_is_planned_meanwhile_stops_it(make_config, make_whole, monkeypatch) -> None:
    config = make_config(*PROMPTS)
    run = make_whole(config)
    left = leave_garbage(run)
    monkeypatch.setattr(collect, "_BATCH", 4)
    deletions = []

    def delete_and_plan(batch):
        deletions.append(len(batch))
        plan_run(make_config(*PROMPTS, '{"prompt": "new"}'))

    monkeypatch.setattr(collect, "_delete", delete_and_plan)
    stopped = collected(run.output)
    assert not stopped.is_whole and deletions == [4] and sum(stopped.files.values()) == 4 < len(left)
    run.output.overwrite("runs/planned/samples/part-000000.parquet", b"")
    with pytest.raises(ValueError, match=r"run \w+ in .* is being planned"):
        collected(run.output, min_age_hours=1)


def test_an_output_that_comes_to_the_store_meanwhile_stops_it(make_config, make_whole, tmp_path, monkeypatch) -> None:
    one, two = (replace(make_config(*PROMPTS, store=str(tmp_path / "store")), output=str(tmp_path / n)) for n in "ab")
    run = make_whole(one)
    for number in range(8):
        run.objects.create(video_path(run.keys[Phase.DECODE], f"{number:032x}"), b"")
    monkeypatch.setattr(collect, "_BATCH", 4)
    deletions = []
    monkeypatch.setattr(collect, "_delete", lambda batch: (deletions.append(len(batch)), plan_run(two)))
    assert not collected(run.output).is_whole and deletions == [4]


def test_a_shared_store_is_touched_only_with_all_of_its_outputs(make_config, make_whole, tmp_path: Path) -> None:
    configs = [
        replace(make_config(*PROMPTS, store=str(tmp_path / "store"), video={"crf": crf}), output=str(tmp_path / name))
        for name, crf in (("one", 18), ("two", 30))
    ]
    one, two = (make_whole(config) for config in configs)
    garbage = video_path(one.keys[Phase.DECODE], "f" * 32)
    one.objects.create(garbage, b"")
    with pytest.raises(ValueError, match=f"also holds the objects of {two.output.uri('')}"):
        collected(one.output)
    before = files(one.objects)
    assert collected(one.output, two.output).files == {"objects that no run needs": 1}
    assert files(one.objects) == before - {garbage}
    shutil.rmtree(tmp_path / "store" / "used-by")
    with pytest.raises(ValueError, match="does not know yet which outputs"):
        collected(one.output)


def test_samples_that_cannot_be_read_or_are_gone_cost_no_object(make_config, make_whole, monkeypatch) -> None:
    run = make_whole(make_config(*PROMPTS))
    samples, kept = Path(run.output.uri(samples_dir(run.name))), files(run.output)
    run.output._patience = 0
    with monkeypatch.context() as patched:
        scandir = os.scandir
        patched.setattr(os, "scandir", lambda path: fail(path) if Path(path) == samples else scandir(path))
        for use in (lambda: collected(run.output), lambda: run_status(run.output)):
            with pytest.raises(StoreUnavailable, match=rf"{samples}: the store is unavailable \(Input/output error\)"):
                use()
    assert files(run.output) == kept
    samples.rename(samples.with_name("elsewhere"))
    with pytest.raises(ValueError, match=f"holds no samples, but run {run.name} has a record; put them back"):
        collected(run.output)
    assert len(files(run.output)) == len(kept)
    collected(run.output, drop=[run.name])
    assert not run.output.list("decode")


def fail(path: str) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.mark.parametrize("s3", ["moto"], indirect=True)
def test_an_output_on_s3(make_config, make_whole, s3_store: Store) -> None:
    config: RunConfig = replace(make_config(*PROMPTS[:1]), output=s3_store.uri(""))
    run = make_whole(config)
    kept = files(run.output)
    left = leave_garbage(run) - {"decode/aa/.tmp-1234"}
    run.output.delete("decode/aa/.tmp-1234")
    time.sleep(1)  # its clock tells whole seconds
    assert sum(collected(run.output).files.values()) == len(left)
    assert files(run.output) == kept
