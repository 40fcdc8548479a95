"""Problem files: what is read, and what every bad input is told."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from predictors.features import adapter_aggregates
from solvers.problem import Problem, ProblemFile, parse_problem, problem_schema
from tests.solvers.problems import make_adapter, make_problem
from twin.errors import InputError, PlacerError, ProfileError

GOOD = """\
schema_version: 1
model: llama-3.1-8b
gpu_types:
  - {name: h100-64gb, memory_gib: 63.43, cost_per_hour: 3.0, profile: llama-3.1-8b-h100-64gb}
engine: {max_num_seqs: 256, max_num_batched_tokens: 2048, gpu_memory_utilization: 0.9}
objective: fewest_gpus
limits: {starvation_tolerance: 0.1, itl_p95_ms: 100}
adapters:
  - {name: chat, rank: 16, rate_rps: 0.42, prompt_tokens: {mean: 223, std: 247, max: 1024}, output_tokens: {mean: 197}}
  - name: a7
    rank: 8
    rate_rps: 0.1
    prompt_tokens: {mean: 223}
    output_tokens: {mean: 197}
"""

Parse = Callable[[str], Problem]


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Return what parses a text as ``workload.yaml`` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def parse_text(text: str) -> Problem:
        Path("workload.yaml").write_text(text, encoding="utf-8")
        return parse_problem(yaml.safe_load(text), file="workload.yaml", base_directory=tmp_path)

    return parse_text


def changed(old: str, new: str) -> str:
    """Return the good file with one replacement, which must apply."""
    assert old in GOOD
    return GOOD.replace(old, new)


def test_the_documented_example_is_read(parse: Parse) -> None:
    """The file of the design page is the one that must work."""
    problem = parse(GOOD)
    assert [adapter.name for adapter in problem.adapters] == ["chat", "a7"]
    assert (problem.fixed_max_loras, problem.fixed_max_lora_rank) == (None, None)
    assert problem.limits.itl_p95_ms == 100
    assert problem.engine.max_num_seqs == 256
    assert problem.profiles[0].name == "llama-3.1-8b-h100-64gb"
    assert problem.ranks.tolist() == [16, 8]


def test_settings_given_in_the_engine_are_fixed(parse: Parse) -> None:
    """Slots and rank are the planner's choice unless the user makes it."""
    problem = parse(changed("engine: {", "engine: {max_loras: 12, max_lora_rank: 32, "))
    assert (problem.fixed_max_loras, problem.fixed_max_lora_rank) == (12, 32)
    engine = problem.replica(0, 12, 32, 40).engine
    assert (engine.max_loras, engine.max_lora_rank, engine.max_cpu_loras) == (12, 32, 40)


def test_a_profile_is_found_by_model_and_gpu(parse: Parse) -> None:
    """Nobody needs to know a profile's name while there is one for the GPU."""
    assert parse(changed(", profile: llama-3.1-8b-h100-64gb", "")).profiles[0].model == "llama-3.1-8b"


def test_phases_are_read(parse: Parse) -> None:
    """Rate scales over time belong to the workload."""
    problem = parse(GOOD + "phases:\n  - {start_s: 300, rate_scale: 1.5}\n")
    assert problem.workload.phases[0].rate_scale == 1.5


