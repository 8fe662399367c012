"""Puts the automations of a file on the Prefect server: ``python -m flows.automations [FILE]``.

An automation of the same name is replaced, so that the command may be given again after each change of the file. An
action of type ``send-notification`` names its ``block`` as TYPE/NAME, where Prefect itself wants an id.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

DEFAULT_FILE = "infra/automations.yaml"


def apply_automations(path: str | Path) -> list[str]:
    """Creates or replaces every automation of a YAML file; a line about each.

    One whose notification block does not exist is left out. Raises ``ValueError`` for a file that holds none.
    """
    content = yaml.safe_load(Path(path).read_text())
    if not isinstance(content, dict) or not content.get("automations"):
        raise ValueError(f"{path} must have a list of `automations`")
    with get_client(sync_client=True) as client:
        return [_apply(client, values) for values in content["automations"]]


def _apply(client: SyncPrefectClient, values: dict[str, Any]) -> str:
    name = values["name"]
    try:
        actions = [_with_block(client, action) for action in values["actions"]]
    except ObjectNotFound:
        blocks = ", ".join(action["block"] for action in values["actions"] if "block" in action)
        return f"{name}: left out, for there is no block {blocks}; make it in the UI under Blocks and run this again"
    automation = AutomationCore.model_validate({**values, "actions": actions})
    for old in client.read_automations_by_name(name):
        client.delete_automation(old.id)
    client.create_automation(automation)
    return f"{name}: set"


def _with_block(client: SyncPrefectClient, action: dict[str, Any]) -> dict[str, Any]:
    """The action with the id of the block that it names."""
    if "block" not in action:
        return action
    kind, _, name = action["block"].partition("/")
    block = client.read_block_document_by_name(name, kind)
    return {key: value for key, value in action.items() if key != "block"} | {"block_document_id": str(block.id)}


if __name__ == "__main__":
    print(*apply_automations(*sys.argv[1:2] or [DEFAULT_FILE]), sep="\n")
