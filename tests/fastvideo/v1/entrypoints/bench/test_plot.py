"""A bench's rows as bars: their lengths are the figures."""

import random

import numpy as np
import pytest
from PIL import Image

from fastvideo.v1.entrypoints.bench.plot import plot_rows


def test_bars_are_as_long_as_their_figures(tmp_path):
    values = [random.uniform(1.0, 10.0) for _ in range(4)]
    path = tmp_path / "plot.png"
    plot_rows([{"case": f"case {index}", "ms": value} for index, value in enumerate(values)], "title", str(path))
    blue = (np.asarray(Image.open(path)) == (0x3B, 0x6E, 0xA5)).all(axis=-1)
    lengths = blue.sum(axis=1)
    starts = [row for row in range(1, len(lengths)) if lengths[row] and not lengths[row - 1]]
    drawn = [int(lengths[row]) for row in starts]
    assert np.allclose(np.array(drawn) / max(drawn), np.array(values) / max(values), atol=0.005)


def test_rows_without_a_measure_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a plot needs rows with one of"):
        plot_rows([{"figure": "samples", "value": 3}], "title", str(tmp_path / "plot.png"))
