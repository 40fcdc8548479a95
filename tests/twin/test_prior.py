"""Priors: rooflines that scale as physics says, bands that hold the measured profiles, labels that nobody can miss."""

import numpy as np
import pytest

from benchmarks.prior_accuracy import compare
from twin.calibration.datasheets import DATASHEETS, datasheet_of
from twin.calibration.guess import GUESS_BAND, guess_profile
from twin.calibration.prior import (
    BANDS,
    REFERENCE_PROFILES,
    band_arrays,
    bands_of,
    coefficient_prior,
    is_prior,
    prior_profile,
    step_time_band,
    typical_steps,
)
from twin.calibration.step_fit import step_terms
from twin.errors import InputError, ProfileError
from twin.hardware import SHIPPED_MODELS
from twin.profile import PerformanceProfile, load_profile, parse_profile
from twin.step_time import COEFFICIENT_NAMES

LLAMA = SHIPPED_MODELS["llama-3.1-8b"]
# Of all typical batches of a model whose measured profile the prior does not know.
MOST_MEAN_ERROR_PERCENT = 10.0


@pytest.mark.parametrize("name", REFERENCE_PROFILES)
def test_prior_made_without_a_measured_profile_is_close_to_it(name: str) -> None:
    """Every typical batch lies in the band, and the mean error is far smaller than the band."""
    overall = compare(load_profile(name))[0]
    assert overall.num_batches == len(typical_steps())
    assert overall.num_outside_band == 0
    assert overall.mape_percent < MOST_MEAN_ERROR_PERCENT


@pytest.mark.parametrize("gpu", sorted(DATASHEETS))
@pytest.mark.parametrize("model", sorted(SHIPPED_MODELS))
def test_every_datasheet_makes_a_labelled_profile(gpu: str, model: str) -> None:
    """The profile survives its file, says that it is a prior and where every coefficient comes from."""
    profile = prior_profile(SHIPPED_MODELS[model], gpu)
    again = parse_profile(profile.model_dump_json(), file="prior.json")
    assert again == profile
    assert is_prior(again)
    assert set(profile.provenance["sources"]) == set(profile.provenance["bands"]) == set(COEFFICIENT_NAMES)
    assert profile.provenance["datasheet"] == datasheet_of(gpu).source
    low, high = step_time_band(profile)
    assert 0.0 < low < 1.0 < high
    loads = [(entry.cpu_to_gpu_ms, entry.disk_to_cpu_ms) for entry in profile.load_times]
    assert loads == sorted(loads)


def test_measured_profiles_are_no_priors() -> None:
    """The label is not the default."""
    assert [is_prior(load_profile(name)) for name in REFERENCE_PROFILES] == [False, False]


def test_memory_rate_scales_what_is_read() -> None:
    """More bandwidth with the same arithmetic makes weights and KV cache cheaper, and leaves the host alone."""
    slow, fast = (prior_profile(LLAMA, gpu).step_time for gpu in ("h100-80gb", "h200-141gb"))
    rates = DATASHEETS["h200-141gb"].bandwidth_gb_per_s / DATASHEETS["h100-80gb"].bandwidth_gb_per_s
    assert slow.context_token_ms / fast.context_token_ms == pytest.approx(rates, rel=1e-3)
    assert fast.base_ms < slow.base_ms < rates * fast.base_ms
    assert fast.cached_adapter_ms == slow.cached_adapter_ms
    assert fast.expand_tile_ms == slow.expand_tile_ms


def test_large_batches_approach_the_compute_roofline() -> None:
    """Beyond 512 tokens a token costs about its operations; small batches stay bound by memory."""
    step = prior_profile(LLAMA, "h100-80gb").step_time
    layers = LLAMA.num_parameters - 2 * LLAMA.vocab_size * LLAMA.hidden_size
    compute_ms = 2.0 * layers / (989.4e12 * 0.7) * 1000.0
    assert step.token_ms + step.large_batch_token_ms == pytest.approx(compute_ms, rel=0.35)
    assert 64 * step.token_ms < 0.2 * step.base_ms


