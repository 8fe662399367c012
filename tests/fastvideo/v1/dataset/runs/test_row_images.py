"""Rows with images: named by what the image holds, refused where it is bad, independent of where it came from."""

import hashlib
import io
import json
import random
import time
from contextlib import nullcontext
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastvideo.v1.dataset.keeping.collect import collect_garbage
from fastvideo.v1.dataset.keeping.verify import verify
from fastvideo.v1.dataset.layout import image_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.plan import sample_log
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs import row_images
from fastvideo.v1.dataset.runs.row_images import RowImages
from fastvideo.v1.dataset.runs.run import list_runs
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, part_path, to_parquet
from fastvideo.v1.dataset.sources.image_file import BadImage
from fastvideo.v1.dataset.sources.prompt_row import PromptRow
from fastvideo.v1.dataset.sources.prompts import read_prompts
from fastvideo.v1.dataset.waves.shards import read_shard, write_shards
from fastvideo.v1.dataset.waves.wave import read_wave
from fastvideo.v1.pipelines.phase import Phase


def png(colour: tuple[int, int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour or tuple(random.choices(range(256), k=3))).save(buffer, "PNG")
    return buffer.getvalue()


def row(text: str, image: str | None = None, **values) -> str:
    return json.dumps({"prompt": text, "image": image, **values})


@pytest.fixture
def make_image_config(make_config, image_model):
    return lambda *lines, **values: make_config(*lines, **{"model": image_model, **values})


def images_of(run) -> list[str]:
    return [sample.image for sample in run.iter_samples()]


def write_struct_parquet(path: Path, images: list[bytes]) -> None:
    struct = pa.array([{"bytes": image, "path": "x.png"} for image in images])
    pq.write_table(pa.table({"prompt": [f"p{n}" for n in range(len(images))], "image": struct}), path)


def write_binary_parquet(path: Path, images: list[bytes]) -> None:
    pq.write_table(pa.table({"prompt": [f"p{n}" for n in range(len(images))], "image": images}), path)


def write_saved_dataset(path: Path, images: list[bytes]) -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"prompt": f"p{n}", "image": {"bytes": image, "path": None}} for n, image in enumerate(images)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(path))


def write_jsonl(path: Path, images: list[bytes]) -> None:
    write_beside(path, images)
    lines = [json.dumps({"prompt": f"p{n}", "image": f"pictures/{n}.png"}) for n in range(len(images))]
    path.write_text("\n".join(lines))


def write_csv(path: Path, images: list[bytes]) -> None:
    write_beside(path, images)
    path.write_text("prompt,image\n" + "".join(f"p{n},pictures/{n}.png\n" for n in range(len(images))))


def write_paths_parquet(path: Path, images: list[bytes]) -> None:
    write_beside(path, images)
    names = [f"{path.parent}/pictures/{n}.png" for n in range(len(images))]
    pq.write_table(pa.table({"prompt": [f"p{n}" for n in range(len(images))], "image": names}), path)


def write_beside(path: Path, images: list[bytes]) -> None:
    (path.parent / "pictures").mkdir()
    for number, image in enumerate(images):
        (path.parent / f"pictures/{number}.png").write_bytes(image)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.jsonl", write_jsonl),
        ("p.csv", write_csv),
        ("p.parquet", write_struct_parquet),
        ("p.parquet", write_binary_parquet),
        ("p.parquet", write_paths_parquet),
        ("saved", write_saved_dataset),
    ],
)
def test_every_kind_of_file_gives_the_same_samples(tmp_path, make_image_config, name, write) -> None:
    images = [png() for _ in range(70)]
    write(tmp_path / name, images)
    run = plan_run(make_image_config(prompts=str(tmp_path / name))).run
    digests = images_of(run)
    assert [run.objects.read(image_path(digest)) for digest in digests] == images
    from_memory = fsspec.filesystem("memory")
    lines = []
    for number, image in enumerate(images):
        from_memory.pipe_file(f"/pictures/{number}.png", image)
        lines.append(row(f"p{number}", f"memory://pictures/{number}.png"))
    other = plan_run(make_image_config(*lines, output=str(tmp_path / "other"))).run
    assert [sample.id for sample in other.iter_samples()] == [sample.id for sample in run.iter_samples()]


