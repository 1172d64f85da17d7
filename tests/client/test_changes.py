"""Another image, what is said about it, and what the person hears: through libeverface, with engines that are real, fake, or lost on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.client.kills import COMMAND, TONE, finish_segment, read_for
from tests.engine.listener import Listener
from tests.live.faces import live_in_process

from everface.client.engine_client import EngineClient, EngineSession
from everface.core.errors import BadInput, Unavailable
from everface.engine.protocol import OpenRequest
from everface.engine.server import Engine, listen
from everface.live.events import LiveEvent, VideoFrame
from everface.live.session import LiveSession
from everface.runtime.events import Recovered

pytest.importorskip("cffi")


@pytest.fixture
def both(prefix: Path, tmp_path: Path) -> Iterator[tuple[LiveSession, EngineSession]]:
    """A session that listens, at either end."""
    with live_in_process(Listener("odd.png"), idle=False, paced=False) as live:

        def opener(request: OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
            return live, (8, 8)

        engine = Engine(opener, fps=25)
        threading.Thread(target=engine.serve, args=(listen(tmp_path / "e.sock"),), daemon=True).start()
        with EngineClient(tmp_path / "e.sock", prefix=prefix) as client, client.open_live("odd.png", idle=False, paced=False) as session:
            yield live, session
        engine.stop(0.0)


def images(events: list[LiveEvent]) -> np.ndarray:
    return np.stack([event.image_HW3 for event in events if isinstance(event, VideoFrame)])


def test_another_image_is_shown_and_spoken_of(both: tuple[LiveSession, EngineSession]) -> None:
    live, session = both
    assert session.remark == live.remark == "odd.png is odd"
    before = images(finish_segment(session))
    session.change(image="fine.png")
    assert session.remark == live.remark == ""
    session.change(image="/somewhere/odder.png", prompt="a hat")
    assert session.remark == live.remark == "odder.png is odd"
    after = images(finish_segment(session))
    assert len(before) == len(after) and np.abs(before.astype(int) - after).max(axis=(1, 2, 3)).min() > 0


def test_what_cannot_be_changed_is_one_sentence_and_changes_nothing(both: tuple[LiveSession, EngineSession]) -> None:
    _, session = both
    with pytest.raises(BadInput, match=r"no\.png is no image: name another"):
        session.change(image="no.png")
    with pytest.raises(BadInput, match="this model has no cuts"):
        session.change(image="odder.png", transition="cut")
    with pytest.raises(BadInput, match="nothing is to be changed"):
        session.change()
    with pytest.raises(BadInput, match="'wipe': choose one of cut, dissolve"):
        session.change(image="odder.png", transition="wipe")
    with pytest.raises(BadInput, match="4096 bytes or more"):
        session.change(prompt="x" * 5000)
    with pytest.raises(BadInput, match="no image is named"):
        session.change(image="")
    assert session.remark == "odd.png is odd"
    assert len(images(finish_segment(session))) == 25  # the session goes on


def test_what_it_hears_reaches_the_model(both: tuple[LiveSession, EngineSession]) -> None:
    live, session = both
    session.push_user_audio(np.stack([TONE, TONE], 1), 48_000)
    session.stats()  # an answer, so what was sent before it is there
    user = live._feed.user
    assert user is not None and 4_800 < user._waiting_S.numel() <= 5_334 and user._waiting_S.abs().max() > 0.1  # a third of a second, but for the filter
    with pytest.raises(BadInput, match="4000 Hz"):
        session.push_user_audio(TONE, 4_000)
    with pytest.raises(BadInput, match="not finite"):
        session.push_user_audio(np.full(9, np.nan, np.float32))
    session.push_user_audio(np.zeros(0, np.int16))


def test_an_engine_that_does_not_listen_says_so_and_one_that_is_lost_comes_back_with_the_new_image(prefix: Path) -> None:
    with EngineClient(command=COMMAND, prefix=prefix) as engine:
        with engine.open_live("toy", idle=False, paced=False) as deaf:
            with pytest.raises(BadInput, match="not trained to listen"):
                deaf.push_user_audio(TONE)
            assert len(images(finish_segment(deaf))) == 25
        with engine.open_live("listens.png", idle=False, paced=False) as session:
            session.push_user_audio(TONE)
            assert session.remark == ""
            session.change(image="odd-listens.png")
            [child] = psutil.Process().children()
            child.kill()
            assert isinstance(read_for(session, 60, Recovered)[-1], Recovered)
            assert session.remark == "odd-listens.png is odd"
            assert len(images(finish_segment(session))) >= 25


def test_the_fake_engine_changes_images_too(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").touch()
    with EngineClient(fake=True, prefix=prefix) as engine, engine.open_live("face.png", idle=False, paced=False) as session:
        session.push_user_audio(TONE)
        before = images(finish_segment(session))
        session.change(image=tmp_path / "other.png")
        after = images(finish_segment(session))
        assert (after[0, 0, 0, 2].astype(int) - before[-1, 0, 0, 2]) % 256 == 101
        with pytest.raises(BadInput, match=r"missing\.png is not there"):
            session.change(image=tmp_path / "missing.png")
        assert session.remark == ""
        session.close()
        with pytest.raises(Unavailable, match="closed"):
            session.change(image="face.png")
