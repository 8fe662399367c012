"""Where the result of long work goes, looked at before the work."""

import os
from pathlib import Path


def check_output_file(name: str, path: str | Path, suffix: str = "") -> None:
    """Raises ``ValueError`` unless a file that ends in ``suffix`` can be written at ``path``, the value of ``name``."""
    file = Path(path)
    folder = file.absolute().parent
    if file.is_dir():
        reason = "is a folder"
    elif not file.name.lower().endswith(suffix):
        reason = f"does not end in {suffix}"
    elif not folder.is_dir():
        reason = f"lies in {str(folder)!r}, which is no folder of this machine"
    elif not os.access(file if file.exists() else folder, os.W_OK):
        reason = "may not be written"
    else:
        return
    ending = f" *{suffix}" if suffix else ""
    raise ValueError(f"{name}={str(path)!r} {reason}; name a file{ending} in a folder that may be written")
