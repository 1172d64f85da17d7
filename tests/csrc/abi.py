"""The ABI of libeverface as text: sizes and offsets as the compiler has them, values and functions as the header declares them.

`python -m tests.csrc.abi PREFIX` writes csrc/abi.txt again, which needs a new version in everface.h first.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from everface.client.library import declarations

ROOT = Path(__file__).parents[2]
DUMP = ROOT / "csrc" / "abi.txt"


def describe(prefix: Path) -> str:
    """The first line is the version."""
    import cffi

    header = (prefix / "include" / "everface.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef(declarations(header))
    major, minor = (re.search(rf"#define EF_ABI_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    assert major and minor
    lines, prints = [f"ABI {major[1]}.{minor[1]}"], []
    for name in sorted(ffi.list_types()[0]):
        kind = ffi.typeof(name)
        if kind.kind == "enum":
            lines += [f"enum {name} {label} = {value}" for value, label in sorted(kind.elements.items())]
        elif kind.kind == "struct" and kind.fields:
            prints.append(f'printf("struct {name} %zu\\n", sizeof({name}));')
            for field, details in kind.fields:
                where = f"offsetof({name}, {field}), sizeof((({name}*)0)->{field})"
                prints.append(f'printf("struct {name} {field} %zu %zu {details.type.cname}\\n", {where});')
        elif kind.kind == "struct":
            lines.append(f"opaque {name}")
    plain = " ".join(re.sub(r"/\*.*?\*/", "", declarations(header), flags=re.DOTALL).split())
    functions = [statement.split("}")[-1].strip() for statement in plain.split(";") if re.search(r"\bef_\w+\([^)]*\)$", statement)]
    lines += sorted(f"function {statement}" for statement in functions)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "a.c")
        source.write_text("#include <everface.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(prints) + "\nreturn 0; }\n")
        subprocess.run(["cc", str(source), f"-I{prefix}/include", "-o", f"{folder}/a.out"], check=True, timeout=60)
        lines += subprocess.run([f"{folder}/a.out"], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return "\n".join(lines) + "\n"


def breaks(old: str, new: str) -> list[str]:
    """What of an ABI a newer one lacks. The size of a struct may grow: whoever is given one reads its struct_size."""
    return [line for line in old.splitlines()[1:] if line not in new.splitlines() and not re.fullmatch(r"struct \w+ \d+", line)]


def check_versions(old: str, new: str) -> list[str]:
    """What is wrong with a change: without a new version, or with a new minor only, though programs break."""
    before, after = (tuple(int(part) for part in text.splitlines()[0].split()[1].split(".")) for text in (old, new))
    if old == new:
        return []
    if after <= before:
        return [f"the ABI changed, but its version is still {after[0]}.{after[1]}: raise EF_ABI_MINOR, or EF_ABI_MAJOR and the SONAME"]
    return [f"a minor version cannot take away: {line}" for line in breaks(old, new)] if after[0] == before[0] else []


if __name__ == "__main__":
    text = describe(Path(sys.argv[1]))
    wrong = check_versions(DUMP.read_text(), text) if DUMP.exists() else []
    if wrong:
        raise SystemExit("\n".join(wrong))
    DUMP.write_text(text)
