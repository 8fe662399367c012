"""Prompt rows from every kind of file; bad rows told with file and line."""

import csv
import gzip
import json
import logging
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.sources.prompt_row import PromptRow, RejectedRow
from fastvideo.v1.dataset.sources.prompts import read_prompts

ROWS = [
    {"prompt": "a red ball", "seed": 7, "height": 64, "steps": 4},
    {"prompt": "ein Stern, größer: 星", "negative_prompt": "blurry", "guidance": 2.5, "repeats": 2, "frames": 17},
]
EXPECTED = [
    ("a red ball", None, 7, None, {"height": 64, "num_inference_steps": 4}),
    ("ein Stern, größer: 星", "blurry", None, 2, {"num_frames": 17, "guidance_scale": 2.5}),
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in ROWS for key in row}))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS, schema=table_schema()), path)


def table_schema() -> pa.Schema:
    floats = dict.fromkeys(("guidance",), pa.float32()) | dict.fromkeys(("seed", "frames"), pa.float64())
    names = sorted({key for row in ROWS for key in row})
    kinds = {"prompt": pa.string(), "negative_prompt": pa.large_string()} | floats
    return pa.schema([(name, kinds.get(name, pa.int16())) for name in names])


def write_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, schema=table_schema())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_saved_dataset(path: Path) -> None:
    datasets.Dataset(pa.Table.from_pylist(ROWS, schema=table_schema())).save_to_disk(str(path), num_shards=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.jsonl", write_jsonl),
        ("p.jsonl.gz", write_gzip),
        ("p.csv", write_csv),
        ("p.parquet", write_parquet),
        ("p.arrow", write_arrow),
        ("saved", write_saved_dataset),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, write) -> None:
    write(tmp_path / name)
    rows = list(read_prompts(str(tmp_path / name)))
    assert all(isinstance(row, PromptRow) for row in rows), rows
    found = [(row.prompt, row.negative_prompt, row.seed, row.repeats, dict(row.overrides)) for row in rows]
    assert found == EXPECTED
    assert all(str(tmp_path) in row.source and row.source.rpartition(":")[2].isdigit() for row in rows)


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n  second  \nthird")
    assert [(row.prompt, row.source) for row in read_prompts(str(file))] == [
        (prompt, f"{file}:{line}") for line, prompt in enumerate(["first", "second", "third"], 1)
    ]


def test_packaged_lists_go_by_name() -> None:
    assert len(list(read_prompts("vbench"))) == 944
    shapes = [row.prompt for row in read_prompts("shapes")]
    assert len(shapes) >= 64 and len(set(shapes)) == len(shapes)


def test_globs_folders_and_remote_files_are_read_in_order() -> None:
    memory = fsspec.filesystem("memory")
    for number in (2, 1):
        memory.pipe_file(f"/folder/{number}.txt", b"prompt %d\n" % number)
    memory.pipe_file("/folder/notes.md", b"no prompt")
    for uri in ("memory://folder", "memory://folder/*.txt"):
        assert [row.prompt for row in read_prompts(uri)] == ["prompt 1", "prompt 2"]


@pytest.mark.parametrize(
    ("name", "write"),
    [("p.jsonl", write_jsonl), ("p.jsonl.gz", write_gzip), ("p.csv", write_csv), ("p.parquet", write_parquet)],
)
def test_every_kind_of_file_is_read_from_s3(s3_store: Store, tmp_path: Path, name: str, write) -> None:
    s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
    write(tmp_path / name)
    s3_store.create_from_file(name, str(tmp_path / name))
    rows = list(read_prompts(s3_store.uri(name)))
    assert [(row.prompt, row.source.rpartition("/")[2]) for row in rows if isinstance(row, PromptRow)] == [
        (row.prompt, row.source.rpartition("/")[2]) for row in read_prompts(str(tmp_path / name))
    ]


