"""Base job templates of work pools, ours and Prefect's own."""

import json
from pathlib import Path
from typing import Any


def own_template(package: str, kind: str) -> dict[str, Any]:
    """That of Prefect's worker of a ``kind``, as its server ships it."""
    import prefect.server.api

    views = Path(prefect.server.api.__file__).parent / "collections_data" / "views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text())
    own: dict[str, Any] = workers[package][kind]["default_base_job_configuration"]
    return own


def filled(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The configuration of one flow run, as a worker of Prefect makes it from the template."""
    from prefect.utilities.templating import apply_values

    properties = template["variables"]["properties"]
    defaults = {name: said["default"] for name, said in properties.items() if "default" in said}
    job: dict[str, Any] = apply_values(template["job_configuration"], {**defaults, **values}, remove_notset=True)
    return job
