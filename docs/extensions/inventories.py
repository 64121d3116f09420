"""Cross references to other projects' pages, from inventories that are kept as text, as a build has no connection.

Each file in ``inventories/`` has the address of a project's pages in its first line, then a line for each object that
these pages refer to: its name, its role, and where it is below that address.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

SOURCES = Path(__file__).parent.parent / "inventories"


def write_inventory(source: Path, target: Path) -> str:
    """Write an inventory in Sphinx's format, version 2; return the address of the project's pages."""
    address, *lines = source.read_text(encoding="utf-8").splitlines()
    entries = (line.split() for line in lines if line)
    body = "".join(f"{name} py:{role} 1 {place} -\n" for name, role, place in entries)
    header = f"# Sphinx inventory version 2\n# Project: {source.stem}\n# Version: \n"
    header += "# The remainder of this file is compressed using zlib.\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(header.encode() + zlib.compress(body.encode()))
    return address


def configure(app: Sphinx, config: Config) -> None:
    """Name the inventories to sphinx.ext.intersphinx."""
    folder = Path(app.outdir).parent / "generated" / "inventories"
    config.intersphinx_mapping = {
        source.stem: (write_inventory(source, folder / f"{source.stem}.inv"), str(folder / f"{source.stem}.inv"))
        for source in sorted(SOURCES.glob("*.txt"))
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the inventories before intersphinx reads its configuration."""
    app.connect("config-inited", configure, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
