"""Where everything lies under an output and its store: the one place that spells paths."""

import re

from fastvideo.v1.pipelines.phase import Phase

RUNS = "runs"
DATA = "data"
IMAGES = "images"
DAMAGED = "damaged"
PROBES = ".probe"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"

_SUFFIX = {Phase.ENCODE: ".safetensors", Phase.DENOISE: ".safetensors", Phase.DECODE: ".mp4"}
_STEP_SUFFIX = ".step.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def is_name(text: str) -> bool:
    """Whether ``text`` is the name of one folder or file, whatever stands before and after it."""
    return _NAME.fullmatch(text) is not None


def checked(name: str) -> str:
    """``name`` of a run, a key, an id or a digest; raises ``ValueError`` for one that could lead out of its folder."""
    if not is_name(name):
        raise ValueError(f"{name!r} is no name here; it must be of letters, digits, - and _, and 128 at most")
    return name


def phase_folder(phase: Phase, key: str) -> str:
    """The folder of one phase's objects under one key; below it the ``<aa>`` folders."""
    return f"{phase}/{checked(key)}"


def object_path(phase: Phase, key: str, id: str) -> str:
    """The object of input (encode) or sample ``id``."""
    return f"{phase}/{checked(key)}/{checked(id)[:2]}/{id}{_SUFFIX[phase]}"


def object_id(phase: Phase, path: str) -> str | None:
    """The id of the object at ``path``, or None for what is not a finished object (a long sample's steps)."""
    name = path.rpartition("/")[2]
    if name.startswith(".") or name.endswith(_STEP_SUFFIX) or not name.endswith(_SUFFIX[phase]):
        return None
    return name.removesuffix(_SUFFIX[phase])


def step_id(path: str) -> str | None:
    """The id of the sample whose steps are saved at ``path``, or None for anything else."""
    name = path.rpartition("/")[2]
    return name.removesuffix(_STEP_SUFFIX) if name.endswith(_STEP_SUFFIX) else None


def input_path(key: str, input_id: str) -> str:
    """Embeddings of one distinct text or image."""
    return object_path(Phase.ENCODE, key, input_id)


def latents_path(key: str, id: str) -> str:
    """Final latents of a sample."""
    return object_path(Phase.DENOISE, key, id)


def step_path(key: str, id: str) -> str:
    """State of a sample's denoising loop while it is under way; may be overwritten and never counts."""
    return f"{Phase.DENOISE}/{checked(key)}/{checked(id)[:2]}/{id}{_STEP_SUFFIX}"


def video_path(key: str, id: str) -> str:
    """Video file of a sample."""
    return object_path(Phase.DECODE, key, id)


def image_path(sha256: str) -> str:
    """The file of an image that samples start from, as it came: kept once, so that no run depends on its source."""
    return f"{IMAGES}/{checked(sha256)[:2]}/{sha256}"


def image_id(path: str) -> str | None:
    """The SHA-256 of the image at ``path``, or None for anything else."""
    name = path.rpartition("/")[2]
    return name if len(name) == 64 else None


def users_dir() -> str:
    """In a store apart from the outputs that it serves: one JSON file for each of them."""
    return "used-by"


def user_path(output_digest: str) -> str:
    """The file that names one output."""
    return f"{users_dir()}/{checked(output_digest)}.json"


def run_path(run: str) -> str:
    """The frozen record of a run; its existence makes the run visible."""
    return f"{RUNS}/{checked(run)}/run.json"


def samples_dir(run: str) -> str:
    """Parquet parts of the run's samples, in data-set order by name."""
    return f"{RUNS}/{checked(run)}/samples"


def planning_dir(run: str) -> str:
    """A file for each planner that is looking for images, which its samples will name."""
    return f"{RUNS}/{checked(run)}/planning"


def planning_path(run: str, planner: str) -> str:
    """One planner's file."""
    return f"{planning_dir(run)}/{checked(planner)}"


def requests_dir(run: str) -> str:
    """Parquet parts that say which samples were asked for more than once; the last by name wins."""
    return f"{RUNS}/{checked(run)}/requests"


def rejected_path(run: str, source_digest: str) -> str:
    """Rows of one prompt source that were kept out, one JSON line each."""
    return f"{RUNS}/{checked(run)}/rejected/{checked(source_digest)}.jsonl"


def ledger_dir(run: str, phase: Phase) -> str:
    """Parquet files of finished objects, a few for each attempt."""
    return f"{RUNS}/{checked(run)}/ledger/{phase}"


def failed_dir(run: str, phase: Phase) -> str:
    """One JSON file for each sample that is out of tries."""
    return f"{RUNS}/{checked(run)}/failed/{phase}"


def failed_path(run: str, phase: Phase, id: str) -> str:
    """The record of one failed sample (or input, for encode)."""
    return f"{failed_dir(run, phase)}/{checked(id)}.json"


def waves_dir(run: str) -> str:
    """A folder for each wave that is under way."""
    return f"{RUNS}/{checked(run)}/waves"


def wave_dir(run: str, wave: str) -> str:
    """The shards of one wave; gone when the wave is done."""
    return f"{waves_dir(run)}/{checked(wave)}"


def shard_path(run: str, wave: str, phase: Phase, index: int) -> str:
    """The rows of one shard."""
    return f"{wave_dir(run, wave)}/{phase}-{index:04d}.parquet"
