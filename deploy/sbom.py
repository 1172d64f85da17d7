"""The software bill of materials of a release: CycloneDX 1.6, from the locked requirements."""

from __future__ import annotations

import datetime
import re
import uuid
from pathlib import Path
from typing import Any

LINE = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")


def read_lock(path: Path) -> list[dict[str, Any]]:
    """Its packages as components. Raises ValueError for a line that is no package with a version and a hash."""
    components = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if (match := LINE.fullmatch(line.strip())) is None:
            raise ValueError(f"line {number} of {path} is no package with a version and a hash: {line[:80]!r}")
        hashes = [{"alg": "SHA-256", "content": part.rpartition(":")[2]} for part in match["hashes"].split()]
        components.append(component(match["name"], match["version"], "library") | {"hashes": hashes})
    return components


def component(name: str, version: str, kind: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def write_sbom(version: str, lock: Path, epoch: int, digests: dict[str, str]) -> dict[str, Any]:
    """`epoch`: seconds since 1970, of the release; `digests`: sha256 of its files. The same arguments give the same document."""
    components = read_lock(lock)
    product = component("everface", version, "application")
    product["licenses"] = [{"license": {"id": "Apache-2.0"}}]
    product["properties"] = [{"name": f"everface:sha256:{name}", "value": digest} for name, digest in sorted(digests.items())]
    name = f"everface {version} {epoch} {sorted(digests.items())}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
        "version": 1,
        "metadata": {"timestamp": datetime.datetime.fromtimestamp(epoch, datetime.UTC).isoformat(), "component": product},
        "components": components,
        "dependencies": [{"ref": product["bom-ref"], "dependsOn": [c["bom-ref"] for c in components]}],
    }
