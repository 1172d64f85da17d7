"""Environment variables: an empty one is the default, a wrong one is one sentence that names it."""

from __future__ import annotations

import pytest

from everface.core import env
from everface.core.config import Deployment
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log, start_log


def test_empty_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  "):
        monkeypatch.setenv("EVERFACE_LOG", value)
        monkeypatch.setenv("EVERFACE_THREADS", value)
        assert (env.log_level(), env.threads()) == ("WARNING", None)
    monkeypatch.setenv("EVERFACE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert str(env.cache_dir()) == "/c/everface"


def test_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("debug", "Info", " WARNING ", "error", "critical"):
        monkeypatch.setenv("EVERFACE_LOG", value)
        assert env.log_level() == value.strip().upper()
    level = log.level
    start_log()
    assert log.level == 50
    log.setLevel(level)
    for value in ("1", " 8 ", "1024"):
        monkeypatch.setenv("EVERFACE_THREADS", value)
        assert env.threads() == int(value)


@pytest.mark.parametrize("value", ["verbose", "10", "warn ing", "дебаг", "x" * 9999])
def test_a_wrong_log_level_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EVERFACE_LOG", value)
    with pytest.raises(BadInput, match=r"EVERFACE_LOG is .*debug, info, warning, error or critical") as caught:
        start_log()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5", "²", "1025", "9" * 5000, "1e3", "0x4"])
def test_wrong_threads_are_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EVERFACE_THREADS", value)
    with pytest.raises(BadInput, match=r"EVERFACE_THREADS is .*from 1 to 1024") as caught:
        env.threads()
    assert len(str(caught.value)) < 200


def test_threads_of_a_deployment_are_bounded() -> None:
    """OpenMP ends the whole process when the system refuses it a thread."""
    assert Deployment(threads=2).threads == 2
    for threads in (0, -1, 1025, 10**9, 10**20):
        with pytest.raises(BadInput, match="from 1 to 1024"):
            Deployment(threads=threads)


def test_a_home_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERFACE_CACHE", "~nobody-has-this-name/cache")
    with pytest.raises(Unavailable, match="set EVERFACE_CACHE to a folder"):
        env.cache_dir()


def test_the_token_is_none_where_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, token in (("", None), ("  ", None), (" abc ", "abc")):
        monkeypatch.setenv("EVERFACE_TOKEN", value)
        assert env.token() == token
