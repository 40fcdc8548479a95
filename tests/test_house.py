"""The rules that hold for the repository as a whole: light imports, floors, documentation, packaging."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import placer
from benchmarks import import_time

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("placer", "predictors", "solvers", "twin")
HEAVY_LIBRARIES = frozenset(
    {
        "fastapi",
        "highspy",
        "numba",
        "numpy",
        "onnx",
        "onnxruntime",
        "ortools",
        "pandas",
        "pulp",
        "pyarrow",
        "pydantic",
        "scipy",
        "simpy",
        "sklearn",
        "torch",
        "vllm",
    }
)
MODULES = sorted(
    str(path.relative_to(ROOT)) for package in (*PACKAGES, "benchmarks") for path in (ROOT / package).rglob("*.py")
)


def _loaded_after(statement: str) -> frozenset[str]:
    """Return the top-level modules that a fresh interpreter holds after `statement`."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    return frozenset(name.partition(".")[0] for name in json.loads(run.stdout))


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_heavy_library(package: str) -> None:
    """A scheduler, a shell completion or `--help` must not wait for solvers, compilers and data frames."""
    loaded = _loaded_after(f"import {package}")
    assert package in loaded
    assert loaded & HEAVY_LIBRARIES == frozenset()


def test_importing_placer_loads_only_its_own_package() -> None:
    """The floors below are loaded when a name of theirs is asked for, not before."""
    assert _loaded_after("import placer") & frozenset(PACKAGES) == {"placer"}


@pytest.mark.parametrize("name", placer.__all__)
def test_every_lazy_export_is_found_where_the_table_says(name: str) -> None:
    """The table of lazy exports is text: a module that moves must not leave it behind."""
    assert getattr(placer, name) is not None


def test_the_lazy_exports_are_listed_by_dir() -> None:
    """Completion in an interpreter sees the public names before they are loaded."""
    assert set(placer.__all__) <= set(dir(placer))


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    """`hasattr` and friends must keep working on a module with lazy names."""
    with pytest.raises(AttributeError, match="module 'placer' has no attribute 'plam'"):
        _ = placer.plam


def test_arrows_point_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import contracts of pyproject.toml hold: four floors, heavy libraries on the floors that own them."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    """The first line of a module is the first thing that its next reader sees."""
    docstring = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    assert docstring


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_ships_its_types(package: str) -> None:
    """Without the marker, the type checker of a caller ignores every annotation of ours."""
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(("first", "second"), [("ortools", "highspy"), ("highspy", "ortools")])
def test_the_exact_back_ends_load_in_one_process_in_either_order(first: str, second: str) -> None:
    """The pin on highspy exists because later releases crash beside ortools; this is what shows that it is enough."""
    statement_of = {"highspy": "import highspy", "ortools": "from ortools.sat.python import cp_model"}
    for library in (first, second):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed: it comes with the extra `cpsat` or `milp`")
    assert {first, second} <= _loaded_after(f"{statement_of[first]}\n{statement_of[second]}")


def test_the_import_benchmark_summarises_its_samples() -> None:
    """The number in the documentation is the median of fresh interpreters, in milliseconds."""
    summary = import_time.summarise([3.0, 1.0, 2.0])
    assert summary == {"max_ms": 3.0, "median_ms": 2.0, "min_ms": 1.0, "runs": 3}


def test_the_import_benchmark_times_a_fresh_interpreter() -> None:
    """A module that is already loaded here must be loaded again there, so the time cannot be zero."""
    assert import_time.measure_once_ms("placer") > 0.0
