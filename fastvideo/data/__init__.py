"""What travels with the package: the trained model of moving shapes and two prompt lists."""

from pathlib import Path

_ROOT = Path(__file__).parent

EMBEDDED_MODEL = str(_ROOT / "shapes-wan")
PROMPT_LISTS = {path.stem: str(path) for path in sorted((_ROOT / "prompts").glob("*.txt"))}
