"""The released sizes, 2B and 7B, with random weights: `python -m pytest -m huge tests/convert/test_full_size.py -s`. Needs twice the model's size on the disk
of the temporary directory; prints what `python -m launch.bench convert` measures."""

from __future__ import annotations

import argparse

import pytest

from launch.benches.convert import convert


@pytest.mark.huge
@pytest.mark.parametrize(("preset", "gigabytes"), [("videollama3_2b", 3.5), ("videollama3_7b", 14.5)])
def test_a_released_size_streams(tmp_path, preset, gigabytes):
    figures = convert(argparse.Namespace(config=preset, workdir=tmp_path, load=False))
    print("\n" + "\n".join(f"{preset}: {name} {value:.2f}" for name, value in figures.items()))
    assert figures["size (GB)"] > gigabytes
    assert figures["peak anonymous memory (MiB)"] < 1024  # the promise is three times the largest tensor more