RATE_RULE = "`rate_rps` must be a finite number in requests per second, such as 0.42. "
Row = tuple[str, str, str, str, object]
TABLE: list[Row] = [
    (
        "rank: 8",
        "rank: 12",
        "`rank` must be one of 8, 16, 32, 64, 128, 256, 320, 512. Got 12 (adapter 'a7', workload.yaml:11).",
        "adapters.1.rank",
        12,
    ),
    (
        "rate_rps: 0.1",
        "rate_rps: -1",
        "`rate_rps` must be at least 0. Got -1 (adapter 'a7', workload.yaml:12).",
        "adapters.1.rate_rps",
        -1,
    ),
    (
        "rate_rps: 0.1",
        "rate_rps: 6/min",
        RATE_RULE + "Got '6/min' (adapter 'a7', workload.yaml:12).",
        "adapters.1.rate_rps",
        "6/min",
    ),
    (
        "rate_rps: 0.1",
        "rate_rps: .inf",
        RATE_RULE + "Got inf (adapter 'a7', workload.yaml:12).",
        "adapters.1.rate_rps",
        float("inf"),
    ),
    (
        "    rate_rps: 0.1\n",
        "",
        "`rate_rps` must be given. It is missing (adapter 'a7', workload.yaml:10).",
        "adapters.1.rate_rps",
        None,
    ),
    (
        "prompt_tokens: {mean: 223}",
        "prompt_tokens: {mean: 0}",
        "`mean` must be at least 1. Got 0 (adapter 'a7', workload.yaml:13).",
        "adapters.1.prompt_tokens.mean",
        0,
    ),
    (
        "prompt_tokens: {mean: 223}",
        "prompt_tokens: 223",
        "`prompt_tokens` must be a mapping of fields. Got 223 (adapter 'a7', workload.yaml:13).",
        "adapters.1.prompt_tokens",
        223,
    ),
    (
        "prompt_tokens: {mean: 223}",
        "prompt_tokens: {}",
        "`prompt_tokens`: give exactly one of `mean` and `quantiles` (adapter 'a7', workload.yaml:13).",
        "adapters.1.prompt_tokens",
        {},
    ),
    (
        "prompt_tokens: {mean: 223}",
        "prompt_tokens: {mean: 140000}",
        (
            "prompts must be shorter than the longest sequence, 131072 tokens. "
            "Got up to 140000 (adapter 'a7', workload.yaml:13)."
        ),
        "adapters.1.prompt_tokens",
        140000.0,
    ),
    (
        "name: a7",
        "name: chat",
        ("adapter names must be unique. 'chat' is the name of adapters 0 and 1 (adapter 'chat', workload.yaml:10)."),
        "adapters.1.name",
        "chat",
    ),
    (
        "gpu_memory_utilization: 0.9",
        "gpu_memory_utilization: 90",
        "`gpu_memory_utilization` must be at most 1. Got 90 (workload.yaml:5).",
        "engine.gpu_memory_utilization",
        90,
    ),
    (
        "max_num_seqs: 256",
        "max_num_seqs: 4096",
        (
            "`max_num_batched_tokens` must be at least `max_num_seqs` (4096), as vLLM demands. Got 2048. "
            "Raise the one or lower the other (workload.yaml:5)."
        ),
        "engine",
        {"max_num_seqs": 4096, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9},
    ),
    (
        "engine: {",
        "engine: {enable_lora: false, ",
        "`enable_lora` must be true to serve adapters. Got False (workload.yaml:5).",
        "engine.enable_lora",
        False,
    ),
    (
        "engine: {",
        "engine: {max_cpu_loras: 0, ",
        "`max_cpu_loras` must be at least 1. Got 0 (workload.yaml:5).",
        "engine.max_cpu_loras",
        0,
    ),
    (
        "objective: fewest_gpus",
        "objective: fastest",
        "`objective` must be one of 'fewest_gpus', 'least_cost', 'lowest_latency'. Got 'fastest' (workload.yaml:6).",
        "objective",
        "fastest",
    ),
    (
        "schema_version: 1",
        "schema_version: 2",
        "`schema_version` must be 1. Got 2 (workload.yaml:1).",
        "schema_version",
        2,
    ),
    (
        "model: llama-3.1-8b\n",
        "model: lama\n",
        "`model` must be one of llama-3.1-8b, qwen2.5-7b or the path of a config.json. Got 'lama' (workload.yaml:2).",
        "model",
        "lama",
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[1][:30].strip() for row in TABLE])
def test_bad_input_is_told_what_must_hold_and_where(parse: Parse, row: Row) -> None:
    """The message names field, value, adapter and line, and the exception carries them apart."""
    old, new, message, field, value = row
    with pytest.raises(InputError) as caught:
        parse(changed(old, new))
    assert str(caught.value) == message
    assert (caught.value.file, caught.value.field, caught.value.value) == ("workload.yaml", field, value)


def test_a_rate_that_is_no_number_is_refused(parse: Parse) -> None:
    """NaN passes comparisons with a bound, so it needs a check of its own."""
    with pytest.raises(InputError, match=r"`rate_rps` must be a finite number .* Got nan \(adapter 'a7'"):
        parse(changed("rate_rps: 0.1", "rate_rps: .nan"))