def test_links_of_the_web_may_have_a_query(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        rows = [*read_prompts(f"http://127.0.0.1:{server.server_port}/p.jsonl?download=true")]
        server.shutdown()
    assert [row.prompt for row in rows if isinstance(row, PromptRow)] == [
        row.prompt for row in read_prompts(str(tmp_path / "p.jsonl")) if isinstance(row, PromptRow)
    ]


@pytest.mark.parametrize("place", ["cats [v2]/p.txt", "cats [v2]", "what?/*.txt"])
def test_a_name_that_looks_like_a_glob_is_a_name_where_it_is_there(tmp_path: Path, place: str) -> None:
    for folder in ("cats [v2]", "what?"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.txt").write_text("a cat\n")
    assert [row.prompt for row in read_prompts(str(tmp_path / place))] == ["a cat"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": ""}', "empty prompt"),
        (b'{"prompt": "  \\n "}', "empty prompt"),
        (b'{"caption": "a"}', "no prompt"),
        (b'{"prompt": 7}', "prompt must be text, not int"),
        (b'{"prompt": "a \xff"}', "not UTF-8"),
        (b'{"prompt": "a \\ud800"}', "not UTF-8"),
        (b'{"prompt": "a \\u0000"}', "prompt holds the character NUL; if the file is UTF-16"),
        (b'{"prompt": "a"', "not JSON"),
        (b'"a"', "must be a JSON object"),
        (b'{"prompt": "a", "seed": -1}', "seed=-1 must lie in"),
        (b'{"prompt": "a", "seed": 4294967296}', "must lie in"),
        (b'{"prompt": "a", "seed": 1.5}', "seed=1.5 must be a whole number"),
        (b'{"prompt": "a", "seed": true}', "must be a whole number"),
        (b'{"prompt": "a", "repeats": 0}', "repeats=0 must be at least 1"),
        (b'{"prompt": "a", "height": "tall"}', "height='tall' must be a whole number"),
        (b'{"prompt": "a", "height": 0}', "height=0 must be at least 1"),
        (b'{"prompt": "a", "height": 4294967296}', "height=4294967296 must be at most 2147483647"),
        (b'{"prompt": "a", "guidance": Infinity}', "guidance=inf must be a number"),
        (b'{"prompt": "a", "steps": 3, "num_inference_steps": 4}', "contradicts"),
        (b'{"prompt": "a", "negative_prompt": ["b"]}', "negative_prompt must be text"),
        (b"", "not JSON"),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_the_rest_runs(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "before"}\n' + line + b'\n{"prompt": "after"}\n')
    before, bad, after = read_prompts(str(file))
    assert isinstance(before, PromptRow) and isinstance(after, PromptRow) and after.source == f"{file}:3"
    assert isinstance(bad, RejectedRow) and reason in bad.reason and bad.source == f"{file}:2"
    json.dumps(bad.value).encode()


def test_bad_csv_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(b'prompt,seed\n"two\nlines",1\nbad \xff byte,2\na,b,c\n,3\nlast,\n')
    rows = list(read_prompts(str(file)))
    assert [type(row).__name__ for row in rows] == [
        "PromptRow",
        "RejectedRow",
        "RejectedRow",
        "RejectedRow",
        "PromptRow",
    ]
    assert [row.source.rpartition(":")[2] for row in rows] == ["2", "4", "5", "6", "7"]


def test_whole_numbers_of_a_csv_may_be_written_as_pandas_does_beside_empty_cells(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,seed,frames\na,4294967295.0,81.0\nb,,\nc,1.5,\nd,inf,\n")
    first, second, *bad = read_prompts(str(file))
    assert isinstance(first, PromptRow) and isinstance(second, PromptRow)
    assert (first.seed, first.overrides, second.seed) == (2**32 - 1, {"num_frames": 81}, None)
    assert [row.reason for row in bad if isinstance(row, RejectedRow)] == [
        f"seed='{seed}' must be a whole number" for seed in ("1.5", "inf")
    ]


def test_no_line_of_a_file_in_utf_16_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("hello\nyou\n".encode("utf-16"))
    assert not [row for row in read_prompts(str(file)) if isinstance(row, PromptRow)]


def test_unknown_columns_are_ignored_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "mood": 1}\n' * 3)
    logging.getLogger("fastvideo").addHandler(caplog.handler)
    assert all(isinstance(row, PromptRow) for row in read_prompts(str(file)))
    logging.getLogger("fastvideo").removeHandler(caplog.handler)
    assert sum("ignoring columns mood" in line for line in caplog.messages) >= 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"caption\na\n", "no column 'prompt'; there are: caption"),
        ("p.docx", b"a", "no kind we read"),
        ("missing.txt", None, "do not exist"),
        (
            "p.csv",
            b'prompt\na\n"' + b"b\n" * 100_000 + b'"\n',
            r"p\.csv:3: a cell of over 131072 characters; is a quote",
        ),
    ],
)
def test_a_file_that_cannot_serve_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_prompts(str(tmp_path / name)))
