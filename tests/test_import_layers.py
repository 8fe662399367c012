"""Imports run down the layers, and flows stay light: checked on the source, and in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["distributed", "layers", "attention", "models", "pipelines", "dataset", "worker", "entrypoints", "cli"]
SIDE_BY_SIDE = {"entrypoints", "cli"}
DATASET_FLOORS = [
    {"config", "layout", "canonical", "ahead"},
    {"objects"},
    {"sources"},
    {"runs"},
    {"progress"},
    {"waves", "keeping", "publishing"},
    {"plan"},
]
LEAVES = {
    "forward_context", "fastvideo_args", "sampling_params", "form", "logger", "output_file", "plugins", "shown_text",
}  # fmt: skip
# Arithmetic without torch, in the folder of what it is about.
LEAF_MODULES = ("fastvideo.v1.distributed.layout",)
HEAVY = {"torch", "diffusers", "transformers"}


def modules(folder: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a file, inside functions too, but for types alone."""
    tree = _WithoutTypeChecking().visit(ast.parse((ROOT / path).read_text()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def layer(module: str) -> str | None:
    if module.startswith(LEAF_MODULES):
        return None
    parts = module.split(".")
    return parts[2] if parts[:2] == ["fastvideo", "v1"] and len(parts) > 2 else None


def rank(name: str) -> int:
    return LAYERS.index("cli") if name in SIDE_BY_SIDE else LAYERS.index(name)


def wrong_imports(path: Path) -> list[str]:
    own = layer(".".join(path.with_suffix("").parts))
    wrong = []
    for line, name in imports(path):
        imported = layer(name)
        is_upward = (
            imported in LAYERS and own is not None and (own in LEAVES or rank(imported) > rank(own))
        ) or name.split(".")[0] in {"prefect", "flows", "tasks"}
        if is_upward:
            wrong.append(f"{path}:{line} imports {name}")
    return wrong


def test_fastvideo_imports_run_downward():
    paths = [path for path in modules("fastvideo/v1") if path.name != "__init__.py" or len(path.parts) > 3]
    assert paths
    assert not [line for path in paths for line in wrong_imports(path)]


def test_dataset_imports_run_down_its_floors():
    floors = {part: floor for floor, parts in enumerate(DATASET_FLOORS) for part in parts}
    prefix = "fastvideo.v1.dataset."
    wrong = []
    for path in modules("fastvideo/v1/dataset"):
        if path.name == "__init__.py":
            continue
        own = path.parts[3].removesuffix(".py")
        for line, name in imports(path):
            part = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else own
            if part != own and floors[part] >= floors[own]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong


def test_every_part_of_fastvideo_has_its_place():
    parts = {path.parts[2].removesuffix(".py") for path in modules("fastvideo/v1")}
    assert parts - {"__init__"} <= set(LAYERS) | LEAVES


def test_flows_and_tasks_name_no_model_library():
    paths = modules("flows") + modules("tasks")
    assert not [
        f"{path}:{line} {name}" for path in paths for line, name in imports(path) if name.split(".")[0] in HEAVY
    ]
    tasks = [f"{path}:{line} {name}" for path in modules("tasks") for line, name in imports(path)]
    assert not [line for line in tasks if " flows" in line]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("flows.generate_dataset", HEAVY),
        ("flows.run_wave", HEAVY),
        ("flows.stack", HEAVY),
        ("flows.cli", HEAVY | {"prefect", "pyarrow", "pydantic", "fsspec"}),
        ("fastvideo.v1.dataset.progress.status", HEAVY | {"prefect"}),
        ("fastvideo", HEAVY),
        ("fastvideo.v1.worker.stage_job", {"diffusers", "transformers", "sympy", "prefect"}),
    ],
)
def test_importing_stays_light(module, absent):
    code = f"import sys, {module}; print(*({absent!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_planning_loads_no_model_library():
    """Every run and wave begins with it, and each of these takes seconds."""
    code = (
        "import sys; from fastvideo.data import EMBEDDED_MODEL; "
        "from fastvideo.v1.pipelines.describe import describe_pipeline; describe_pipeline(EMBEDDED_MODEL); "
        "print(*({'diffusers', 'transformers', 'torch._dynamo'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
