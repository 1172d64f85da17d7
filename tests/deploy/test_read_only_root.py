"""The server as the image runs it, without a container runtime: another root folder, read-only, and a user without rights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tests.test_house import ROOT

USER = 10001  # as in deploy/Dockerfile
TOKEN = "0123456789abcdefABCDEF"
# In a mount namespace of its own: a root that holds the system's programs, Python and this tree, all read-only; /cache and /tmp can be written to.
SCRIPT = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$1"
for path in /usr /bin /lib /lib64 /etc $2; do
  [ -e "$path" ] || continue
  mkdir -p "$1$path"
  mount --bind "$path" "$1$path"
  mount -o remount,bind,ro "$1$path"
done
mkdir "$1/proc" "$1/dev" "$1/cache" "$1/tmp"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=700,uid={USER} none "$1/cache"
mount -t tmpfs -o mode=1777 none "$1/tmp"
mount -o remount,ro "$1"
exec chroot "$1" setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --no-new-privs \\
  env -i PATH=/usr/bin PYTHONPATH={ROOT}/python PYTHONDONTWRITEBYTECODE=1 EVERFACE_CACHE=/cache HOME=/tmp TRITON_CACHE_DIR=/cache/triton \\
  OMP_NUM_THREADS=1 EVERFACE_TOKEN={TOKEN} {sys.executable} -m everface serve --host 0.0.0.0 --port 0
"""


def bound() -> str:
    """Where Python, its packages and this tree are."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return " ".join(dict.fromkeys([sys.base_prefix, sys.prefix, *packages, str(ROOT)]))


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another root folder")
def test_it_starts_without_rights_on_a_read_only_root_and_serves_the_page(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces cannot be made here")
    command = ["unshare", "--mount", "bash", "-c", SCRIPT, "bash", str(tmp_path), bound()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            found = re.findall(r":(\d+)/", process.stdout.readline())
            assert found, process.stderr.read()
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(rf"^Uid:\t{USER}\t{USER}\t", status, re.MULTILINE) and re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
            mounts = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()]
            assert [mount[5].split(",")[0] for mount in mounts if mount[4] == "/"] == ["ro"]
            with httpx.Client(base_url=f"http://127.0.0.1:{found[0]}", headers={"Authorization": f"Bearer {TOKEN}"}) as client:
                end_s = time.monotonic() + 120
                while client.get("/readyz").status_code != 200:
                    assert time.monotonic() < end_s and process.poll() is None
                    time.sleep(0.2)
                assert "<title>" in client.get("/").text and client.get("/healthz").status_code == 200
        finally:
            process.terminate()
            assert process.wait(60) == 0
