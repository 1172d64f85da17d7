"""everface.runtime: see docs/path.md. Importable only under that name."""

if __name__ != "everface.runtime":
    # Two copies of one module would not share state, so under another name nothing below is found. It does not raise,
    # because libraries probe for packages of such common names by importing them.
    __path__ = []
