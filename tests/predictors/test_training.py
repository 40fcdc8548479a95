"""From twin runs to a surrogate, end to end on little data: training exports the best of the families it searched."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from predictors import training, training_data
from predictors.catalog import shipped_surrogate
from predictors.contract import check_surrogate
from predictors.dataset import ROWS_PER_SHARD, load_dataset, sample_dataset
from predictors.errors import DISTANCE_EDGES, error_over_distance, error_table, reliability
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.packed_verdicts import GpusPacked, judge_packed_gpus
from predictors.provenance import profile_fingerprint
from predictors.risk import threshold_facts
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from predictors.surrogate_file import SurrogateFile
from predictors.targets import TrainingRows
from predictors.training import TrainingSettings, train_surrogate
from tests.predictors.made_up_rows import NEEDS_TORCH
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile, load_profile

NAME = "llama-3.1-8b-h100-64gb"
HORIZON_S, WARMUP_S = 40.0, 10.0
NUM_ROWS = 5 * ROWS_PER_SHARD
RISK_GPUS = 5
TREES = TrainingSettings(families=("boosting", "tree"), max_trials=1, risk_gpus=RISK_GPUS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of five shards of very short simulations."""
    path = tmp_path_factory.mktemp("data") / "set"
    sample_dataset(
        load_profile(NAME),
        rows=NUM_ROWS,
        output=path,
        seed=7,
        seeds=1,
        horizon_s=HORIZON_S,
        warmup_s=WARMUP_S,
        workers=1,
    )
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> training.TrainingReport:
    """Return a surrogate trained on the small data set."""
    output = tmp_path_factory.mktemp("model") / "small.onnx"
    return train_surrogate([folder], load_profile(NAME), output=output, settings=TREES, workers=1)


def test_every_family_is_searched_and_the_best_is_written(trained: training.TrainingReport) -> None:
    """Best score first; of each, its errors, size, latency, and that the export is what was fitted."""
    assert sorted(family.name for family in trained.families) == sorted(TREES.families)
    scores = [family.score for family in trained.families]
    assert (trained.chosen, scores) == (trained.families[0].name, sorted(scores))
    for family in trained.families:
        assert set(family.errors) == {"all", "near_border", "packed"}
        assert family.size_bytes > 1000
        assert set(family.latency_us) == {1, 100, 10_000}
        assert max(family.parity.values()) <= 0.005
        assert set(family.parity) == set(OUTPUT_NAMES)


def test_a_trained_model_is_a_surrogate(trained: training.TrainingReport, profile: PerformanceProfile) -> None:
    """Even one of little data keeps the contract, and its metadata says what it is."""
    surrogate = OnnxSurrogate.load(trained.file)
    assert (surrogate.profile_name, surrogate.profile_fingerprint) == (profile.name, profile_fingerprint(profile))
    check_surrogate(surrogate)
    facts = json.loads(surrogate.metadata["training"])
    assert facts["fitted_rows"] + facts["validation_rows"] + facts["test_rows"] == facts["rows"]
    assert facts["errors"] == trained.errors
    assert json.loads(surrogate.metadata["feature_schema"])["outputs"]["itl_s"].startswith("95th percentile")


def test_it_has_learned_something(trained: training.TrainingReport) -> None:
    """Some dozens of sets are enough to beat a coin (0.25), because the physics is in the graph."""
    assert trained.errors["all"]["brier"] < 0.2


def test_the_training_rows_are_in_the_domain(trained: training.TrainingReport, folder: Path) -> None:
    """The domain in the file is that of the data."""
    features = load_dataset(folder)[0][list(FEATURE_SCHEMA.names)].to_numpy(dtype=np.float32)
    assert not OnnxSurrogate.load(trained.file).outside_domain(features).any()


def test_the_card_states_the_errors_and_how_to_repeat(trained: training.TrainingReport) -> None:
    """A card without its numbers or its command is an advertisement."""
    card = trained.card.read_text(encoding="utf-8")
    f1 = [f"{trained.errors[subset]['starvation_f1']:.3f}" for subset in ("all", "near_border", "packed")]
    assert f"| starvation: F1 | {' | '.join(f1)} |" in card
    assert f"--horizon {HORIZON_S:g} --warmup {WARMUP_S:g}" in card
    assert "placer train rows1 --profile" in card


def test_the_thresholds_come_from_gpus_packed_against_the_exported_model(
    trained: training.TrainingReport, profile: PerformanceProfile
) -> None:
    """What the file says is what packing against the file gives; the card says it, too, and how to repeat it."""
    facts = json.loads(OnnxSurrogate.load(trained.file).metadata["training"])["thresholds"]
    verdicts = judge_packed_gpus(OnnxSurrogate.load(trained.file), profile, num_gpus=RISK_GPUS, seed=TREES.seed)
    assert facts == threshold_facts(verdicts)
    assert facts["gpus"] + facts["took_all"] + facts["took_none"] == RISK_GPUS
    card = trained.card.read_text(encoding="utf-8")
    assert f"--risk-gpus {RISK_GPUS}" in card
    assert f"from {facts['gpus']} GPUs" in " ".join(card.split())


