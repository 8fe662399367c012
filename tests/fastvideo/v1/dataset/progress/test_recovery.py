"""Objects that a run's ledger does not tell of: those of other runs are known, others are read."""

import json

import pytest
import torch

from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.state_file import pack_state
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.recovery import Recovery, index_recovered
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.pipelines.phase import Phase
from tests.fastvideo.v1.dataset.run_contents import ids, prompts

PROMPTS = [json.dumps({"prompt": f"p{number}"}) for number in range(4)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of objects as they are read."""
    paths: list[str] = []
    read = Store.read

    def note(self: Store, path: str) -> bytes:
        if path.startswith(tuple(Phase)):
            paths.append(path)
        return read(self, path)

    monkeypatch.setattr(Store, "read", note)
    return paths


def test_what_another_run_tells_of_shared_objects_is_taken_over_unread(make_config, make_whole, reads):
    old = make_whole(make_config(*PROMPTS))
    new = plan_run(make_config(*PROMPTS, repeats=2)).run
    assert new.name != old.name and new.keys == old.keys
    assert index_recovered(new, scan(new)) == Recovery(indexed=5 + 4 + 4, damaged=0) and reads == []
    for phase in Phase:
        assert read_ledger(new, phase).equals(read_ledger(old, phase)), "seconds, device and all"
    assert index_recovered(new, scan(new)) == Recovery(indexed=0, damaged=0)


def test_an_object_of_another_size_than_was_told_is_read(make_config, make_whole, reads):
    old = make_whole(make_config(*PROMPTS))
    key, id = old.keys[Phase.DENOISE], next(old.iter_samples()).id
    changed = object_path(Phase.DENOISE, key, id)
    data = pack_state({"x": torch.ones(400)}, {"id": id})
    old.objects.overwrite(changed, data)
    new = plan_run(make_config(*PROMPTS, video={"crf": 30})).run
    assert index_recovered(new, scan(new)) == Recovery(indexed=5 + 4, damaged=0) and reads == [changed]
    row = {row["id"]: row for row in read_ledger(new, Phase.DENOISE).to_pylist()}[id]
    assert (row["bytes"], row["seconds"], row["attempt"]) == (len(data), None, "recovered")


def test_objects_of_a_killed_process_are_verified_and_indexed(make_config, make_object) -> None:
    run = plan_run(make_config(*prompts(3))).run
    first, second, third = ids(run)
    whole = make_object(run, Phase.DENOISE, first)
    make_object(run, Phase.DECODE, first)
    damaged = bytearray(make_object(run, Phase.DENOISE, second))
    damaged[-1] ^= 1
    run.objects.overwrite(object_path(Phase.DENOISE, run.keys[Phase.DENOISE], second), bytes(damaged))
    run.objects.create(object_path(Phase.DECODE, run.keys[Phase.DECODE], third), b"no video")
    assert index_recovered(run, scan(run)) == Recovery(indexed=2, damaged=2)
    found = scan(run)
    assert all(not len(part.unindexed) for part in found.values())
    assert found[Phase.DENOISE].done == 1 and found[Phase.DECODE].done == 1
    (row,) = read_ledger(run, Phase.DENOISE).to_pylist()
    assert (row["id"], row["bytes"], row["seconds"]) == (first, len(whole), None)
    (video,) = read_ledger(run, Phase.DECODE).to_pylist()
    assert video["metrics"]["motion"] == 0
    assert len(run.objects.list("damaged")) == 2
    assert index_recovered(run, found) == Recovery(indexed=0, damaged=0)


def test_an_object_that_another_run_put_aside_meanwhile_is_missing(make_config, make_object) -> None:
    run = plan_run(make_config(*prompts(2))).run
    first, second = ids(run)
    for id in (first, second):
        make_object(run, Phase.DENOISE, id)
    seen = scan(run)
    run.objects.set_aside(object_path(Phase.DENOISE, run.keys[Phase.DENOISE], first))
    assert index_recovered(run, seen) == Recovery(indexed=1, damaged=1)
    assert scan(run)[Phase.DENOISE].missing_ids.to_pylist() == [first]
