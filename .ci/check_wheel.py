"""Check that a wheel holds every file of the packages that it is built from, data files included.

Usage: `python .ci/check_wheel.py WHEEL CHECKOUT`; exits with the list of what is missing.
"""

import sys
import zipfile
from pathlib import Path

PACKAGES = ("placer", "predictors", "solvers", "twin")
COMPILED_SUFFIXES = frozenset({".nbc", ".nbi", ".pyc"})


def missing_files(wheel: Path, checkout: Path) -> list[str]:
    """List the files of the packages that the wheel lacks.

    Parameters
    ----------
    wheel : pathlib.Path
        The built wheel.
    checkout : pathlib.Path
        The root of the source tree.

    Returns
    -------
    list of str
        Paths relative to the root, sorted. Caches of compiled code do not count.
    """
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    sources = {
        path.relative_to(checkout).as_posix()
        for package in PACKAGES
        for path in (checkout / package).rglob("*")
        if path.is_file() and path.suffix not in COMPILED_SUFFIXES
    }
    return sorted(sources - shipped)


def main() -> None:
    """Print the number of files checked, or fail with what is missing."""
    wheel, checkout = Path(sys.argv[1]), Path(sys.argv[2])
    missing = missing_files(wheel, checkout)
    if missing:
        sys.exit(f"{wheel.name} lacks: {', '.join(missing)}")
    print(f"{wheel.name} holds every file of {', '.join(PACKAGES)}")


if __name__ == "__main__":
    main()
