"""Print the pip commands that install the last version of vLLM in tests/vllm_versions.toml, one per line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Read the file named by the first argument."""
    entry = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["tested"][-1]
    for requirement in entry["install"]:
        print(f"install {requirement}")
    print(f"uninstall --yes {' '.join(entry['uninstall'])}")


if __name__ == "__main__":
    main()