def test_lora_terms_scale_with_layers_and_multiprocessors() -> None:
    """Half of the layers launch half of the blocks."""
    half = LLAMA.model_copy(update={"num_layers": 16, "name": "half"})
    whole, smaller = (prior_profile(model, "h100-64gb").step_time for model in (LLAMA, half))
    for name in ("expand_tile_ms", "shrink_tile_ms", "adapter_ms", "adapter_shrink_ms", "lora_active_ms"):
        assert getattr(smaller, name) == pytest.approx(0.5 * getattr(whole, name), rel=1e-3)
    assert smaller.slot_lookup_ms == whole.slot_lookup_ms


def test_unknown_gpu_is_refused_with_what_to_do() -> None:
    """The message lists the datasheets and names the way around them."""
    with pytest.raises(InputError, match=r"a100-40gb, .*Got 'tpu'") as caught:
        prior_profile(LLAMA, "tpu")
    assert "--prior FILE" in (caught.value.hint or "")


def test_a_guess_is_a_labelled_prior_that_moves_far() -> None:
    """Its file is read again, it says that it is a prior, and every coefficient's deviation is above its value."""
    profile = guess_profile(LLAMA, "cpu", gpu_memory_gib=16.0)
    assert is_prior(parse_profile(profile.model_dump_json(), file="guess.json"))
    assert set(bands_of(profile).values()) == {GUESS_BAND}
    believed = coefficient_prior(profile)
    assert (believed.deviations > believed.values).all()


def test_band_ends_are_the_value_over_and_times_the_band() -> None:
    """Bands are factors, the default ones where the profile states none."""
    profile = prior_profile(LLAMA, "l4-24gb")
    low, high = band_arrays(profile)
    factors = np.array([BANDS[name] for name in COEFFICIENT_NAMES])
    assert np.sqrt(low * high) == pytest.approx(profile.step_time.as_array())
    assert high == pytest.approx(profile.step_time.as_array() * factors)
    assert bands_of(load_profile(REFERENCE_PROFILES[0])) == BANDS
    terms = step_terms(typical_steps())
    ratios = (terms @ high) / (terms @ profile.step_time.as_array())
    assert step_time_band(profile)[1] == pytest.approx(ratios.max())


@pytest.mark.parametrize("bands", [{"base_ms": 0.5}, {"base_ms": "wide"}, {"speed": 2.0}, [2.0]])
def test_impossible_bands_are_refused(bands: object) -> None:
    """A profile file is a user's input."""
    profile = prior_profile(LLAMA, "l4-24gb")
    broken = profile.model_copy(update={"provenance": profile.provenance | {"bands": bands}})
    with pytest.raises(ProfileError, match="a band must be a factor of at least 1"):
        coefficient_prior(broken)


def test_coefficient_of_zero_is_not_certain_to_be_zero() -> None:
    """Otherwise no measurement could ever move it."""
    profile = prior_profile(LLAMA, "h100-64gb")
    zero = profile.model_copy(update={"step_time": profile.step_time.model_copy(update={"lora_token_ms": 0.0})})
    believed = coefficient_prior(zero)
    assert believed.values[COEFFICIENT_NAMES.index("lora_token_ms")] == 0.0
    assert believed.deviations.min() > 0.0


def test_references_give_what_physics_does_not() -> None:
    """Another host term in the measured profile is the same term in the prior."""
    reference = load_profile(REFERENCE_PROFILES[0])
    slower = reference.step_time.model_copy(update={"slot_lookup_ms": 1e-3})
    changed: PerformanceProfile = reference.model_copy(update={"step_time": slower})
    assert prior_profile(LLAMA, "l4-24gb", references=[changed]).step_time.slot_lookup_ms == 1e-3
