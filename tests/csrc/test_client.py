"""libeverface as an embedder gets it: its symbols and headers, and the examples built from an installed prefix and run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.csrc.conftest import ROOT, run
from tests.engine.processes import engine_process

import everface
from everface.avatar.avatar import Avatar
from everface.cli import main
from everface.client.library import declarations, load_library
from everface.core.config import Deployment, StreamConfig
from everface.live.events import LiveSegmentEnd, VideoFrame
from everface.media.video_writer import VideoWriter

CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(try LANGUAGES C CXX)
set(CMAKE_C_STANDARD 11)
set(CMAKE_CXX_STANDARD 17)
find_package(everface 0.1 CONFIG REQUIRED)
add_executable(embed_c {0}/embed.c)
add_executable(embed_cpp {0}/embed.cpp)
target_link_libraries(embed_c everface::everface)
target_link_libraries(embed_cpp everface::everface)
"""


def test_the_library_exports_its_own_functions_alone_and_needs_nothing_heavy(prefix: Path) -> None:
    library = prefix / "lib" / "libeverface.so"
    symbols = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()]
    header = (prefix / "include" / "everface.h").read_text()
    declared = set(re.findall(r"\b(ef_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    assert set(symbols) == declared and len(declared) > 20
    needed = run("ldd", library)
    assert not re.search("python|torch|cuda|nvidia|triton", needed) and "not found" not in needed
    assert "libeverface.so.1" in run("readelf", "-d", library)


def test_the_headers_compile_with_every_warning(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("#include <everface.h>\nint main(void) { return ef_abi_version() >> 16 != EF_ABI_MAJOR; }\n")
    (tmp_path / "a.cc").write_text("#include <everface.hpp>\nint main() { everface::EngineConfig c; c.fake = 1; everface::Engine e(c); }\n")
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", f"-I{prefix}/include", "-L", prefix / "lib", "-leverface", f"-Wl,-rpath,{prefix}/lib")
    for compiler, standard, source in (("cc", "-std=c11", "a.c"), ("c++", "-std=c++17", "a.cc")):
        run(compiler, standard, tmp_path / source, "-o", tmp_path / "a.out", *flags)
        run(tmp_path / "a.out")


def test_versions_agree(prefix: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{everface.__version__}"' in project
    assert f"Version: {everface.__version__}" in (prefix / "lib" / "pkgconfig" / "everface.pc").read_text()
    pytest.importorskip("cffi")
    ffi, lib = load_library(prefix)
    assert ffi.string(lib.ef_version()).decode() == everface.__version__
    header = (prefix / "include" / "everface.h").read_text()
    assert f"EF_ABI_MAJOR {lib.ef_abi_version() >> 16}\n" in header and f"EF_ABI_MINOR {lib.ef_abi_version() & 0xFFFF}\n" in header
    assert "#" not in declarations(header)


@pytest.mark.parametrize("where", ["lib", "lib/x86_64-linux-gnu", "/opt/everface/lib"])
def test_pkg_config_finds_the_prefix_wherever_the_library_is(where: str, tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("needs cmake and a C++ compiler")
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DEVERFACE_PYTHON=OFF", "-DCMAKE_INSTALL_PREFIX=/usr/local", f"-DCMAKE_INSTALL_LIBDIR={where}")
    settings = dict(line.split("=", 1) for line in (tmp_path / "everface.pc").read_text().splitlines() if "=" in line)
    library = Path("/usr/local", where)
    prefix = os.path.normpath(settings["prefix"].replace("${pcfiledir}", str(library / "pkgconfig")))
    assert prefix == "/usr/local"
    assert settings["libdir"].replace("${prefix}", prefix) == str(library)
    assert settings["includedir"].replace("${prefix}", prefix) == "/usr/local/include"


@pytest.fixture(scope="module")
def programs(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The examples, built with plain CMake and with pkg-config."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "CMakeLists.txt").write_text(CMAKE.format(ROOT / "examples"))
    run("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder / "build")
    programs = {"C, CMake": folder / "build" / "embed_c", "C++, CMake": folder / "build" / "embed_cpp"}
    if shutil.which("pkg-config"):
        settings = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
        found = subprocess.run(["pkg-config", "--cflags", "--libs", "everface"], env=settings, capture_output=True, text=True, check=True)
        for name, compiler, source in (("C, pkg-config", "cc", "embed.c"), ("C++, pkg-config", "c++", "embed.cpp")):
            out = folder / source.replace(".", "_")
            run(compiler, ROOT / "examples" / source, "-o", out, *found.stdout.split(), f"-Wl,-rpath,{prefix}/lib")
            programs[name] = out
    return programs


def i420(rgb_HW3: np.ndarray) -> bytes:
    """BT.709 in limited range, written down a second time."""
    rgb = rgb_HW3.astype(np.int64)
    luma = (rgb @ [5983, 20127, 2032] + (1 << 14) + (16 << 15)) >> 15
    four = rgb[::2, ::2] + rgb[1::2, ::2] + rgb[::2, 1::2] + rgb[1::2, 1::2]
    u, v = ((four @ row + (1 << 16) + (128 << 17)) >> 17 for row in ([-3298, -11094, 14392], [14392, -13073, -1319]))
    return b"".join(plane.astype(np.uint8).tobytes() for plane in (luma, u, v))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    t = np.arange(int(1.5 * 24_000)) / 24_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    samples = (3000 * noise * (1 + np.sin(2 * np.pi * 3 * t))).clip(-32768, 32767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(samples.tobytes())
    return path, samples


@pytest.fixture(scope="module")
def rendered(small_model: Path, face: Path, speech: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The frames [T, H, W, 3] that `everface render --seed 7` gives its encoder. H.264 is not lossless, so the file itself cannot be compared."""
    written: list[np.ndarray] = []

    class Recorder(VideoWriter):
        def write(self, frames_THW3: np.ndarray) -> None:
            written.append(frames_THW3.copy())
            super().write(frames_THW3)

    out = tmp_path_factory.mktemp("render") / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everface.avatar.render.VideoWriter", Recorder)
        assert main(["render", str(face), str(speech[0]), "-o", str(out), "--seed", "7", "--weights", str(small_model), "--threads", "1"]) == 0
    frames_THW3 = np.concatenate(written)
    assert out.stat().st_size > 1000 and len(frames_THW3) == 38  # ceil(1.5 s * 25)
    return frames_THW3


def sha256(frames: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def engine_socket(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("engine") / "e.sock"
    flags = ("--socket", str(path), "--weights", str(small_model), "--threads", "1")
    with engine_process(path, sys.executable, "-m", "everface", "engine", *flags):
        yield path


@pytest.mark.parametrize("name", ["C, CMake", "C++, CMake", "C, pkg-config", "C++, pkg-config"])
def test_an_example_makes_the_video_that_everface_render_makes(
    name: str, programs: dict[str, Path], engine_socket: Path, face: Path, speech: tuple[Path, np.ndarray], rendered: np.ndarray, tmp_path: Path
) -> None:
    if name not in programs:
        pytest.skip("needs pkg-config")
    run(programs[name], face, speech[0], tmp_path / "o.y4m", tmp_path / "o.wav", engine_socket)
    header, _, frames = (tmp_path / "o.y4m").read_bytes().partition(b"\n")
    assert header == b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED"
    assert sha256([frames]) == sha256(b"FRAME\n" + i420(frame_HW3) for frame_HW3 in rendered)
    with wave.open(str(tmp_path / "o.wav")) as file:
        back = file.readframes(1 << 20)
    own = speech[1].tobytes()
    assert back[: len(own)] == own and not any(back[len(own) :]) and len(back) == 38 * 2 * 960
    assert not re.search("python|torch|cuda", run("ldd", programs[name]))


def test_an_example_says_what_is_wrong(programs: dict[str, Path], engine_socket: Path, speech: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    for name in programs:
        for image, where, word in (("none.png", engine_socket, "none.png"), ("none.png", tmp_path / "none.sock", "start one with")):
            command = [programs[name], image, speech[0], tmp_path / "o.y4m", tmp_path / "o.wav", where]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_examples_are_short() -> None:
    for name in ("embed.c", "embed.cpp", "epoll_server.cpp", "gstreamer.c"):
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


def test_the_video_is_that_of_the_offline_session(small_model: Path, face: Path, speech: tuple[Path, np.ndarray]) -> None:
    """As `everface render` opens it, over audio of the model's own rate: one stream of frames whichever way it is asked for."""
    audio_S = torch.from_numpy(speech[1].astype(np.float32) / 32768)
    with Avatar(small_model, deployment=Deployment(threads=1)) as avatar:
        with avatar.open(face, StreamConfig(seed=7)) as session:
            session.push_audio(audio_S)
            session.end_segment()
            offline = np.concatenate([block.frames_THW3.numpy() for block in session.frames()])
        with avatar.open_live(face, StreamConfig(seed=7), idle=False, paced=False) as live:
            live.push_audio(speech[1], 16_000)
            live.end_segment()
            frames = []
            for event in live:
                if isinstance(event, VideoFrame):
                    frames.append(event.image_HW3)
                elif isinstance(event, LiveSegmentEnd):
                    break
    assert len(frames) == len(offline) and np.array_equal(np.stack(frames), offline)
