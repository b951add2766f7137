"""The laboratory of a session, and what has to be said about all recordings at its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.certificates import make_all
from tests.interop.charon import missing_packages
from tests.interop.lab import Lab
from tests.interop.recordings import Recordings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without strongSwan there is no peer."""
    missing = missing_packages()
    if missing:
        reason = f"no strongSwan to talk to: apt-get install {' '.join(missing)}"
        for item in items:
            if item.get_closest_marker("interop"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all certificates and keys."""
    folder = tmp_path_factory.mktemp("credentials")
    make_all(folder)
    return folder


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The namespaces."""
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recordings]:
    """Collects what is recorded; at the end of the session tshark must find nothing wrong with any of it."""
    assert shutil.which("tshark")
    recordings = Recordings(tmp_path_factory.mktemp("recordings"))
    yield recordings
    complaints = recordings.complaints()
    assert not complaints, "\n".join(["tshark complains", *complaints])
