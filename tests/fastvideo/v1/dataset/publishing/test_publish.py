"""The published data set: opens with `datasets`, lists what exists, and is replaced without a gap."""

import io
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.video import probe
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.progress.recovery import index_recovered
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.publishing import publish as publishing
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase

NASTY = "a | `cat` <script>alert(1)</script>\n# not a heading **bold** 星"


def make_run(config: RunConfig, make_object, num_videos: int) -> Run:
    run = plan_run(config).run
    for sample in list(run.iter_samples())[:num_videos]:
        make_object(run, Phase.DENOISE, sample.id)
        with LedgerWriter(run, Phase.DENOISE) as ledger:
            ledger.add(LedgerRow(id=sample.id, bytes=1, sha256="x", started=0.0, seconds=3.5, device="NVIDIA H100"))
        make_object(run, Phase.DECODE, sample.id)
    index_recovered(run, scan(run))
    return run


def prompts(count: int) -> list[str]:
    return [
        json.dumps({"prompt": NASTY}),
        *(json.dumps({"prompt": f"p{number}", "steps": 5}) for number in range(count - 1)),
    ]


def load(output: str, tmp_path: Path) -> list[dict]:
    return datasets.load_dataset(output, split="train", cache_dir=str(tmp_path / "cache")).to_list()


def test_what_exists_is_published_and_opens_with_datasets(make_config, make_object, tmp_path: Path) -> None:
    config = make_config(*prompts(4), prompts(2)[1])
    run = make_run(config, make_object, 3)
    report = publish(run)
    rows = load(config.output, tmp_path)
    assert report.num_rows == len(rows) == 3
    samples = list(run.iter_samples())[:3]
    assert [row["id"] for row in rows] == [sample.id for sample in samples]
    first, second = rows[:2]
    assert (first["prompt"], first["num_inference_steps"], second["num_inference_steps"]) == (samples[0].prompt, 20, 5)
    assert (first["seed"], first["height"], first["fps"], first["requested"]) == (samples[0].seed, 64, 8, 1)
    assert second["requested"] == 2
    assert (first["denoise_seconds"], first["device"], first["decode_seconds"]) == (3.5, "NVIDIA H100", None)
    assert 0 <= first["mean_luminance"] <= 1
    video = Path(config.output) / first["video_path"]
    assert video.stat().st_size == first["bytes"] and probe(video).fps == first["fps"]
    assert (Path(config.output) / first["latents_path"]).exists() and first["embeddings_path"] is None


def test_publishing_again_replaces_rows_and_leaves_no_old_file(
    make_config, make_object, tmp_path: Path, monkeypatch
) -> None:
    config = make_config(*prompts(4))
    run = make_run(config, make_object, 2)
    first = publish(run)
    times = {file: Path(file).stat().st_mtime_ns for file in first.data_files}
    sent = []
    create = Store.create_from_file
    monkeypatch.setattr(Store, "create_from_file", lambda *it: (sent.append(it[1]), create(*it))[1])
    assert publish(run).data_files == first.data_files and len(sent) == 1
    assert times == {file: Path(file).stat().st_mtime_ns for file in first.data_files}
    make_object(run, Phase.DECODE, list(run.iter_samples())[2].id)
    second = publish(run)
    assert {str(path) for path in Path(config.output, "data").iterdir()} == set(second.data_files)
    assert len(load(config.output, tmp_path)) == 3


def test_of_two_who_publish_at_a_time_the_last_card_has_its_tables(make_config, make_object, monkeypatch) -> None:
    config = make_config(*prompts(4))
    run = make_run(config, make_object, 2)
    render, reports = publishing.render_contact_sheet, []

    def publish_more(run):
        monkeypatch.setattr(publishing, "render_contact_sheet", render)
        make_object(run, Phase.DECODE, list(run.iter_samples())[2].id)
        reports.append(publish(run))
        return render(run)

    monkeypatch.setattr(publishing, "render_contact_sheet", publish_more)
    slow = publish(run)
    assert reports[0].data_files != slow.data_files and slow.num_rows == 2
    header = yaml.safe_load(Path(slow.card).read_text().split("---\n")[1])
    [files] = header["configs"][0]["data_files"]
    assert {str(path) for path in Path(config.output).glob(files["path"])} == set(slow.data_files)


def test_rows_are_spread_over_bounded_files(make_config, make_object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_FILE", 2)
    config = make_config(*prompts(5))
    report = publish(make_run(config, make_object, 5))
    assert [pq.read_metadata(file).num_rows for file in report.data_files] == [2, 2, 1]
    assert len(load(config.output, tmp_path)) == 5


def test_the_card_declares_its_data_and_escapes_what_users_wrote(make_config, make_object) -> None:
    config = make_config(*prompts(2), sampling={"negative_prompt": NASTY})
    report = publish(make_run(config, make_object, 2))
    text = Path(report.card).read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    (files,) = header["configs"][0]["data_files"]
    assert header["task_categories"] == ["text-to-video"] and files["split"] == "train"
    assert {str(path) for path in Path(config.output).glob(files["path"])} == set(report.data_files)
    assert "<script>" not in text and "\n# not a heading" not in text and "a \\| \\`cat\\`" in text
    assert "NVIDIA H100" in text and "| denoise | 7.0 | 3.500 |" in text


def test_captions_have_no_boxes_for_accents_and_dashes(make_config, make_object) -> None:
    run = make_run(make_config(*prompts(1)), make_object, 1)
    [sample] = run.iter_samples()
    written, drawn = (
        publishing.render_contact_sheet(run, videos=[(sample.id, text)])
        for text in ("a café — naïve cats, 2–3 of them", "a cafe - naive cats, 2-3 of them")  # noqa: RUF001
    )
    assert written == drawn is not None


def test_the_contact_sheet_shows_the_newest_videos(make_config, make_object) -> None:
    report = publish(make_run(make_config(*prompts(5)), make_object, 4))
    assert report.contact_sheet is not None
    picture = Image.open(report.contact_sheet)
    assert picture.format == "PNG" and picture.width > 1000 and 300 < picture.height < 800


def test_objects_in_another_store_are_named_by_full_uri(make_config, make_object, tmp_path: Path) -> None:
    config = make_config(*prompts(2), store=str(tmp_path / "objects"))
    publish(make_run(config, make_object, 1))
    (row,) = load(config.output, tmp_path)
    assert Path(row["video_path"]).is_absolute() and Path(row["video_path"]).exists()


def test_a_run_without_videos_says_so(make_config) -> None:
    with pytest.raises(ValueError, match="no video to publish yet"):
        publish(plan_run(make_config(*prompts(1))).run)


def test_a_data_set_on_s3(make_config, make_object, s3_store: Store) -> None:
    config = replace(make_config(*prompts(3)), output=s3_store.uri(""))
    run = make_run(config, make_object, 2)
    report = publish(run)
    table = pq.read_table(io.BytesIO(s3_store.read(f"data/{report.data_files[0].rpartition('/')[2]}")))
    paths = table["video_path"].to_pylist()
    assert paths == [object_path(Phase.DECODE, run.keys[Phase.DECODE], id) for id in table["id"].to_pylist()]
    assert len(s3_store.read(paths[0])) == table["bytes"][0].as_py()
    assert s3_store.read("contact_sheet.png").startswith(b"\x89PNG")
