"""The ledger: rows of what was made, by one attempt or several."""

from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from fastvideo.v1.dataset.layout import ledger_dir
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress import ledger as ledger_module
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter, compact_ledger, read_ledger
from fastvideo.v1.dataset.runs.samples import to_parquet
from fastvideo.v1.pipelines.phase import Phase
from tests.fastvideo.v1.dataset.run_contents import prompts


def test_the_ledger_keeps_one_row_an_id_the_one_that_tells_most(make_config) -> None:
    run = plan_run(make_config(*prompts(1))).run
    for attempt, seconds, started in (("a", 1.0, 10.0), ("b", 2.0, 20.0), ("recovered", None, 30.0)):
        with LedgerWriter(run, Phase.DECODE, attempt) as ledger:
            ledger.add(LedgerRow(id="x", bytes=1, sha256="s", started=started, seconds=seconds))
            ledger.add(LedgerRow(id=attempt, bytes=1, sha256="s", started=started, seconds=seconds))
    rows = {row["id"]: row["attempt"] for row in read_ledger(run, Phase.DECODE).to_pylist()}
    assert rows == {"x": "b", "a": "a", "b": "b", "recovered": "recovered"}
    assert read_ledger(run, Phase.ENCODE).num_rows == 0


def test_many_small_ledger_files_become_few(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SMALL_FILES", 5)
    monkeypatch.setattr(ledger_module, "_MERGED_FILES", 3)
    run = plan_run(make_config(*prompts(1))).run
    for number in range(5):
        assert compact_ledger(run, Phase.DENOISE) == 0
        with LedgerWriter(run, Phase.DENOISE, str(number)) as ledger:
            ledger.add(LedgerRow(id=f"{number}", bytes=number, sha256="s", started=1.0, seconds=2.0, metrics={}))
    before = read_ledger(run, Phase.DENOISE)
    assert compact_ledger(run, Phase.DENOISE) == 5
    assert len(run.output.list(f"runs/{run.name}/ledger/denoise")) == 2
    assert read_ledger(run, Phase.DENOISE).equals(before)


def test_metrics_that_are_measured_no_more_are_left_out(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SMALL_FILES", 2)
    run = plan_run(make_config(*prompts(1))).run
    metrics = {"mean_luminance": 0.5, "contrast": 0.25, "motion": 0.1, "black_frames": 3}
    first = LedgerRow(id="a", bytes=1, sha256="s", started=1.0, seconds=2.0, metrics=metrics | {"has_nan": False})
    older = pa.Table.from_pylist([asdict(first) | {"attempt": "a"}])  # as earlier versions wrote it
    run.output.create(f"{ledger_dir(run.name, Phase.DECODE)}/0.parquet", to_parquet(older))
    with LedgerWriter(run, Phase.DECODE) as ledger:
        ledger.add(replace(first, id="b", metrics=metrics))
    for _ in range(2):
        assert read_ledger(run, Phase.DECODE)["metrics"].to_pylist() == [metrics, metrics]
        compact_ledger(run, Phase.DECODE)
    assert len(run.output.list(ledger_dir(run.name, Phase.DECODE))) == 1


def test_a_ledger_merged_while_it_is_read_is_read_again(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SMALL_FILES", 2)
    run = plan_run(make_config(*prompts(1))).run
    for id in "ab":
        with LedgerWriter(run, Phase.DENOISE) as ledger:
            ledger.add(LedgerRow(id=id, bytes=1, sha256="s", started=1.0))
    list_now = run.output.list

    def list_then_merge(prefix: str):
        found = list_now(prefix)
        monkeypatch.setattr(run.output, "list", list_now)
        assert compact_ledger(run, Phase.DENOISE) == 2
        return found

    monkeypatch.setattr(run.output, "list", list_then_merge)
    assert read_ledger(run, Phase.DENOISE, ["id"])["id"].to_pylist() == ["a", "b"]


def test_an_error_on_the_way_still_writes_the_rows_taken(make_config) -> None:
    run = plan_run(make_config(*prompts(1))).run
    with pytest.raises(RuntimeError), LedgerWriter(run, Phase.DECODE) as ledger:
        ledger.add(LedgerRow(id="x", bytes=1, sha256="s", started=0.0))
        raise RuntimeError("lost the GPU")
    assert read_ledger(run, Phase.DECODE)["id"].to_pylist() == ["x"]