HINTS: list[tuple[str, str, str]] = [
    ("rate_rps: 0.1", "rate_rsp: 0.1", "did you mean `rate_rps`?"),
    (
        "rate_rps: 0.1",
        "rate_rpm: 6",
        "did you mean `rate_rps`, in requests per second: divide requests per minute by 60?",
    ),
    ("memory_gib: 63.43", "memory_gb: 68", "did you mean `memory_gib`, in GiB: one GB is 0.931 GiB?"),
    ("itl_p95_ms: 100", "itl_p95_s: 0.1", "did you mean `itl_p95_ms`, in milliseconds: multiply seconds by 1000?"),
    ("objective: fewest_gpus", "objectiv: fewest_gpus", "did you mean `objective`?"),
    ("{mean: 223, std: 247, max: 1024}", "{mean: 223, sdt: 247}", "did you mean `std`?"),
    ("max_num_seqs: 256", "max_seqs: 256", "did you mean `max_num_seqs`?"),
    (
        "rank: 8",
        "rank: 8\n    zzz: 1",
        "known fields: name, rank, rate_rps, prompt_tokens, output_tokens, gap_cv, gap_law",
    ),
    ("gpu_memory_utilization: 0.9", "gpu_memory_utilization: 90", "a share, not a percentage: 0.9"),
    ("starvation_tolerance: 0.1", "starvation_tolerance: 10", "a share, not a percentage: 0.1"),
    ("prompt_tokens: {mean: 223}", "prompt_tokens: 223", "write {mean: 223} for requests of that length"),
    ("itl_p95_ms: 100", "itl_p95_ms: 0.1", "the unit is milliseconds: write 100 for 0.1 s"),
]


@pytest.mark.parametrize(("old", "new", "hint"), HINTS, ids=[row[1][:30].strip() for row in HINTS])
def test_a_likely_mistake_gets_a_hint(parse: Parse, old: str, new: str, hint: str) -> None:
    """A typo, another unit or a percentage is recognised."""
    with pytest.raises(InputError) as caught:
        parse(changed(old, new))
    assert hint == caught.value.hint


def test_a_latency_limit_below_an_empty_step_is_refused(parse: Parse) -> None:
    """Seconds typed as milliseconds would otherwise end as "no plan found"."""
    with pytest.raises(
        InputError, match=r"must be at least the [\d.]+ ms of an empty step. Got 0.1 \(workload.yaml:7\)"
    ):
        parse(changed("itl_p95_ms: 100", "itl_p95_ms: 0.1"))


def test_an_unknown_key_is_named_with_its_line(parse: Parse) -> None:
    """Unknown keys are refused: a typo must not silently become a default."""
    with pytest.raises(InputError) as caught:
        parse(changed("rank: 8", "rank: 8\n    zzz: 1"))
    assert str(caught.value) == "every field of `adapters.1` must be known. Got `zzz` (adapter 'a7', workload.yaml:12)."


def test_several_mistakes_are_counted(parse: Parse) -> None:
    """The first is explained, the others are not hidden."""
    with pytest.raises(
        InputError, match=r"Got 12 \(adapter 'a7', workload.yaml:11\)\. And 2 more errors in the file\.$"
    ):
        parse(changed("rank: 8", "rank: 12\n    zzz: 1").replace("rate_rps: 0.1", "rate_rps: -1"))


def test_a_rank_above_what_memory_allows_is_refused(parse: Parse) -> None:
    """A rank that vLLM supports can still be too large for the GPU."""
    text = changed("gpu_memory_utilization: 0.9", "gpu_memory_utilization: 0.58")
    text = text.replace("engine: {", "engine: {max_loras: 2, ").replace("rank: 8", "rank: 512")
    with pytest.raises(InputError) as caught:
        parse(text)
    assert str(caught.value).startswith("`rank` must be at most ")
    assert "the largest with which a GPU of type 'h100-64gb' starts (2 slots). Got 512 (adapter 'a7'" in str(
        caught.value
    )
    assert caught.value.field == "adapters.1.rank"


def test_a_rank_above_the_fixed_rank_is_refused(parse: Parse) -> None:
    """The user's own max_lora_rank is a limit like the memory's."""
    with pytest.raises(InputError, match=r"`rank` must be at most 8, the max_lora_rank that `engine` fixes. Got 16"):
        parse(changed("engine: {", "engine: {max_lora_rank: 8, "))


def test_a_model_that_does_not_fit_is_told_in_the_words_of_vllm(parse: Parse) -> None:
    """Users search the web for vLLM's message, so it is quoted."""
    with pytest.raises(InputError, match=r"No available memory for the cache blocks") as caught:
        parse(changed("gpu_memory_utilization: 0.9", "gpu_memory_utilization: 0.25"))
    assert caught.value.field == "gpu_types.0.memory_gib"
    with pytest.raises(InputError, match=r"To serve at least one request with the model's max seq len"):
        parse(changed("gpu_memory_utilization: 0.9", "gpu_memory_utilization: 0.4"))


