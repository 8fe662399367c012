"""Prompt rows from files of many kinds, streamed; a bad row is told apart and never stops the rest."""

import csv
import errno
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from fastvideo.data import PROMPT_LISTS
from fastvideo.v1.dataset.objects.store_errors import translate
from fastvideo.v1.dataset.sources.arrow_sizes import MAGIC, DamagedArrow, largest_message
from fastvideo.v1.dataset.sources.prompt_row import COLUMNS, IMAGE, PromptRow, RejectedRow, parse_row, rejected
from fastvideo.v1.logger import init_logger

logger = init_logger(__name__)

Row = PromptRow | RejectedRow
_COMPRESSION = (".gz", ".bz2", ".xz", ".zst")
_LONGEST_LINE = 16 * 2**20  # bytes
_LARGEST_GROUP = 8 * 2**30  # bytes; images may stand in a table
_BATCH_ROWS = 4096
_IMAGE_BATCH_ROWS = 64  # of rows that may hold the bytes of an image


def read_prompts(uri: str) -> Iterator[Row]:
    """The rows of a packaged list or of the file, folder or glob at ``uri``, in order.

    A folder is one written by ``datasets.save_to_disk``, or else all its files of the kinds we read, by name. What is
    there under its very name is no glob.
    Raises ``ValueError`` if there is nothing to read or a table has no ``prompt`` column.
    """
    for file_uri in _files(PROMPT_LISTS.get(uri, uri)):
        yield from _reader(file_uri)(file_uri)


def _files(uri: str) -> list[str]:
    fs, path = url_to_fs(uri)
    try:
        if any(character in path for character in "*?[") and not fs.exists(path):
            paths = fs.glob(path)
        elif fs.isdir(path):
            paths = _folder_files(fs, path.rstrip("/"))
        else:
            return [uri]
    except OSError as error:
        raise translate(error, uri) from error
    if not paths:
        raise ValueError(f"prompts {uri!r} hold no file of a kind we read: {', '.join(_READERS)}")
    return [fs.unstrip_protocol(path) for path in sorted(paths)]


def _folder_files(fs: Any, folder: str) -> list[str]:
    if fs.exists(f"{folder}/state.json"):  # datasets.Dataset.save_to_disk
        shards = json.loads(fs.cat_file(f"{folder}/state.json"))["_data_files"]
        return [f"{folder}/{shard['filename']}" for shard in shards]
    if fs.exists(f"{folder}/dataset_dict.json"):  # datasets.DatasetDict.save_to_disk
        splits = json.loads(fs.cat_file(f"{folder}/dataset_dict.json"))["splits"]
        if len(splits) > 1:
            raise ValueError(f"prompts {folder!r} hold the splits {', '.join(splits)}; give one: {folder}/{splits[0]}")
        return _folder_files(fs, f"{folder}/{splits[0]}")
    return [path for path in fs.ls(folder, detail=False) if _kind(path) in _READERS]


def _kind(uri: str) -> str:
    """The suffix before that of a compression; a query, as the web's links have them, is no part of it."""
    path = uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri
    suffixes = [suffix for suffix in PurePosixPath(path).suffixes if suffix not in _COMPRESSION]
    return suffixes[-1].lower() if suffixes else ""


def _reader(uri: str) -> Callable[[str], Iterator[Row]]:
    kind = _kind(uri)
    if kind not in _READERS:
        raise ValueError(
            f"prompts {uri!r}: {kind or 'no suffix'!r} is no kind we read; there are: {', '.join(_READERS)}"
        )
    return _READERS[kind]


@contextmanager
def _open(uri: str, compression: str | None = "infer") -> Iterator[BinaryIO]:
    try:
        opened = fsspec.open(uri, "rb", compression=compression).open()
    except FileNotFoundError:
        lists = ", ".join(PROMPT_LISTS)
        raise ValueError(f"prompts {uri!r} do not exist; give a URI or a packaged list: {lists}") from None
    except OSError as error:
        raise translate(error, uri) from error
    with opened:
        yield opened