def test_equal_images_are_one_sample_and_changed_bytes_another(tmp_path, make_image_config) -> None:
    image = png()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(image)
    config = make_image_config(row("x", "a.png"), row("x", f"{tmp_path}/b.png"), row("y", "a.png"))
    plan = plan_run(config)
    assert (plan.num_samples, plan.num_repeated) == (2, 1)
    assert plan.scan[Phase.ENCODE].total == 4, "two texts, the negative prompt, one image"
    (tmp_path / "a.png").write_bytes(png())
    again = plan_run(config)
    assert (again.num_samples, again.num_new, again.num_repeated) == (4, 2, 0)
    assert again.scan[Phase.ENCODE].total == 5 and len(set(images_of(again.run))) == 2
    kept = [path for path in (tmp_path / "output/images").rglob("*") if path.is_file()]
    assert {path.read_bytes() for path in kept} == {image, (tmp_path / "a.png").read_bytes()} and len(kept) == 2


def test_an_image_on_another_canvas_is_another_input(tmp_path, make_image_config) -> None:
    (tmp_path / "a.png").write_bytes(png())
    config = make_image_config(
        row("x", "a.png"), row("x", "a.png", height=32), row("x", "a.png", frames=9), row("x", "a.png", steps=3)
    )
    plan = plan_run(config)
    assert plan.num_samples == 4 and plan.scan[Phase.ENCODE].total == 2 + 3
    shards = write_shards(plan.run, plan.scan, config, 1)
    tables = [read_shard(plan.run, shard.path) for shard in shards if shard.phase is Phase.ENCODE]
    assert [table["text"].null_count for table in tables] == [0, 3], "texts and images in shards of their own"
    sampling = plan.run.sampling
    canvases = [(line["height"], line["width"], line["num_frames"]) for line in tables[1].to_pylist()]
    size = sampling.height, sampling.width, sampling.num_frames
    assert canvases == [size, (32, *size[1:]), (*size[:2], 9)]
    needs = {shard.name: shard.needs for shard in read_wave(plan.run, shards[0].wave)}
    assert needs["denoise-0000"] == ("encode-0000", "encode-0001")


def test_bad_images_are_rejected_with_file_and_line(tmp_path, make_image_config) -> None:
    (tmp_path / "good.png").write_bytes(good := png())
    (tmp_path / "broken.png").write_bytes(good[:30])
    (tmp_path / "text.png").write_text("no image")
    config = make_image_config(
        row("1", "good.png"),
        row("2", "gone.png"),
        row("3", "broken.png"),
        row("4", "text.png"),
        row("5", "data:image/png;base64,iVBORw0KGgo="),
        row("6", 2000 * "iVBORw0KGgo"),
        json.dumps({"prompt": "7", "image": {"bytes": "iVBORw0KGgo=", "path": None}}),
        json.dumps({"prompt": "8", "image": ["good.png"]}),
        row("9"),
        row("10", "good.png"),
    )
    plan = plan_run(config)
    assert [sample.prompt for sample in plan.run.iter_samples()] == ["1", "10"]
    told = {int(bad.source.removeprefix(f"{config.prompts}:")): bad.reason for bad in plan.rejected}
    expected = {
        2: "gone.png' does not exist",
        3: "cannot be decoded (30 bytes)",
        4: "no image of a kind we read",
        5: "bytes go in Parquet or Arrow",
        6: "bytes go in Parquet or Arrow",
        7: "they go in Parquet or Arrow",
        8: "not list",
        9: "no image; this model makes a video of an image and a prompt",
    }
    assert list(told) == list(expected)
    assert all(reason in told[line] and "\n" not in told[line] for line, reason in expected.items()), told