def test_slots_that_do_not_fit_are_told_in_the_words_of_vllm(parse: Parse) -> None:
    """Fixed slots can be too many for every GPU."""
    with pytest.raises(InputError, match=r"With 2000 LoRA slots of rank 8 it does not start .* CUDA out of memory"):
        parse(changed("engine: {", "engine: {max_loras: 2000, "))


def test_a_profile_of_another_gpu_or_model_is_refused(parse: Parse) -> None:
    """Step times of another GPU or model would plan another fleet."""
    with pytest.raises(ProfileError, match=r"the profile's GPU must be the planned one \(80 GiB\)") as caught:
        parse(changed("memory_gib: 63.43", "memory_gib: 80"))
    assert (caught.value.field, caught.value.file) == ("gpu_types.0.profile", "workload.yaml")
    with pytest.raises(ProfileError, match=r"the profile's model must be the planned one, 'qwen2.5-7b'"):
        parse(changed("model: llama-3.1-8b\n", "model: qwen2.5-7b\n"))


def test_a_gpu_without_a_shipped_profile_is_told_which_there_are(parse: Parse) -> None:
    """Without `profile`, the GPU must be one that was measured."""
    with pytest.raises(InputError, match=r"None is shipped for 'llama-3.1-8b' with 24 GiB") as caught:
        parse(changed("memory_gib: 63.43", "memory_gib: 24").replace(", profile: llama-3.1-8b-h100-64gb", ""))
    assert "llama-3.1-8b-h100-64gb" in (caught.value.hint or "")


@pytest.mark.parametrize("adapters", ["adapters: []\n", ""])
def test_an_empty_workload_is_refused(parse: Parse, adapters: str) -> None:
    """There is nothing to place without adapters."""
    with pytest.raises(
        InputError, match=r"`adapters` must have at least 1 entry|exactly one of `adapters` and `trace`"
    ):
        parse(GOOD[: GOOD.index("adapters:")] + adapters)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_file_that_is_no_mapping_is_refused(data: object, tmp_path: Path) -> None:
    """An empty file, or a list, is no problem."""
    with pytest.raises(InputError, match="a problem must be a mapping of fields"):
        parse_problem(data, file="workload.yaml", base_directory=tmp_path)


def test_two_gpu_types_of_one_name_are_refused(parse: Parse) -> None:
    """Plans name GPU types, so the names must be unique."""
    line = "  - {name: h100-64gb, memory_gib: 63.43, cost_per_hour: 3.0, profile: llama-3.1-8b-h100-64gb}\n"
    with pytest.raises(InputError, match="GPU type names must be unique"):
        parse(changed(line, line + line))


MORE: list[tuple[str, str, str]] = [
    ("model: llama-3.1-8b\n", "model: ''\n", "`model` must not be empty. Got '' (workload.yaml:2)."),
    ("name: a7", "name: [a7]", "`name` must be text. Got ['a7'] (adapter ['a7'], workload.yaml:10)."),
    ("gpu_types:\n  - {", "gpu_types:\n    {", "`gpu_types` must be a list. Got "),
    (
        "engine: {",
        "engine: {enable_lora: maybe, ",
        "`enable_lora` must be true or false. Got 'maybe' (workload.yaml:5).",
    ),
    ("max_num_seqs: 256", "max_num_seqs: 2.5", "`max_num_seqs` must be a whole number. Got 2.5 (workload.yaml:5)."),
    (
        "memory_gib: 63.43",
        "memory_gib: -1",
        "`memory_gib` must be above 0. Got -1 (GPU type 'h100-64gb', workload.yaml:4).",
    ),
    (
        "memory_gib: 63.43",
        "memory_gib: 2000000",
        "`memory_gib` must be at most 1e+06. Got 2000000 (GPU type 'h100-64gb', workload.yaml:4).",
    ),
    (
        "starvation_tolerance: 0.1",
        "starvation_tolerance: 1",
        "`starvation_tolerance` must be below 1. Got 1 (workload.yaml:7).",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), MORE, ids=[row[1].strip()[:30] for row in MORE])
def test_other_rules_read_like_sentences_too(parse: Parse, old: str, new: str, message: str) -> None:
    """Pydantic's kinds of errors are translated, not quoted."""
    with pytest.raises(InputError) as caught:
        parse(changed(old, new))
    assert str(caught.value).startswith(message)