def test_without_gpus_there_is_no_threshold(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """The file is a surrogate all the same; who asks it for a risk is told."""
    settings = TrainingSettings(families=("tree",), max_trials=1, risk_gpus=0)
    report = train_surrogate([folder], profile, output=tmp_path / "plain.onnx", settings=settings)
    assert "No GPU was packed" in report.card.read_text(encoding="utf-8")
    with pytest.raises(SurrogateError, match="knows no risk, and"):
        OnnxSurrogate.load(report.file).threshold_for(0.05)


def test_training_twice_gives_the_same_model(
    trained: training.TrainingReport, folder: Path, profile: PerformanceProfile, tmp_path: Path
) -> None:
    """Same data, same seed, same bytes, whatever the workers."""
    events: list[object] = []
    again = train_surrogate(
        [folder], profile, output=tmp_path / "again.onnx", settings=TREES, workers=2, observer=events.append
    )
    packed = [event for event in events if isinstance(event, GpusPacked)]
    assert packed == [GpusPacked(done, RISK_GPUS) for done in range(1, RISK_GPUS + 1)]
    assert again.file.read_bytes() == trained.file.read_bytes()


def test_scenarios_of_two_data_sets_stay_apart(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """Rows of both count; equal numbers in two folders are different scenarios."""
    settings = TrainingSettings(families=("tree",), max_trials=1, risk_gpus=0)
    second = tmp_path / "second"
    sample_dataset(
        profile, rows=1, output=second, seed=8, seeds=1, horizon_s=HORIZON_S, warmup_s=WARMUP_S, loads=(7, 6), workers=1
    )
    report = train_surrogate([folder, second], profile, output=tmp_path / "two.onnx", settings=settings)
    tables = [load_dataset(part)[0] for part in (folder, second)]
    assert report.facts["rows"] == sum(map(len, tables))
    assert report.facts["scenarios"] == sum(table["scenario"].nunique() for table in tables)


def test_the_same_scenarios_twice_are_refused(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """A surrogate would be fitted to the very scenarios that it is judged by."""
    with pytest.raises(InputError) as caught:
        train_surrogate([folder, folder], profile, output=tmp_path / "twice.onnx", settings=TREES)
    assert (caught.value.field, caught.value.value) == ("seed", 7)


def test_rows_of_another_window_are_kept_apart(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """The first data set says how long a surrogate's window is; rows of others are fitted to only, and told about."""
    longer = tmp_path / "longer"
    sample_dataset(profile, rows=1, output=longer, seed=8, seeds=1, horizon_s=80.0, warmup_s=10.0, workers=1)
    data = training_data.read_training_data([folder, longer], profile)
    own, _ = load_dataset(folder)
    assert len(data.rows) == len(own)
    (kin,) = data.kin
    assert (kin.profile, len(kin.rows)) == (profile, len(load_dataset(longer)[0]))
    assert kin.window == pytest.approx((80.0 - 10.0) / (HORIZON_S - WARMUP_S))
    settings = TrainingSettings(families=("tree",), max_trials=1, risk_gpus=0)
    report = train_surrogate([folder, longer], profile, output=tmp_path / "two.onnx", settings=settings)
    card = report.card.read_text(encoding="utf-8")
    assert "rows measured from 10 to 80 s were fitted to as well." in card
    assert "--kin" not in card


def test_another_profile_is_refused(folder: Path, tmp_path: Path) -> None:
    """Labels of one profile say nothing about another."""
    with pytest.raises(InputError) as caught:
        train_surrogate([folder], load_profile("qwen2.5-7b-h100-64gb"), output=tmp_path / "m.onnx")
    assert caught.value.field == "profile"


def test_rows_of_another_profile_are_learned_from(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """If that profile is named: they are fitted to and no more, and the card and its commands say so."""
    other = load_profile("qwen2.5-7b-h100-64gb")
    sample_dataset(
        other, rows=1, output=tmp_path / "kin", seeds=1, horizon_s=40.0, warmup_s=10.0, loads=(7, 6), workers=1
    )
    settings = TrainingSettings(families=("tree",), max_trials=1, risk_gpus=0)
    alone = train_surrogate([folder], profile, output=tmp_path / "alone.onnx", settings=settings)
    taught = train_surrogate(
        [tmp_path / "kin", folder], profile, output=tmp_path / "kin.onnx", kin=[other], settings=settings
    )
    assert [taught.facts[name] for name in ("rows", "test_rows", "validation_rows")] == [
        alone.facts[name] for name in ("rows", "test_rows", "validation_rows")
    ]
    (kin,) = taught.facts["kin"]
    assert (kin["rows"], kin["profile"]["name"], kin["loads"]) == (104, other.name, [7, 6])
    assert taught.file.read_bytes() != alone.file.read_bytes()
    card = taught.card.read_text(encoding="utf-8")
    assert f"104 rows that {other.name} labelled, measured from 10 to 40 s were fitted to as well." in card
    assert f"placer dataset --profile {other.name} --output rows2 --rows 104" in card
    assert f"placer train rows1 rows2 --kin {other.name} --profile {NAME}" in card
    assert "--kin" not in alone.card.read_text(encoding="utf-8")


@NEEDS_TORCH
def test_a_fit_goes_on_from_a_shipped_surrogate(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """Its domain stays, and the card says where the network is from and how to make that, too."""
    start = shipped_surrogate(NAME)
    assert start is not None
    settings = TrainingSettings(families=("neural",), max_trials=1, risk_gpus=0)
    report = train_surrogate([folder], profile, output=tmp_path / "on.onnx", start=start, settings=settings)
    before, after = (SurrogateFile.open(file).domain() for file in (start, report.file))
    assert after == after.joined(before)
    assert report.facts["start"]["file"] == start.name
    card = report.card.read_text(encoding="utf-8")
    assert f"The network began as that of `{start.name}`" in " ".join(card.split())
    assert f"--output start-{NAME}.onnx" in card
    assert f"placer train rows1 --start start-{NAME}.onnx --profile {NAME} --output {NAME}.onnx" in card


def test_only_networks_go_on_from_another(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """Trees are fitted anew each time."""
    with pytest.raises(InputError, match="families must be of neural, polyhedra where a fit goes on from a network"):
        train_surrogate([folder], profile, output=tmp_path / "m.onnx", start=shipped_surrogate(NAME), settings=TREES)


def test_an_unwritable_output_is_named(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """The path is in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        train_surrogate([folder], profile, output=tmp_path / "file" / "m.onnx")
    assert caught.value.field == "output"


def test_without_the_extra_the_message_names_it(
    folder: Path, profile: PerformanceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core installation runs surrogates; training one asks for what it lacks."""
    monkeypatch.delitem(sys.modules, "predictors.families", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(SurrogateError) as caught:
        train_surrogate([folder], profile, output=tmp_path / "m.onnx")
    assert caught.value.hint == "pip install 'lora-placer[train]'"


def test_the_command_line_trains(folder: Path, tmp_path: Path) -> None:
    """A table of families, or all as JSON; bad input has its own exit code."""

    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["train", *map(str, arguments)], prog_name="placer")
        return result.exit_code, result.stdout, result.stderr

    common = ("--profile", NAME, "--family", "tree", "--trials", 1, "--risk-gpus", 0)
    code, printed, errors = run(folder, *common, "--output", tmp_path / "m.onnx")
    assert code == 0, errors
    assert "tree *" in printed
    assert "* written. Probability of starvation at most: not known (0 packed GPUs)." in printed
    code, printed, _ = run(folder, *common, "--output", tmp_path / "m.onnx", "--json")
    assert code == 0
    assert json.loads(printed)["family"] == "tree"
    assert (tmp_path / "m.md").is_file()
    assert "tree (chosen)" in (tmp_path / "m.html").read_text(encoding="utf-8")
    code, _, errors = run(tmp_path, *common, "--output", tmp_path / "n.onnx")
    assert code == 2
    assert "a data set must be a folder" in errors
    code, _, errors = run(folder, "--profile", NAME, "--family", "oracle", "--output", tmp_path / "n.onnx")
    assert code == 2
    assert "families must be of neural, boosting, forest, tree, polyhedra. Got oracle." in errors
    code, _, errors = run(folder, *common, "--output", tmp_path / "n.onnx", "--risk-gpus", -1)
    assert code == 2
    assert "--risk-gpus" in errors


def test_without_the_extra_for_pages_the_card_is_markdown_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of fitting are not lost for want of a library that draws; what is missing is said before them."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    command = ["train", str(folder), "--profile", NAME, "--family", "tree", "--trials", "1", "--risk-gpus", "0"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "m.onnx")], prog_name="placer")
    assert result.exit_code == 0
    assert "the card is written in Markdown only" in result.stderr
    assert "pip install 'lora-placer[report]'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.md", "m.onnx"]


def test_few_scenarios_are_too_few(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """A test on one scenario says nothing."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    small = tmp_path / "small"
    small.mkdir()
    manifest["shards"] = manifest["shards"][:1]
    (small / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for path in sorted(folder.glob("shard-*.parquet"))[:1]:
        (small / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="at least 30 scenarios"):
        train_surrogate([small], profile, output=tmp_path / "m.onnx")


def _rows(**columns: object) -> TrainingRows:
    count = len(np.asarray(next(iter(columns.values()))))
    values: dict[str, object] = {
        "features": np.zeros((count, len(FEATURE_SCHEMA.names)), dtype=np.float32),
        "completed_ratio": np.ones(count),
        "starved_share": np.zeros(count),
        "log_itl": np.zeros(count),
        "log_ttft": np.zeros(count),
        "log_itl_mean": np.zeros(count),
        "log_border": np.zeros(count),
        "scenario": np.arange(count),
        "family": np.full(count, "zipf"),
        "weight": np.ones(count),
    }
    return TrainingRows(**{name: np.asarray(value) for name, value in (values | columns).items()})


def test_error_figures_by_hand() -> None:
    """Four rows whose errors can be counted on one hand."""
    rows = _rows(
        log_border=np.log(np.array([1.0, 1.9, 2.1, 9.0]) / 2.0),
        starved_share=[0.0, 0.25, 0.75, 1.0],
        completed_ratio=[1.0, 1.0, 0.8, 0.5],
        log_itl=np.log([0.02, 0.04, 0.05, 0.05]),
        log_ttft=np.log([0.1, 0.2, 9.0, 1.0]),
        log_itl_mean=np.log([0.1, 0.2, 9.0, 1.0]),
        family=["zipf", "packed", "zipf", "packed"],
    )
    column = np.array
    output = SurrogateOutput(
        throughput_ratio=column([1.0, 1.0, 1.0, 0.5], dtype=np.float32),
        starvation_probability=column([0.0, 0.75, 0.25, 1.0], dtype=np.float32),
        throughput_tps=column([0.0, 0.0, 0.0, 0.0], dtype=np.float32),
        itl_s=column([0.03, 0.04, 0.05, 0.05], dtype=np.float32),
        ttft_s=column([0.1, 0.1, 1.0, 1.0], dtype=np.float32),
    )
    table = error_table(rows, output)
    assert [table[name]["rows"] for name in ("all", "near_border", "packed")] == [4.0, 2.0, 1.0]
    figures = table["all"]
    assert figures["ratio_mae"] == pytest.approx(0.2 / 4.0)
    assert figures["ratio_mape"] == pytest.approx(100.0 * 0.25 / 4.0)
    assert figures["brier"] == pytest.approx((0.25 + 0.25) / 4.0)
    assert figures["starvation_f1"] == 0.5
    assert (figures["false_accepts"], figures["false_rejects"]) == (0.5, 0.5)
    assert figures["itl_mape"] == pytest.approx(25.0, rel=1e-5)
    assert figures["ttft_mape"] == pytest.approx(25.0, rel=1e-5)
    bins = reliability(rows, output)
    assert [(one["rows"], one["predicted"], one["starved"]) for one in bins] == [
        (1.0, 0.0, 0.0),
        (1.0, 0.25, 0.75),
        (1.0, 0.75, 0.25),
        (1.0, 1.0, 1.0),
    ]


def test_errors_by_distance_by_hand() -> None:
    """Rows fall into the bins of their load over the border; one without a border into none."""
    rows = _rows(
        log_border=np.log([0.1, 0.97, 0.98, 1.02, 5.0, np.nan]),
        completed_ratio=[1.0, 1.0, 1.0, 0.9, 0.3, 1.0],
        starved_share=[0.0, 0.5, 0.0, 1.0, 1.0, 0.0],
        family=["zipf", "packed", "zipf", "zipf", "packed", "packed"],
    )
    ratio = np.array([1.0, 0.96, 1.02, 0.9, 0.5, 0.0], dtype=np.float32)
    probability = np.array([0.0, 0.5, 1.0, 1.0, 1.0, 0.0], dtype=np.float32)
    output = SurrogateOutput(ratio, probability, ratio, ratio, ratio)
    distance = error_over_distance(rows, output)
    everything = distance["all"]
    assert [one["rows"] for one in everything] == [1.0, 2.0, 1.0, 1.0]
    loads = [one["load_over_border"] for one in everything]
    assert loads == pytest.approx([0.1, np.sqrt(0.97 * 0.98), 1.02, 5.0], abs=1e-5)
    assert all(0.95 < load <= 1.0 for load in loads[1:2])
    assert {0.95, 1.0} <= set(DISTANCE_EDGES)
    assert everything[1]["ratio_mae"] == pytest.approx(0.03)
    assert everything[1]["brier"] == pytest.approx(0.5)
    assert everything[1]["p50"] == pytest.approx(-0.01)
    assert [(one["rows"], one["ratio_mae"]) for one in distance["packed"]] == [(1.0, pytest.approx(0.04)), (1.0, 0.2)]
