"""The worked example of docs/bring-your-own-surrogate.md, run as it stands there."""

import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placer
from placer.testing import check_surrogate
from predictors.answer_checks import CLEARLY, COMPARED, RATIO_SLACK
from predictors.contract import LARGEST_BATCH
from predictors.dataset import ROWS_PER_SHARD, sample_dataset
from predictors.file_checks import FILE_CHECKS
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import OUTPUT_NAMES
from predictors.surrogate_file import METADATA_KEYS
from tests.placer.small_fleets import small_problem
from twin.profile import load_profile

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "bring-your-own-surrogate.md").read_text(encoding="utf-8")
PROFILE = "llama-3.1-8b-h100-64gb"


def blocks(heading: str) -> list[str]:
    """Return the Python blocks under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert found, heading
    return found


def run(heading: str, folder: Path, names: dict[str, Any]) -> None:
    """Run the Python blocks under a heading in a folder, with the names that those before them left."""
    with contextlib.chdir(folder):
        for block in blocks(heading):
            exec(compile(block, f"bring-your-own-surrogate.md: {heading}", "exec"), names)  # noqa: S102 - our own page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small data set where the page has a large one."""
    path = tmp_path_factory.mktemp("own")
    sample_dataset(
        load_profile(PROFILE),
        rows=3 * ROWS_PER_SHARD,
        output=path / "rows",
        seed=3,
        seeds=1,
        horizon_s=40.0,
        warmup_s=10.0,
        workers=1,
    )
    return path


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """Return the names that the page has after the forest was written."""
    found: dict[str, Any] = {}
    run("Labelled rows", folder, found)
    run("From scikit-learn", folder, found)
    return found


def test_the_forest_is_a_surrogate_that_says_what_was_fitted(names: dict[str, Any], folder: Path) -> None:
    """It passes the check with its profile, gives the forest's numbers, and tells its errors."""
    report = check_surrogate(folder / "forest.onnx", profile=PROFILE)
    assert {check.name for check in report.warnings} <= {"more_load"}
    surrogate = OnnxSurrogate.load(folder / "forest.onnx")
    features = names["rows"].features
    expected = names["forest"].predict(features)
    output = surrogate.predict(features)
    for column, name in enumerate(("throughput_ratio", "starvation_probability", "itl_s", "ttft_s")):
        is_close = np.isclose(getattr(output, name), expected[:, column], rtol=1e-3, atol=1e-4)
        assert is_close.mean() > 0.99, name
    assert json.loads(surrogate.metadata["training"])["rows"] == int((~names["held_out"]).sum())


def test_the_forest_plans(names: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """A light workload, because the data set is small: the file proposes, the twin accepts."""
    del names
    engine = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
    problem = small_problem(tmp_path, total_rps=1.0, engine=engine)
    result = placer.plan(problem, surrogate=folder / "forest.onnx")
    assert (result.verdict, result.num_gpus) == ("accepted", 1)
    assert result.configuration.surrogate.name == "forest.onnx"


def test_the_network_is_a_surrogate_that_says_what_was_fitted(names: dict[str, Any], folder: Path) -> None:
    """The same from PyTorch; then the page's own check runs on both files."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: it comes with the extra `neural`")
    with warnings.catch_warnings():
        # The exporter without further dependencies is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        run("From PyTorch", folder, names)
    features = names["rows"].features
    output = OnnxSurrogate.load(folder / "network.onnx").predict(features)
    with torch.no_grad():
        expected = [values.numpy() for values in names["network"](torch.tensor(features))]
    for name, values in zip(OUTPUT_NAMES, expected, strict=True):
        np.testing.assert_allclose(getattr(output, name), values, rtol=1e-3, atol=1e-4)
    run("Check it", folder, names)
    assert names["report"].subject == "network.onnx"


def test_the_python_object_is_a_surrogate_that_plans(names: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """The page's own check passes, and a plan takes it."""
    own = {**names, "check_surrogate": check_surrogate}
    run("As a Python object", folder, own)
    result = placer.plan(small_problem(tmp_path), surrogate=own["RuleOfThumb"]())
    assert (result.verdict, result.configuration.surrogate.name) == ("accepted", "RuleOfThumb")


def test_the_page_names_the_whole_interface() -> None:
    """Every output, every metadata key and every check stands there, with the bounds that are tested."""
    for name in ("features", *OUTPUT_NAMES, *METADATA_KEYS, *FILE_CHECKS, "answers", *COMPARED):
        assert f"`{name}`" in PAGE, name
    assert f"[0, {1.0 + RATIO_SLACK:g}]" in PAGE
    assert f"by more than {CLEARLY:g}" in PAGE
    assert f"0, 1, 2 or {LARGEST_BATCH:,} rows" in PAGE