def _decoded_lines(uri: str) -> Iterator[tuple[str, str | None, bytes]]:
    """Source, text (None if not UTF-8) and bytes of each line."""
    with _open(uri) as file:
        for number, line in enumerate(_lines(file, uri), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                text: str | None = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                text = None
            yield f"{uri}:{number}", text, line


def _lines(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """The lines, each of a bounded length: a few bytes of a compressed file may unpack to one of terabytes."""
    number = 0
    file = io.BufferedReader(file)  # type: ignore[type-var]  # a store's own file takes no bound for a line
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"prompts {uri}:{number}: a line of over {_LONGEST_LINE / 2**20:g} MiB; is it a text file?"
            )
        yield line


def _read_txt(uri: str) -> Iterator[Row]:
    for source, text, line in _decoded_lines(uri):
        yield rejected(source, line, "not UTF-8") if text is None else parse_row({"prompt": text}, source)


def _read_jsonl(uri: str) -> Iterator[Row]:
    check, folder = _ColumnCheck(uri), _folder(uri)
    for source, text, line in _decoded_lines(uri):
        if text is None:
            yield rejected(source, line, "not UTF-8")
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield rejected(source, text, f"not JSON: {error}")
            continue
        if not isinstance(values, dict):
            yield rejected(source, text, "must be a JSON object with a prompt")
            continue
        check.note_unknown(values)
        yield parse_row(values, source, folder)


def _read_csv(uri: str) -> Iterator[Row]:
    with _open(uri) as file:
        texts = (line.decode("utf-8", "surrogateescape").removeprefix("\ufeff") for line in _lines(file, uri))
        reader = csv.reader(texts, strict=True)
        columns, folder = next(reader, []), _folder(uri)
        _ColumnCheck(uri).require_prompt(columns)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "limit" in str(error):  # where this row ends nobody knows
                    longest = csv.field_size_limit()
                    raise ValueError(
                        f"prompts {uri}:{line}: a cell of over {longest} characters; is a quote left open?"
                    ) from None
                yield rejected(f"{uri}:{line}", "", f"not CSV: {error}")
                continue
            if len(cells) > len(columns):
                yield rejected(f"{uri}:{line}", ",".join(cells), f"{len(cells)} cells for {len(columns)} columns")
                continue
            values = {name: cell or None for name, cell in zip(columns, cells, strict=False)}
            yield parse_row(values, f"{uri}:{line}", folder)


def _read_parquet(uri: str) -> Iterator[Row]:
    with _open(uri, compression=None) as file:
        table = pq.ParquetFile(file)
        _check_sizes(table.metadata, uri)
        names = table.schema_arrow.names
        _ColumnCheck(uri).require_prompt(names)
        columns = [name for name in names if name in COLUMNS]
        batches = table.iter_batches(_batch_rows(table.schema_arrow), columns=columns)
        yield from _table_rows(batches, uri)


def _check_sizes(metadata: pq.FileMetaData, uri: str) -> None:
    """Raises ``ValueError`` if a group of rows, which is unpacked whole, says that it is of no prompts' size."""
    largest = max((metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)), default=0)
    if largest > _LARGEST_GROUP:
        raise _too_large(uri, "row group", largest)


def _too_large(uri: str, piece: str, size: int) -> ValueError:
    most = f"{_LARGEST_GROUP / 2**30:g}"
    return ValueError(f"prompts {uri!r}: a {piece} unpacks to {size / 2**30:.1f} GiB, over {most}; write smaller ones")


def _read_arrow(uri: str) -> Iterator[Row]:
    with _open(uri) as file:
        yield from _table_rows(_arrow_batches(file, uri), uri)


def _arrow_batches(file: BinaryIO, uri: str) -> Iterator[pa.RecordBatch]:
    """The batches, of which none is larger than allowed, nor lies: whoever reads those of a stranger must look."""
    start = len(MAGIC) if file.read(len(MAGIC)) == MAGIC else 0
    try:
        if (largest := largest_message(file, start)) > _LARGEST_GROUP:
            raise _too_large(uri, "batch", largest)
        file.seek(start)
        stream = pa.ipc.open_stream(file)
        _ColumnCheck(uri).require_prompt(stream.schema.names)
        for batch in stream:
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, DamagedArrow, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's or the store's; Arrow's own have no number, or seek to nowhere
        raise ValueError(f"prompts {uri!r} are no whole Arrow file: {error}") from None


def _table_rows(batches: Iterator[pa.RecordBatch], uri: str) -> Iterator[Row]:
    number, folder = 0, _folder(uri)
    for batch in batches:
        known = batch.select([name for name in batch.schema.names if name in COLUMNS])
        size = _batch_rows(known.schema)
        for start in range(0, len(known), size):
            for values in known.slice(start, size).to_pylist():
                number += 1
                yield parse_row(values, f"{uri}:{number}", folder)


def _batch_rows(schema: pa.Schema) -> int:
    """How many rows become Python objects at once."""
    return _IMAGE_BATCH_ROWS if IMAGE in schema.names else _BATCH_ROWS


def _folder(uri: str) -> str:
    """What stands before a file's name, the slash included: that of a file in the root is no empty text."""
    return uri[: uri.rfind("/") + 1]


class _ColumnCheck:
    """Says once which columns of a file are ignored."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._noted: set[str] = set(COLUMNS)

    def note_unknown(self, columns: Mapping[str, Any] | list[str]) -> None:
        """Logs the columns not noted yet, in one line for a table."""
        if new := [name for name in columns if name not in self._noted]:
            self._noted.update(new)
            logger.info("%s: ignoring columns %s; known are %s", self._uri, ", ".join(new), ", ".join(COLUMNS))

    def require_prompt(self, columns: list[str]) -> None:
        """Raises ``ValueError`` unless there is a ``prompt`` column."""
        if "prompt" not in columns:
            raise ValueError(
                f"prompts {self._uri!r} have no column 'prompt'; there are: {', '.join(columns) or 'none'}"
            )
        self.note_unknown(columns)


_READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