def test_a_broken_config_of_the_model_is_reported_by_its_own_reader(parse: Parse) -> None:
    """The offending file is config.json, not the problem."""
    Path("config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="`architectures` must name one of") as caught:
        parse(changed("model: llama-3.1-8b\n", "model: config.json\n"))
    assert (caught.value.file or "").endswith("config.json")


def test_a_prompt_distribution_that_reaches_the_context_is_refused(parse: Parse) -> None:
    """Quantiles and the tail of an unbounded lognormal count, not only the mean."""
    for lengths in ("{quantiles: [10, 140000]}", "{mean: 20000, std: 40000}"):
        with pytest.raises(InputError, match="prompts must be shorter than the longest sequence, 131072 tokens"):
            parse(changed("prompt_tokens: {mean: 223}", f"prompt_tokens: {lengths}"))


def test_a_trace_of_too_long_prompts_points_at_the_trace(parse: Parse) -> None:
    """Adapters that come from a trace have no line of their own."""
    Path("trace.csv").write_text("time,prompt,output\n0,140000,5\n1,20,5\n", encoding="utf-8")
    with pytest.raises(InputError, match="prompts must be shorter than the longest sequence") as caught:
        parse(GOOD[: GOOD.index("adapters:")] + "trace: {file: trace.csv, adapters: {count: 1}}\n")
    assert caught.value.field == "trace.adapters"


def test_json_errors_have_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is YAML, so the same reader finds the line."""
    monkeypatch.chdir(tmp_path)
    Path("workload.json").write_text('{\n"model": "llama-3.1-8b",\n"gpu_types": []\n}', encoding="utf-8")
    with pytest.raises(InputError, match=r"`gpu_types` must have at least 1 entry. Got \[\] \(workload.json:3\)"):
        parse_problem({"model": "llama-3.1-8b", "gpu_types": []}, file="workload.json", base_directory=tmp_path)


def test_errors_of_data_without_a_file_name_no_line(tmp_path: Path) -> None:
    """An HTTP request is no file: the message still says where in the data."""
    data = yaml.safe_load(changed("rank: 8", "rank: 12"))
    with pytest.raises(InputError, match=r"Got 12 \(adapter 'a7', request\)\.$"):
        parse_problem(data, file="request", base_directory=tmp_path)


def test_the_schema_describes_the_example(tmp_path: Path) -> None:
    """Editors complete by it: every key of the example is in it, and nothing else is allowed."""
    schema = problem_schema()
    assert schema["additionalProperties"] is False
    assert set(yaml.safe_load(GOOD)) <= set(schema["properties"])
    assert schema["properties"].keys() == ProblemFile.model_fields.keys()
    assert parse_problem(yaml.safe_load(GOOD), file="-", base_directory=tmp_path).adapters


def many_adapters(count: int) -> dict[str, Any]:
    """Return the data of a problem with `count` different adapters."""
    data: dict[str, Any] = copy.deepcopy(yaml.safe_load(GOOD))
    data["adapters"] = [
        {
            "name": f"a{index}",
            "rank": (8, 16, 32)[index % 3],
            "rate_rps": 0.1 + index * 1e-5,
            "prompt_tokens": {"mean": 223 + index * 0.01, "std": 247, "max": 1024},
            "output_tokens": {"mean": 197, "std": 209 + index * 0.01},
        }
        for index in range(count)
    ]
    return data


def test_ten_thousand_adapters_parse_in_linear_time(tmp_path: Path) -> None:
    """Reading must never be what a user waits for: processor time per adapter does not grow with their number."""

    def processor_s(count: int) -> float:
        data = many_adapters(count)
        start_s = time.process_time()
        parse_problem(data, file="-", base_directory=tmp_path)
        return time.process_time() - start_s

    processor_s(100)
    small_s = min(processor_s(1000) for _ in range(3))
    assert processor_s(10_000) < 40.0 * small_s


def test_sums_of_aggregates_do_not_depend_on_the_order() -> None:
    """A set that grew by additions and removals must have the features of the same set summed from scratch."""
    generator = np.random.default_rng(0)
    adapters = [make_adapter(f"a{i}", rate_rps=float(generator.lognormal(-3, 2))) for i in range(300)]
    rows = make_problem(adapters).aggregates
    expected = rows.sum(axis=0)
    for _ in range(20):
        order = generator.permutation(300)
        total = np.zeros(rows.shape[1])
        for index in order:
            total = total + rows[index]
        np.testing.assert_array_equal(total, expected)
        np.testing.assert_array_equal(total - rows[order[:100]].sum(axis=0), rows[order[100:]].sum(axis=0))


def test_rounded_aggregates_are_those_of_the_features() -> None:
    """The rounding that makes sums exact is far below float32."""
    adapters = [make_adapter("a", rate_rps=1e-4), make_adapter("b", rate_rps=30.0, rank=32)]
    problem = make_problem(adapters)
    exact = adapter_aggregates(adapters)
    assert np.all(np.abs(problem.aggregates - exact) <= 2.0**-49 * exact.sum(axis=0))


def test_adapter_lists_are_validated_by_the_domain(tmp_path: Path) -> None:
    """The file's adapters are the domain's: no second definition can drift."""
    data = many_adapters(3)
    problem = parse_problem(data, file="-", base_directory=tmp_path)
    annotation: Any = ProblemFile.model_fields["adapters"].annotation
    assert problem.adapters == TypeAdapter(annotation).validate_python(data["adapters"])


class TestTrace:
    """A problem may name a trace instead of adapters."""

    TRACE = "time,prompt,output,adapter\n0.0,10,20,x\n1.0,30,40,y\n2.0,50,60,x\n"

    def problem(self, section: str) -> str:
        """Return a problem file with a trace section."""
        Path("trace.csv").write_text(self.TRACE, encoding="utf-8")
        return GOOD[: GOOD.index("adapters:")] + f"trace: {section}\n"

    def test_adapters_named_by_the_trace(self, parse: Parse) -> None:
        """Rates are requests over the trace's duration."""
        problem = parse(self.problem("{file: trace.csv, adapters: {popularity: given, ranks: [8]}}"))
        assert {adapter.name: adapter.rate_rps for adapter in problem.adapters} == pytest.approx(
            {"x": 2 / 3, "y": 1 / 3}
        )
        assert problem.workload.trace is None

    def test_adapters_by_popularity(self, parse: Parse) -> None:
        """The count and the ranks are the user's."""
        problem = parse(self.problem("{file: trace.csv, adapters: {count: 4, popularity: 'zipf:0.9', ranks: [8, 32]}}"))
        assert sorted(problem.ranks.tolist()) == [8, 8, 32, 32]
        assert sum(adapter.rate_rps for adapter in problem.adapters) == pytest.approx(1.0)

    def test_replay_keeps_the_requests(self, parse: Parse) -> None:
        """A replayed trace is simulated request by request."""
        problem = parse(self.problem("{file: trace.csv, replay: true, adapters: {popularity: given}}"))
        assert problem.workload.trace is not None
        assert len(problem.workload.trace) == 3

    @pytest.mark.parametrize(
        ("section", "message", "field"),
        [
            (
                "{file: trace.csv, adapters: {popularity: given, count: 3}}",
                "`count` must be left out",
                "trace.adapters.count",
            ),
            ("{file: trace.csv, adapters: {popularity: 'zipf:1'}}", "`count` must be given", "trace.adapters.count"),
            ("{file: none.csv, adapters: {count: 2}}", "none.csv", "trace"),
            ("{file: trace.csv, columns: {time: when}, adapters: {count: 2}}", "when", "trace"),
            (
                "{file: trace.csv, adapters: {cuont: 2}}",
                "every field of `trace.adapters` must be known",
                "trace.adapters.cuont",
            ),
            ("{file: trace.csv, adapters: {count: 2, ranks: [12]}}", "must be one of 8, 16", "trace.adapters.ranks.0"),
        ],
    )
    def test_bad_sections_are_refused(self, parse: Parse, section: str, message: str, field: str) -> None:
        """The message names the section's field."""
        with pytest.raises(PlacerError) as caught:
            parse(self.problem(section))
        assert message in str(caught.value)
        assert (caught.value.field or "").startswith(field)

    def test_a_replayed_trace_has_no_phases(self, parse: Parse) -> None:
        """Requests that are replayed cannot be rescaled."""
        text = self.problem("{file: trace.csv, replay: true, adapters: {popularity: given}}")
        with pytest.raises(InputError, match="a trace that is replayed must have no `phases`"):
            parse(text + "phases: [{start_s: 10, rate_scale: 2}]\n")


def test_the_lowest_latency_needs_a_number_of_gpus(parse: Parse) -> None:
    """Without `max_count` it would be one GPU for each adapter."""
    with pytest.raises(InputError, match="max_count") as raised:
        parse(changed("objective: fewest_gpus", "objective: lowest_latency"))
    assert raised.value.field == "gpu_types.0.max_count"