def test_a_model_of_texts_alone_refuses_images_without_reading_them(make_config) -> None:
    plan = plan_run(make_config(row("a", "gone.png"), row("b", ""), row("c")))
    (bad,) = plan.rejected
    assert "this model makes videos of prompts alone" in bad.reason and bad.source.endswith(":1")
    assert images_of(plan.run) == [None, None]


def test_a_run_goes_on_without_the_images_sources(tmp_path, make_image_config) -> None:
    (tmp_path / "a.png").write_bytes(png())
    config = make_image_config(row("x", "a.png"))
    first = plan_run(config)
    (tmp_path / "a.png").unlink()
    longer = make_image_config(row("x", "a.png"), row("new", "a.png"), row("y", "never-there.png"))
    plan = plan_run(longer)
    assert (plan.num_samples, plan.num_new, plan.num_rejected) == (2, 1, 1)
    assert set(images_of(plan.run)) == set(images_of(first.run))
    changed = plan_run(make_image_config(row("x", "a.png"), video={"crf": 30}))
    assert changed.run.name != plan.run.name and set(images_of(changed.run)) == set(images_of(first.run))
    with pytest.raises(ValueError, match=r"no row that can be used; .*a\.png' does not exist"):
        plan_run(make_image_config(row("x", "a.png"), store=str(tmp_path / "elsewhere"), video={"crf": 40}))


def test_a_source_that_cannot_be_read_now_is_as_good_as_gone(tmp_path, make_image_config, monkeypatch) -> None:
    """A server that is down keeps no run from going on; and what was kept is listed once, however many ask."""
    lines = [row(f"p{number}", f"{tmp_path}/{number}.png") for number in range(40)]
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png())
    first = plan_run(make_image_config(*lines))
    listed = []

    def list_slowly(output):
        listed.append(output)
        time.sleep(0.2)
        return list_runs(output)

    def refuse(source, **_):
        raise BadImage(f"image {source!r} cannot be read: the server answers 503")

    monkeypatch.setattr(row_images, "list_runs", list_slowly)
    monkeypatch.setattr(row_images, "read_image", refuse)
    again = plan_run(make_image_config(*lines, row("new", "new.png")))
    assert (again.num_samples, again.num_new, again.num_rejected) == (40, 0, 1) and len(listed) == 1
    assert "the server answers 503" in again.rejected[0].reason
    assert images_of(again.run) == images_of(first.run)


