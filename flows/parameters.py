"""How the parameters of flows read in the forms of their deployments, where Prefect would show their bare names."""

from typing import Annotated, Any

from pydantic import Field

from fastvideo.v1.dataset.config import RunConfig


def parameter(title: str, description: str) -> Any:
    """What stands beside the type of a parameter; as extra, for Prefect sets a title of its own."""
    return Field(json_schema_extra={"title": title, "description": description})


DataSet = Annotated[RunConfig, Field(json_schema_extra={"title": "Data set"})]
"""A config; what it says of itself describes it."""
