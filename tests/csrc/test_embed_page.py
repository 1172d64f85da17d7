"""The program of docs/embed.md, as a reader would type it in: compiled from a prefix, with `everface engine` on the PATH."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.csrc.conftest import ROOT, run

PROGRAM = """
#include <stdio.h>
static int frames;
static void show(const uint8_t *rgb, uint32_t width, uint32_t height, int64_t pts) { frames += rgb && width == 8 && height == 8 && pts >= 0; }
static int talk(const int16_t *samples, size_t count) {
%s
  return 0;
}
int main(void) {
  static int16_t samples[12000];
  for (int i = 0; i < 12000; i++) samples[i] = (int16_t)(i * 37 %% 4001 - 2000);
  int failed = talk(samples, 12000);
  printf("%%d frames\\n", frames);
  return failed;
}
"""


def test_ten_lines_make_frames(prefix: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    code = re.search(r"```c\n(#include <everface.h>\n)(.*?)```", page, re.DOTALL)
    assert code and len(code[2].strip().splitlines()) <= 12
    (tmp_path / "program.c").write_text(code[1] + PROGRAM % code[2])
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{prefix}/include", "-L", prefix / "lib", "-leverface", f"-Wl,-rpath,{prefix}/lib")
    run("cc", tmp_path / "program.c", "-o", tmp_path / "program", *flags)
    engine = tmp_path / "everface"  # `everface engine`, over the toy model
    engine.write_text(f'#!/bin/sh\nshift\ncd {ROOT}\nexec {sys.executable} -m tests.engine.toy_engine "$@"\n')
    engine.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / "program"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and int(done.stdout.split()[0]) >= 12, done.stdout + done.stderr