def test_a_plan_that_ends_reads_no_further_image(tmp_path, make_image_config, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    run = plan_run(make_image_config(row("x", "a.png"))).run
    read = []

    def fail(source, **_):
        read.append(source)
        time.sleep(0.2)
        raise StoreUnavailable(source)

    monkeypatch.setattr(row_images, "read_image", fail)
    rows = (PromptRow(f"p{number}", f"rows:{number}", image=f"{number}.png") for number in range(100))
    with pytest.raises(StoreUnavailable):
        list(RowImages(run, "required", "p.jsonl", write=True).look_up(rows))
    assert len(read) <= 24, "those under way, and not the 32 that were to come"


def test_garbage_collection_waits_for_whoever_looks_for_images(tmp_path, make_image_config, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    run = plan_run(make_image_config(row("x", "a.png"))).run
    check, refused = row_images.check_image, []

    def check_and_collect(data):
        with pytest.raises(ValueError, match=f"run {run.name} in .* is being planned"):
            collect_garbage([run.output], delete=True)
        refused.append(data)
        check(data)

    monkeypatch.setattr(row_images, "check_image", check_and_collect)
    (tmp_path / "b.png").write_bytes(png())
    plan_run(make_image_config(row("x", "a.png"), row("y", "b.png")))
    assert len(refused) == 1 and collect_garbage([run.output], delete=True).is_whole


def test_an_image_that_is_gone_is_a_gap(tmp_path, make_image_config) -> None:
    (tmp_path / "a.png").write_bytes(png())
    run = plan_run(make_image_config(row("x", "a.png"))).run
    path = image_path(images_of(run)[0])
    assert not verify(run.output, [run], [run]).has_gaps
    run.objects.delete(path)
    found = verify(run.output, [run], [run])
    assert found.has_gaps and [(finding.kind, finding.path) for finding in found.findings] == [("lost", path)]


def test_a_look_ahead_keeps_no_image(tmp_path, make_image_config) -> None:
    (tmp_path / "a.png").write_bytes(png())
    assert plan_run(make_image_config(row("x", "a.png")), write=False).num_samples == 1
    assert not (tmp_path / "output").exists()


def test_a_run_planned_before_there_were_images_goes_on(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    old = pa.schema([field for field in SAMPLE_SCHEMA if not field.name.startswith("image")])
    monkeypatch.setattr(sample_log, "to_parquet", lambda rows: to_parquet(rows.select(old.names)))
    before = plan_run(make_config(row("a"), row("b")))
    monkeypatch.undo()
    part = before.run.output.read(part_path(before.run.name, 0))
    columns = pq.ParquetFile(io.BytesIO(part)).schema_arrow.names
    assert columns == old.names
    plan = plan_run(make_config(row("a"), row("b"), row("c")))
    assert (plan.num_samples, plan.num_new, plan.scan[Phase.ENCODE].total) == (3, 1, 4)
    assert [sample.prompt for sample in plan.run.iter_samples()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("prompts", "image", "expected"),
    [
        ("/p.jsonl", "a.png", "/a.png"),
        ("p.jsonl", "a.png", "a.png"),
        ("rows/p.jsonl", "../a.png", "rows/../a.png"),
        ("memory://p.jsonl", "a.png", "memory://a.png"),
        ("s3://bucket/rows/p.jsonl", "pictures/a.png", "s3://bucket/rows/pictures/a.png"),
        ("s3://bucket/p.jsonl", "/disk/a.png", "/disk/a.png"),
        ("/rows/p.jsonl", "https://host/a.png", "https://host/a.png"),
    ],
)
def test_a_path_is_relative_to_the_folder_of_its_prompt_file(prompts, image, expected, monkeypatch) -> None:
    line = json.dumps({"prompt": "x", "image": image}).encode()
    monkeypatch.setattr("fastvideo.v1.dataset.sources.prompts._files", lambda uri: [uri])
    monkeypatch.setattr("fastvideo.v1.dataset.sources.prompts._open", lambda uri: nullcontext(io.BytesIO(line)))
    assert [found.image for found in read_prompts(prompts)] == [expected]


def test_few_images_are_in_memory_at_once(tmp_path, make_image_config) -> None:
    (tmp_path / "a.png").write_bytes(png())
    run = plan_run(make_image_config(row("x", "a.png"))).run
    taken = 0

    def rows():
        nonlocal taken
        for taken in range(1, 201):
            yield PromptRow(f"p{taken}", f"rows:{taken}", image=png())

    for given, (found, digest) in enumerate(RowImages(run, "required", "p.jsonl", write=False).look_up(rows()), 1):
        assert digest == hashlib.sha256(found.image).hexdigest() and taken - given <= 32
    assert given == 200


def test_an_image_is_decoded_by_the_first_plan_alone(tmp_path, make_image_config, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    first = plan_run(make_image_config(row("x", "a.png")))
    monkeypatch.setattr(row_images, "check_image", lambda data: pytest.fail("decoded again"))
    assert plan_run(make_image_config(row("x", "a.png"))).num_samples == first.num_samples == 1


def test_a_store_that_fails_ends_the_plan(tmp_path, make_image_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose image cannot be kept now is no bad row."""
    (tmp_path / "a.png").write_bytes(png())
    config = make_image_config(row("x", "a.png"))

    def fail(self, path, data):
        raise StoreUnavailable("the store is unavailable")

    monkeypatch.setattr(Store, "create", fail)
    with pytest.raises(StoreUnavailable):
        plan_run(config)
