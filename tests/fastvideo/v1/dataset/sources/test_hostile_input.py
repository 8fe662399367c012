"""Prompts, pictures and records made to harm: each is refused with a reason, whatever it tries."""

import bz2
import gzip
import io
import os
import random
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvideo.v1.dataset import layout
from fastvideo.v1.dataset.canonical import canonical_json
from fastvideo.v1.dataset.objects.state_file import DamagedObject, verify_state
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.fingerprint import fingerprint_component
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.sources import image_source, prompts
from fastvideo.v1.dataset.sources.image_file import BadImage, check_image, decode_image, read_image
from fastvideo.v1.dataset.sources.prompt_row import RejectedRow
from fastvideo.v1.pipelines.phase import Phase

ELSEWHERE = ["../x", "..", ".", "", "a/b", "/etc/x", "a\\..\\b", "a\0b", "a b", ".hidden", "x" * 129, "%2e%2e", "a\n"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_name_leads_out_of_its_folder(name, tmp_path):
    key = "0" * 16
    for path in (
        lambda: layout.run_path(name),
        lambda: layout.object_path(Phase.DECODE, name, key),
        lambda: layout.object_path(Phase.DECODE, key, name),
        lambda: layout.step_path(key, name),
        lambda: layout.failed_path("run", Phase.DENOISE, name),
        lambda: layout.wave_dir("run", name),
        lambda: layout.image_path(name),
        lambda: open_run(str(tmp_path), name),
    ):
        with pytest.raises(ValueError, match="is no name here"):
            path()


@pytest.mark.parametrize("path", ["../x", "runs/../../x", "/etc/passwd", "a/.."])
@pytest.mark.parametrize("root", ["{}", "memory://guarded"])
def test_no_path_leads_out_of_a_store(path, root, tmp_path):
    (tmp_path / "x").write_text("outside")
    store = Store(root.format(tmp_path / "store"))
    for operation in (store.read, store.delete, store.list, store.exists, lambda path: store.create(path, b"")):
        with pytest.raises(ValueError, match="leads out of"):
            operation(path)


def test_a_record_that_bears_another_name_is_refused(make_config):
    config = make_config('{"prompt": "a red ball"}')
    run = plan_run(config).run
    for name in ("copy", "..stray"):
        folder = Path(config.output, "runs", name)
        folder.mkdir()
        (folder / "run.json").write_bytes(run.to_json())
    with pytest.raises(ValueError, match=f"says that it is run '{run.name}'"):
        open_run(config.output, "copy")


REMOTE = [
    ("/etc/passwd", "may not name a file"),
    ("file:///etc/passwd", "may not name a file"),
    ("memory://x", "may not name a file"),
]
ALWAYS = [
    ("zip://a::file:///etc/passwd", "chained"),
    ("simplecache::http://host/x.png", "chained"),
    ("ftp://host/x.png", "scheme 'ftp' is not read"),
    ("sftp://host/x.png", "scheme"),
    ("github://o:r@main/x.png", "scheme"),
    ("reference://x", "scheme"),
    ("javascript://x", "scheme"),
    ("s3://key@bucket/x.png", "credentials"),
    ("http://169.254.169.254/latest/meta-data/", "(no images are read from|may not name) 169.254.169.254"),
    ("http://[fe80::1]/x", "cannot be read"),
    ("http://0.0.0.0/x.png", "(no images are read from|may not name) 0.0.0.0"),
]
INSIDE = [
    ("http://127.0.0.1:4200/api", "127.0.0.1, which is not public"),
    ("http://localhost:4200/api", "which is not public"),
    ("http://10.1.2.3/x.png", "10.1.2.3, which is not public"),
    ("http://[0:0:0:0:0:0:0:1]/x.png", "::1, which is not public"),
    ("http://[0:0:0:0:0:ffff:7f00:1]/x.png", "127.0.0.1, which is not public"),
    ("http://2130706433/x.png", "cannot be read"),
]


@pytest.mark.parametrize(("source", "message"), [*REMOTE, *ALWAYS, *INSIDE])
def test_a_remote_prompt_names_nothing_of_this_host_or_its_network(source, message):
    with pytest.raises(BadImage, match=message) as error:
        read_image(source, from_remote=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("source", "message"), [*ALWAYS, ("/dev/zero", "no regular file")])
def test_what_no_prompt_may_name(source, message):
    with pytest.raises(BadImage, match=message):
        read_image(source)


def test_a_pipe_is_not_waited_for_and_a_large_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="no regular file"):
        read_image(str(tmp_path / "pipe.png"))
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(image_source.MAX_BYTES + 1)
    with pytest.raises(BadImage, match="more than 64 MiB"):
        read_image(str(tmp_path / "large.png"))


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8192), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_not_decoded(size):
    for look in (check_image, decode_image):
        with pytest.raises(BadImage, match=r"pixels|exceeds limit"):
            look(png(*size))


def test_no_program_is_started_for_a_picture():
    """Pillow hands PostScript to Ghostscript."""
    with pytest.raises(BadImage, match="no image of a kind we read"):
        check_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (w) file\n")


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_line_without_end_is_refused(kind, suffix, compress, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "_LONGEST_LINE", 2**16)
    path = tmp_path / f"p.{kind}{suffix}"
    path.write_bytes(compress(b"prompt\n" + b"a" * 2**17))
    with pytest.raises(ValueError, match=r":2: a line of over"):
        list(prompts.read_prompts(str(path)))


def test_a_row_group_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "_LARGEST_GROUP", 2**20)
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a" * 2**21]}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match="a row group unpacks to"):
        list(prompts.read_prompts(str(path)))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_an_arrow_batch_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, new, compression):
    column = pa.array(["b", "a" * 2**21]).dictionary_encode() if compression else pa.array(["a" * 2**21])
    path = tmp_path / "p.arrow"
    table = pa.table({"prompt": column})
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    assert compression is None or path.stat().st_size < 2**16
    assert len([*prompts.read_prompts(str(path))]) == len(column)
    monkeypatch.setattr(prompts, "_LARGEST_GROUP", 2**20)
    with pytest.raises(ValueError, match="a batch unpacks to"):
        list(prompts.read_prompts(str(path)))


def test_an_arrow_file_that_was_tampered_with_is_one_line(tmp_path, fresh_seed):
    whole = io.BytesIO()
    table = pa.table({"prompt": ["a" * 500] * 50})
    with pa.ipc.new_stream(whole, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    data, generator = whole.getvalue(), random.Random(fresh_seed)
    path = tmp_path / "p.arrow"
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 8)):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(changed[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            rows = list(prompts.read_prompts(str(path)))
        except ValueError as error:
            assert "p.arrow" in str(error)
        else:
            assert len(rows) <= 50


def test_a_prompt_longer_than_any_text_is_kept_out(tmp_path):
    (tmp_path / "p.txt").write_text("a" * 100_001 + "\nb")
    first, second = prompts.read_prompts(str(tmp_path / "p.txt"))
    assert isinstance(first, RejectedRow) and "at most 100000" in first.reason and len(first.value) == 200
    assert second.prompt == "b"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{" * 100,
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 2) + b"[]",
        canonical_json({"__metadata__": 1}),
    ],
)
def test_a_state_file_with_a_monstrous_header_is_damaged(data):
    with pytest.raises(DamagedObject):
        verify_state(data, "name")


def test_a_model_with_a_monstrous_header_is_refused(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**27)
    with pytest.raises(ValueError, match=r"a header of 1099511627776 bytes is no safetensors file's"):
        fingerprint_component(str(tmp_path))
