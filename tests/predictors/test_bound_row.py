"""One row asked about through bound memory: the same numbers as any other way, whoever asks at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from predictors.bound_row import BoundRow
from predictors.catalog import shipped_surrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.probes import probe_features
from predictors.surrogate import OUTPUT_NAMES

FILE = str(shipped_surrogate("llama-3.1-8b-h100-64gb"))
ROWS = probe_features(40, seed=3).astype(np.float32)


@pytest.fixture(scope="module")
def surrogate() -> OnnxSurrogate:
    """Return a shipped surrogate."""
    return OnnxSurrogate.load(FILE)


def test_one_row_is_answered_as_among_others(surrogate: OnnxSurrogate) -> None:
    """But for the rounding of matrix products of another size."""
    together = surrogate.predict(ROWS)
    for index in range(len(ROWS)):
        alone = surrogate.predict(ROWS[[index]])
        for name in OUTPUT_NAMES:
            assert getattr(alone, name) == pytest.approx(getattr(together, name)[[index]], rel=1e-3, abs=1e-5)


def test_answers_are_not_overwritten_by_the_next_question() -> None:
    """The memory is used again, what was returned is not part of it."""
    bound = BoundRow(onnxruntime.InferenceSession(FILE), OUTPUT_NAMES)
    first = bound.ask(ROWS[:1])
    kept = first.copy()
    bound.ask(ROWS[1:2])
    assert np.array_equal(first, kept)


def test_threads_take_turns(surrogate: OnnxSurrogate) -> None:
    """Nobody gets the answer to another's question."""
    expected = [surrogate.predict(ROWS[[index]]).throughput_tps[0] for index in range(len(ROWS))]
    with ThreadPoolExecutor(4) as pool:
        asked = list(range(len(ROWS))) * 20
        answers = pool.map(lambda index: surrogate.predict(ROWS[[index]]).throughput_tps[0], asked)
        assert list(answers) == [expected[index] for index in asked]
