"""Fixtures that every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own, so that none reads what another (or the user) left."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """Path of a file in the real test data (see MINIGPT_TEST_DATA), or a skip that says what is missing."""
    base = Path(os.environ.get("MINIGPT_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = base / name
        if not path.exists():
            pytest.skip(f"real test data absent: {name} not found under {base} (set MINIGPT_TEST_DATA)")
        return path

    return find
