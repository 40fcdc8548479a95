"""Training data for a configuration model: populations that planners meet, each with the twin's best configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from predictors.adapter_sequence import AdapterSequence
from predictors.configuration_features import FEATURE_NAMES, FEATURES_VERSION, describe
from predictors.dataset import Observer, check_dataset_numbers, fill_folder, ignore_progress, library_versions
from predictors.dataset_folder import SCENARIOS_PER_SHARD, Manifest, Settings, open_folder
from predictors.optimum import STARVATION_TESTS, SearchSettings, TwinProbe, search_twin
from predictors.provenance import profile_fingerprint
from predictors.scenarios import draw_scenario
from twin.errors import InputError
from twin.hardware import GpuType, load_model
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.workload import Adapter

# What stands for the families of scenarios in the manifest: such a folder is no data set of loads.
CONFIGURATION_FAMILY = "configurations"
# Raised whenever a number stands for another population than before.
SAMPLER_VERSION = 1
# Adapters that a GPU of typical throughput serves, between which populations are drawn, evenly in the logarithm.
FEWEST_PER_GPU = 3
MOST_PER_GPU = 1_000
_TYPICAL_TPS = 9_000.0
# Errors of single labels average out in a fit: more populations are worth more than more seeds.
ONE_SEED = SearchSettings(num_seeds=1)
# Kinds of random numbers of a population, apart in their seeds: its scenario, its scale, and the search's traffic.
_SCENARIO, _SCALE, _TRAFFIC = range(3)

_INTEGER_COLUMNS = (
    "scenario",
    "num_simulations",
    *(f"best_{what}_{test}" for what in ("adapters", "slots") for test in STARVATION_TESTS),
)


@dataclass(frozen=True)
class LabelledPopulation:
    """A population, the replica that it is to be served with, and the number that both follow from."""

    number: int
    family: str
    adapters: tuple[Adapter, ...]
    replica: Replica


def draw_population(profile: PerformanceProfile, number: int, *, seed: int) -> LabelledPopulation:
    """Return population `number` of a data set: the adapters and the engine of a scenario that planners meet.

    Where the scenario's rates have no scale of their own, adapters are as large as if a GPU served 3 to 1,000.
    """
    model = load_model(profile.model)
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)
    scenario = draw_scenario(model, gpu, profile, generator=_generator(seed, number, _SCENARIO))
    adapters = scenario.population.adapters
    if not scenario.is_packed:
        generator = _generator(seed, number, _SCALE)
        per_gpu = float(np.exp(generator.uniform(np.log(FEWEST_PER_GPU), np.log(MOST_PER_GPU))))
        offered_tps = scenario.population.total_rps * scenario.population.tokens_per_request
        scale = _TYPICAL_TPS / per_gpu / (offered_tps / len(adapters))
        adapters = tuple(adapter.model_copy(update={"rate_rps": adapter.rate_rps * scale}) for adapter in adapters)
    return LabelledPopulation(number, scenario.family, adapters, scenario.replicas[0])


def search_settings(settings: SearchSettings, number: int) -> SearchSettings:
    """Return the settings under which population `number` is searched: with traffic of its own."""
    seeds = np.random.SeedSequence([settings.seed, number], spawn_key=(_TRAFFIC,))
    return replace(settings, seed=int(seeds.generate_state(1)[0]))


def label_population(
    profile: PerformanceProfile, settings: SearchSettings, number: int
) -> dict[str, float | int | str]:
    """Return the row of a population: its features and the twin's best configuration by each test of starvation.

    No adapters and no slots stand for none that is served.
    `settings.seed` is that of the data set.
    """
    population = draw_population(profile, number, seed=settings.seed)
    description = describe(population.adapters, population.replica, settings)
    twin = TwinProbe(AdapterSequence(population.adapters), population.replica, search_settings(settings, number))
    row: dict[str, float | int | str] = {
        "scenario": number,
        "family": population.family,
        **dict(zip(FEATURE_NAMES, description.features.tolist(), strict=True)),
    }
    for test in STARVATION_TESTS:
        optimum = search_twin(twin, test)
        best = optimum.best
        row[f"best_adapters_{test}"] = 0 if best is None else best.num_adapters
        row[f"best_slots_{test}"] = 0 if best is None else best.max_loras
        row[f"best_tps_{test}"] = 0.0 if best is None else best.throughput_tps
        row[f"is_at_limit_{test}"] = optimum.is_at_limit
    return {**row, "num_simulations": twin.num_simulations}


def sample_populations(
    profile: PerformanceProfile,
    *,
    populations: int,
    output: str | Path,
    settings: SearchSettings = ONE_SEED,
    workers: int | None = None,
    observer: Observer = ignore_progress,
) -> Manifest:
    """Label at least so many populations into the folder `output`; what an interrupted call finished is kept.

    Parameters
    ----------
    profile
        What to simulate; its model must be a shipped one.
    populations
        Wanted, >= 1; rounded up to whole shards.
    output
        Folder for ``manifest.json`` and ``shard-*.parquet``; continued where it exists.
    settings
        Of the searches; their seed is that of the populations, too.
    workers
        Processes; ``None``: one per core.
    observer
        Called at the start and after each shard.

    Raises
    ------
    InputError
        When a number is out of range, or the folder holds data of other settings or cannot be written.
    """
    check_dataset_numbers(
        rows=populations,
        seed=settings.seed,
        seeds=settings.num_seeds,
        horizon_s=settings.horizon_s,
        warmup_s=settings.warmup_s,
    )
    folder = Path(output)
    manifest = open_folder(
        folder,
        Settings(
            sampler_version=SAMPLER_VERSION,
            feature_schema_version=FEATURES_VERSION,
            profile=_profile_entry(profile),
            seed=settings.seed,
            seeds=settings.num_seeds,
            horizon_s=settings.horizon_s,
            warmup_s=settings.warmup_s,
            families=(CONFIGURATION_FAMILY,),
            scenarios_per_shard=SCENARIOS_PER_SHARD,
        ),
        num_shards=-(-populations // SCENARIOS_PER_SHARD),
        versions=library_versions(),
    )
    label = partial(label_shard, profile, settings)
    return fill_folder(folder, manifest, label, workers=workers, cluster=None, observer=observer)


def label_shard(profile: PerformanceProfile, settings: SearchSettings, shard: int) -> pd.DataFrame:
    """Return the rows of a shard, sorted by the number of the population."""
    numbers = range(shard * SCENARIOS_PER_SHARD, (shard + 1) * SCENARIOS_PER_SHARD)
    table = pd.DataFrame([label_population(profile, settings, number) for number in numbers])
    return table.astype(dict.fromkeys(_INTEGER_COLUMNS, "int32"))


def require_configurations(manifest: Manifest, profile: PerformanceProfile, folder: str) -> None:
    """Raise InputError unless a folder holds populations of this version that were labelled with the profile."""
    wanted = _profile_entry(profile)
    if manifest.settings.profile != wanted:
        raise InputError(
            f"populations must have been labelled with the profile that a model is made for, {wanted}. "
            f"{folder} was labelled with {manifest.settings.profile}.",
            file=folder,
            field="profile",
            value=manifest.settings.profile,
            hint="name another folder with --data: it is made where there is none",
        )
    found = (manifest.settings.families, manifest.settings.feature_schema_version)
    if found != ((CONFIGURATION_FAMILY,), FEATURES_VERSION):
        raise InputError(
            "a configuration model must be trained with populations that `placer train-configuration` labelled, of "
            f"version {FEATURES_VERSION}. {folder} holds {', '.join(found[0])} of version {found[1]}.",
            file=folder,
            field="families",
            value=list(found[0]),
            hint="name another folder with --data: it is made where there is none",
        )


def _profile_entry(profile: PerformanceProfile) -> dict[str, str]:
    return {"name": profile.name, "fingerprint": profile_fingerprint(profile)}


def _generator(seed: int, number: int, kind: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, number], spawn_key=(kind,)))
