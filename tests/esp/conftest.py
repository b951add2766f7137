"""Every ESP test runs with the reference engine and with the compiled one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.esp.support import ENGINES


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.__name__)
def engine_class(request: pytest.FixtureRequest) -> Any:
    """An engine class; the constructor takes mss_clamp, icmp_source4 and icmp_source6."""
    return request.param
