"""Problem files made from traces: valid, repeatable, and honest about their sources."""

import hashlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from placer.workload_builder import build_problem_document, dump_problem
from solvers.problem_file import ProblemFile
from twin.errors import InputError
from twin.traces import TraceColumns

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "azure-llama-400.yaml"
TRACE_ROWS = "time,prompt,output,adapter\n" + "".join(
    f"{index},{100 + index % 7},{10 + index % 3},lora {index % 4}\n" for index in range(40)
)


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    """Return a trace of forty requests, one per second, for four adapters."""
    path = tmp_path / "requests.csv"
    path.write_text(TRACE_ROWS, encoding="utf-8")
    return path


@pytest.fixture
def counts_path(tmp_path: Path) -> Path:
    """Return counted requests of three adapters."""
    path = tmp_path / "counts.csv"
    path.write_text("id,requests\na,5\nb,3\nc,2\n", encoding="utf-8")
    return path


def test_the_text_is_a_valid_problem_file(trace_path: Path) -> None:
    """What is written can be read by the schema that reads every problem, and says the same."""
    document = build_problem_document(trace_path, num_adapters=3, popularity="zipf:0.9", ranks=(8, 16))
    content = yaml.safe_load(dump_problem(document))
    assert content == document.content
    problem = ProblemFile.model_validate(content)
    assert problem.adapters is not None
    assert [adapter.name for adapter in problem.adapters] == ["adapter-0", "adapter-1", "adapter-2"]
    assert sum(adapter.rate_rps for adapter in problem.adapters) == pytest.approx(1.0, rel=1e-5)


def test_every_adapter_has_one_line(trace_path: Path) -> None:
    """Two versions of a file can be compared line by line."""
    text = dump_problem(build_problem_document(trace_path, num_adapters=3, popularity="uniform"))
    lines = [line for line in text.splitlines() if line.startswith("  - {name: adapter-")]
    assert len(lines) == 3
    assert all(line.endswith("}}") for line in lines)


def test_the_same_input_gives_the_same_text(trace_path: Path, counts_path: Path) -> None:
    """Nothing of the clock or the machine; another seed is another file."""
    first, same, other = (
        dump_problem(build_problem_document(trace_path, popularity=f"file:{counts_path}", copies=2, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_the_header_names_files_by_content_and_not_by_place(trace_path: Path, counts_path: Path) -> None:
    """Base names, checksums and the command; folders are nobody else's business."""
    document = build_problem_document(
        trace_path,
        popularity=f"file:{counts_path}",
        num_adapters=2,
        ranks=(8, 16),
        copies=3,
        jitter_s=2.5,
        seed=4,
        output_name="out.yaml",
    )
    header = "\n".join(document.header)
    for path in (trace_path, counts_path):
        assert f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in header
    assert str(trace_path.parent) not in header
    assert (
        "placer workload requests.csv --adapters 2 --popularity file:counts.csv --ranks 8,16 --replicate 3 "
        "--jitter 2.5 --seed 4 -o out.yaml"
    ) in header


def test_the_header_claims_no_licence_for_unknown_files(trace_path: Path) -> None:
    """A file of the same name with other content is not the published one."""
    document = build_problem_document(trace_path, num_adapters=2, popularity="uniform")
    assert "CC-BY" not in dump_problem(document)


def test_the_adapters_of_the_trace_are_used_when_no_popularity_is_given(trace_path: Path) -> None:
    """Names with spaces survive YAML; all options that matter are in the command."""
    columns = TraceColumns("time", "prompt", "output", "adapter", time_unit="ms")
    document = build_problem_document(
        trace_path, trace_format="csv", columns=columns, sort=True, drop_empty=True, model="qwen2.5-7b"
    )
    names = [record["name"] for record in yaml.safe_load(dump_problem(document))["adapters"]]
    assert names == ["lora 0", "lora 1", "lora 2", "lora 3"]
    command = shlex.split(document.header[1])
    assert command[:5] == ["placer", "workload", "requests.csv", "--format", "csv"]
    assert "--sort" in command
    assert "--drop-empty" in command
    assert "time=time,prompt=prompt,output=output,adapter=adapter" in command
    assert command[command.index("--time-unit") + 1] == "ms"
    assert command[command.index("--model") + 1] == "qwen2.5-7b"


def test_the_other_sections_are_the_callers(trace_path: Path) -> None:
    """GPU, engine, objective and limits go into the file as they are given, without the note on the default engine."""
    document = build_problem_document(
        trace_path,
        num_adapters=2,
        popularity="uniform",
        gpu={"name": "a100", "memory_gib": 79.0},
        engine={"max_num_seqs": 128},
        objective="least_cost",
        limits={"itl_p95_ms": 100},
    )
    content = yaml.safe_load(dump_problem(document))
    assert content["gpu_types"] == [{"name": "a100", "memory_gib": 79.0}]
    assert content["engine"] == {"max_num_seqs": 128}
    assert (content["objective"], content["limits"]) == ("least_cost", {"itl_p95_ms": 100})
    assert "measured with" not in "".join(document.header)


def test_a_bad_trace_is_reported_as_the_reader_says(tmp_path: Path) -> None:
    """The builder adds nothing to a message that already says what to do."""
    path = tmp_path / "bad.csv"
    path.write_text("time,prompt,output\n0,1,1\n1,0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="in row 2") as caught:
        build_problem_document(path, num_adapters=2, popularity="uniform")
    assert (caught.value.file, caught.value.field) == (str(path), "prompt")


def test_the_example_is_a_problem_of_four_hundred_adapters() -> None:
    """Small enough to ship, with the licence of the trace and the source of the popularity."""
    text = EXAMPLE.read_text(encoding="utf-8")
    problem = ProblemFile.model_validate(yaml.safe_load(text))
    assert problem.adapters is not None
    assert len(problem.adapters) == 400
    assert {adapter.rank for adapter in problem.adapters} == {8, 16, 32}
    assert len(text.encode()) < 80_000
    assert "CC-BY-4.0" in text
    assert "clusterdata" in text


def test_the_example_is_what_its_command_makes(data_dir: Path) -> None:
    """The command in the header, run on the public files, gives the shipped file byte by byte."""
    text = EXAMPLE.read_text(encoding="utf-8")
    copies = re.search(r"--replicate (\d+)", text)
    assert copies is not None
    document = build_problem_document(
        data_dir / "workloads" / "azure_llm2023_conv.csv",
        trace_format="azure",
        num_adapters=400,
        popularity=f"file:{data_dir / 'workloads' / 'alibaba_genai2026_lora_popularity.csv'}",
        ranks=(8, 16, 32),
        copies=int(copies.group(1)),
        seed=0,
        output_name="examples/azure-llama-400.yaml",
    )
    assert dump_problem(document) == text
