"""The data-set card: README.md with the YAML header that the Hugging Face hub and `datasets` read."""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from fastvideo.v1.dataset.layout import CONTACT_SHEET
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import ALL_PHASES
from fastvideo.v1.shown_text import printable

_EXAMPLES = 8
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class Totals:
    """What is summed up while the rows stream by."""

    num_rows: int = 0
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(map(str, ALL_PHASES), 0.0))
    devices: set[str] = field(default_factory=set)
    prompts: list[str] = field(default_factory=list)

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, unchanged."""
        for batch in batches:
            self.num_rows += len(batch)
            self.bytes += pc.sum(batch["bytes"]).as_py() or 0
            for phase in self.seconds:
                self.seconds[phase] += pc.sum(batch[f"{phase}_seconds"]).as_py() or 0.0
            self.devices.update(pc.unique(batch["device"]).drop_null().to_pylist())
            if len(self.prompts) < _EXAMPLES:
                self.prompts += batch["prompt"][: _EXAMPLES - len(self.prompts)].to_pylist()
            yield batch


def render_card(run: Run, totals: Totals, data_files: str, *, has_sheet: bool) -> str:
    """The card's text; everything that a user wrote is escaped."""
    sections = [
        _header(totals, data_files),
        f"# {totals.num_rows:,} generated videos\n",
        f"Made by FastVideo with `{_code(run.pipeline_class)}`, run `{run.name}`, planned {run.created[:10]}. "
        f"{totals.num_rows:,} videos, {totals.bytes / 2**20:,.2f} MiB.\n",
        f"![First, middle and last frames of the newest videos]({CONTACT_SHEET})\n" if has_sheet else "",
        "## Loading\n",
        _LOADING,
        "## How it was made\n",
        _table(("Parameter", "Value"), _parameters(run)),
        "A sample's own values, where they differ, stand in its row.\n",
        "## What it cost\n",
        _table(("Phase", "Device seconds", "Per video"), _costs(totals)),
        f"Devices: {_text(', '.join(sorted(totals.devices)) or 'not recorded')}.\n",
        "## Model\n",
        f"`{_code(run.model_path)}`\n",
        _table(
            ("Component", "Fingerprint"),
            [(_text(name), f"`{_code(value)}`") for name, value in run.fingerprints.items()],
        ),
        _table(("Package", "Version"), [(_text(name), _text(value)) for name, value in run.versions.items()]),
        "## Examples\n",
        "".join(f"- {_text(prompt)}\n" for prompt in totals.prompts),
    ]
    return "\n".join(section for section in sections if section)


_LOADING = """```python
from datasets import load_dataset

rows = load_dataset("PATH_OF_THIS_FOLDER", split="train")
rows[0]["prompt"], rows[0]["video_path"]  # the path is relative to this folder unless it is a full URI
```
"""


def _header(totals: Totals, data_files: str) -> str:
    size = next((name for limit, name in _SIZES if totals.num_rows < limit), "n>1M")
    values = {
        "pretty_name": "Generated videos",
        "license": "other",
        "license_name": "generated",
        "task_categories": ["text-to-video"],
        "tags": ["synthetic", "video"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data_files}]}],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _parameters(run: Run) -> list[tuple[str, str]]:
    values = asdict(run.sampling) | {"repeats": run.repeats} | asdict(run.video) | dict(run.engine)
    return [(name.replace("_", " "), _text("" if value is None else str(value))) for name, value in values.items()]


def _costs(totals: Totals) -> list[tuple[str, str, str]]:
    costs = [*totals.seconds.items(), ("all", sum(totals.seconds.values()))]
    return [(name, f"{seconds:,.1f}", f"{seconds / totals.num_rows:,.3f}") for name, seconds in costs]


def _table(head: tuple[str, ...], rows: list) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: str) -> str:
    """Plain text in Markdown, on one line."""
    one_line = html.escape(printable(" ".join(value.split())), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", one_line)


def _code(value: str) -> str:
    return printable(" ".join(value.replace("`", "'").replace("|", "&#124;").split()))
