"""A release's parts: the lock, the bill of materials, and packages that are the same bits twice."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from pathlib import Path

import pytest
from deploy.release import LOCK, ROOT, build, digest, normalized
from deploy.sbom import read_lock, write_sbom

FILES = {"everface-1.0.tar.gz": "0" * 64}


def test_everything_that_everface_needs_is_locked() -> None:
    locked = {component["name"] for component in read_lock(LOCK)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["serve"], *extras["provenance"], *extras["heic"], *extras["native"]]
    names = {requirement.split(">")[0].split("[")[0].replace("_", "-") for requirement in wanted}
    assert names - locked == {"torch"}  # from an index of its own
    assert all(len(component["hashes"]) >= 1 for component in read_lock(LOCK))


def test_a_line_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("# made by hand\nnumpy==2.0\n")
    with pytest.raises(ValueError, match=r"line 2 .* no package with a version and a hash"):
        read_lock(tmp_path / "lock")


def test_the_bill_of_materials() -> None:
    sbom = write_sbom("1.0", LOCK, 1_700_000_000, FILES)
    assert (sbom["bomFormat"], sbom["specVersion"], sbom["metadata"]["timestamp"]) == ("CycloneDX", "1.6", "2023-11-14T22:13:20+00:00")
    assert json.dumps(sbom) == json.dumps(write_sbom("1.0", LOCK, 1_700_000_000, FILES))
    assert sbom["serialNumber"] != write_sbom("1.0", LOCK, 1_700_000_000, {"a": "1"})["serialNumber"]
    refs = [component["bom-ref"] for component in sbom["components"]]
    assert len(set(refs)) == len(refs) and sbom["dependencies"][0]["dependsOn"] == refs
    assert next(c for c in sbom["components"] if c["name"] == "pillow")["purl"].startswith("pkg:pypi/pillow@")


def archive(mtime: int, names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.mtime, member.uid, member.uname, member.size = mtime, mtime, "somebody", 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


def test_a_normalized_archive_does_not_tell_when_and_by_whom_it_was_made() -> None:
    a, b = normalized(archive(5, ["x/a", "x/b"]), 100), normalized(archive(9, ["x/b", "x/a"]), 100)
    assert a == b
    with tarfile.open(fileobj=io.BytesIO(a)) as tar:
        assert [(m.name, m.mtime, m.uid, m.uname) for m in tar] == [("x/a", 100, 0, ""), ("x/b", 100, 0, "")]


@pytest.mark.long
def test_the_packages_are_the_same_bits_twice(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a release is made from a checkout")
    first, second = (build(tmp_path / name, 1_700_000_000) for name in ("a", "another"))
    assert [digest(path) for path in first] == [digest(path) for path in second]
