"""One row at a time: what a session of ONNX Runtime is bound to, so that nothing is allocated for a question."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from predictors.surrogate_file import INPUT_NAME


class BoundRow:
    """Memory for the features of one row, and for the outputs about it, that a session reads and writes.

    Handing arrays over takes a third of the time of a question about one row; here they stay where they are.
    Threads take turns.

    Parameters
    ----------
    session
        Of ONNX Runtime, on the CPU.
    outputs
        K names; each is float32 [1] for one row.
    """

    def __init__(self, session: Any, outputs: Sequence[str]) -> None:
        runtime = importlib.import_module("onnxruntime")
        self._session = session
        self._lock = threading.Lock()
        self._features = np.zeros((1, len(FEATURE_SCHEMA.names)), dtype=np.float32)
        self._outputs = np.zeros(len(outputs), dtype=np.float32)
        # There is no device but the CPU to wait for; and to ask whether a graph is captured on a GPU takes ten times as
        # long where nothing is said about it.
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._options.add_run_config_entry("gpu_graph_id", "-1")
        self._binding = session.io_binding()
        # Values on the CPU share the array's memory.
        self._values = [runtime.OrtValue.ortvalue_from_numpy(self._features)]
        self._binding.bind_ortvalue_input(INPUT_NAME, self._values[0])
        for index, name in enumerate(outputs):
            value = runtime.OrtValue.ortvalue_from_numpy(self._outputs[index : index + 1])
            self._binding.bind_ortvalue_output(name, value)
            self._values.append(value)

    def ask(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs for a row of features [1, F], float32 [K]."""
        with self._lock:
            self._features[:] = row
            self.run()
            return self._outputs.copy()

    def run(self) -> None:
        """Ask about the row that was asked about last, again."""
        self._session.run_with_iobinding(self._binding, self._options)
