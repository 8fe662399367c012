"""The image and the compose stack, which no test can start: held against a linter and Compose's own model."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
GIVEN = {"POSTGRES_PASSWORD": "pass", "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": "secret"}


def interpolate(text: str, given: dict[str, str]) -> str:
    """Compose's ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if name not in given and operator != ":-":
            raise KeyError(f"{name}: {rest or 'not given'}")
        return given.get(name, rest or "")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


@pytest.fixture
def compose() -> dict[str, Any]:
    stack: dict[str, Any] = yaml.safe_load(interpolate((INFRA / "compose.yaml").read_text(), GIVEN))
    return stack


def check_compose(stack: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_json(json.dumps(stack))


def test_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_image_runs_as_a_user_and_nothing_in_it_floats() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    images = [line for line in lines if line.startswith(("ARG BASE", "COPY --from=registry"))]
    assert len(images) == 2 and not [line for line in images if not re.search(r":v?\d+\.\d+", line)]


def test_image_takes_only_what_it_names() -> None:
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "all is left out that is not named, keys and data among it"


def test_files_of_keys_are_in_no_image_and_not_under_version_control() -> None:
    assert "infra/**/.env" in (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert {".env", "/store.env"} < set((INFRA.parent / ".gitignore").read_text().splitlines())


def test_compose_stack_is_valid(compose: dict[str, Any]) -> None:
    check_compose(compose)
    assert {"postgres", "s3", "prefect-server", "worker"} < set(compose["services"])
    with pytest.raises(ValueError, match="imagee"):
        check_compose({**compose, "services": {"worker": {"imagee": "x"}}})


def test_compose_stack_pins_its_images_and_waits_for_what_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert all(":" in service["image"] and "latest" not in service["image"] for service in services.values())
    waits = {other for service in services.values() for other in service.get("depends_on", {})}
    assert waits <= set(services)
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith((".", "/"))} == set(compose["volumes"])


def test_compose_stack_holds_no_secret_and_does_not_start_without() -> None:
    text = (INFRA / "compose.yaml").read_text()
    for name in GIVEN:
        with pytest.raises(KeyError, match=f"{name}: see the head of compose.yaml"):
            interpolate(text, {key: value for key, value in GIVEN.items() if key != name})


def test_server_settings_are_ones_that_prefect_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    lines = [line for line in (INFRA / "prefect.env").read_text().splitlines() if not line.startswith("#")]
    for name, value in (line.split("=") for line in lines):
        monkeypatch.setenv(name, value)
    recorder = Settings().server.services.task_run_recorder
    assert (recorder.batch_size, recorder.read_batch_size, recorder.flush_interval) == (200, 200, 1)
