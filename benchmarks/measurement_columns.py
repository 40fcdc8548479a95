"""Write the tables of columns in docs/measure.md: `python -m benchmarks.measurement_columns --update docs/measure.md`.

Without `--update` they are printed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.document_tables import print_or_update, table
from twin.measurement.records import TABLES

HEADER = ("column", "type", "meaning")


def column_tables() -> Mapping[str, Sequence[str]]:
    """Return a Markdown table per table that a measurement can hold, by its name in the document."""
    return {
        f"columns of {name}": table(
            HEADER, [(f"`{column.name}`", f"`{column.kind}`", column.meaning) for column in columns]
        )
        for name, columns in TABLES.items()
    }


def main() -> None:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", type=Path, help="document to put the tables into")
    print_or_update(column_tables(), parser.parse_args().update)


if __name__ == "__main__":
    main()
