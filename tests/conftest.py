"""What holds for all tests: properties are not judged by the clock, which belongs to the machine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("linnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("linnet")
