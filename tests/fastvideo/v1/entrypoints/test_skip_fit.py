"""Fitting coefficients of step skipping: a known relation is found again, and the command writes a rule that runs."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.cli import add_commands
from fastvideo.v1.entrypoints.skip_fit import ChangeRecorder, fit_rule
from fastvideo.v1.forward_context import ForwardContext, set_forward_context
from fastvideo.v1.models.dits.skip_rule import load_rule


def test_a_polynomial_is_found_again():
    generator = np.random.default_rng()
    coefficients, distances = generator.uniform(-2, 2, 5), generator.uniform(0.01, 0.3, 40)
    rule = fit_rule([(x, float(np.polyval(coefficients, x))) for x in distances], 3, 2)
    assert (rule.first_steps, rule.last_steps) == (3, 2)
    expected = np.polyval(coefficients, distances)
    assert [rule.estimate(x) for x in distances] == pytest.approx(expected, rel=1e-6, abs=1e-8)
    with pytest.raises(ValueError, match="2 different distances cannot fix a polynomial of degree 4"):
        fit_rule([(0.1, 0.2), (0.2, 0.4), (0.1, 0.3)], 1, 1)


def test_pairs_are_of_a_step_and_the_one_before_of_the_same_branch():
    recorder = ChangeRecorder()
    for step, branch, signal, added in [
        (0, 0, 2.0, 1.0),
        (0, 1, 1.0, 3.0),
        (1, 0, 3.0, 2.0),
        (1, 1, 1.5, 5.0),
        (0, 0, 9, 9),
    ]:
        tokens = torch.full((1, 2, 4), 2.0)
        with set_forward_context(ForwardContext(step_index=step, branch_index=branch)):
            recorder.run(tokens, torch.full((1, 3), float(signal)), lambda x, added=added: x + added)
    assert recorder.pairs == [pytest.approx((0.5, 1 / 4)), pytest.approx((0.5, 2 / 7))]


def test_the_command_writes_a_rule_that_the_model_follows(tmp_path: Path):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    file, prompt = tmp_path / "rule.json", "a red circle"
    command = ["fit-step-skipping", "--model", EMBEDDED_MODEL, "--prompt", prompt, "--output", str(file)]
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 7}
    command += [part for name, value in size.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    options = parser.parse_args([*command, "--first-steps", "2"])
    assert options.run(options) == 0
    rule = load_rule(str(file))
    assert rule.first_steps == 2 and rule.last_steps == 1 and len(rule.coefficients) == 5
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, step_skip_threshold=0.3, step_skip_rule=str(file))
    assert generator.generate_video(prompt, **size).frames.shape == (5, 32, 32, 3)
