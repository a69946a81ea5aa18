"""What holds for all tests: properties are not judged by the clock, which belongs to the machine.

The examples of properties are the same in every run, so that a change is judged by what it changes. To look for
new ones: HYPOTHESIS_PROFILE=explore pytest tests
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from linnet.machine import graph_cache
from tiny_runs import train_tiny

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("linnet", settings.get_profile("explore"), derandomize=True)
graph_cache()  # what was compiled on another kind of machine is not used here
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "linnet"))


@pytest.fixture(scope="session")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sums that has learned next to nothing; tests only read it."""
    out = tmp_path_factory.mktemp("adder") / "run"
    train_tiny(out, steps=8)
    return out
