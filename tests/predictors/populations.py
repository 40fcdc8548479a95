"""Adapter sets for tests, drawn by Hypothesis or fixed."""

from hypothesis import strategies as st

from twin.engine import SUPPORTED_RANKS
from twin.lengths import LengthDistribution
from twin.workload import Adapter

CHAT_PROMPT = LengthDistribution(mean=223.0, std=247.0, max=1024)
CHAT_OUTPUT = LengthDistribution(mean=197.0, std=209.0, max=1024)


def chat_adapters(count: int, *, rate_rps: float, rank: int = 8) -> tuple[Adapter, ...]:
    """Return `count` equal chat adapters."""
    template = Adapter.model_validate(
        {
            "name": "chat",
            "rank": rank,
            "rate_rps": rate_rps,
            "prompt_tokens": CHAT_PROMPT,
            "output_tokens": CHAT_OUTPUT,
        }
    )
    return tuple(template.model_copy(update={"name": f"chat-{i}"}) for i in range(count))


@st.composite
def length_distributions(draw: st.DrawFn) -> LengthDistribution:
    """Draw constant, lognormal and empirical lengths."""
    kind = draw(st.sampled_from(["constant", "lognormal", "quantiles"]))
    mean = draw(st.floats(1.0, 4000.0))
    if kind == "constant":
        return LengthDistribution(mean=mean)
    if kind == "lognormal":
        return LengthDistribution(mean=mean, std=draw(st.floats(0.1, 1.5)) * mean, max=16_384)
    return LengthDistribution(quantiles=tuple(sorted(draw(st.lists(st.floats(1.0, 4000.0), min_size=2, max_size=9)))))


@st.composite
def adapter_sets(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 12) -> tuple[Adapter, ...]:
    """Draw adapters with distinct names."""
    count = draw(st.integers(min_size, max_size))
    return tuple(
        Adapter.model_validate(
            {
                "name": f"adapter-{i}",
                "rank": draw(st.sampled_from(SUPPORTED_RANKS)),
                "rate_rps": draw(st.one_of(st.just(0.0), st.floats(1e-4, 5.0))),
                "prompt_tokens": draw(length_distributions()),
                "output_tokens": draw(length_distributions()),
                "gap_cv": draw(st.one_of(st.just(1.0), st.floats(0.0, 4.0))),
            }
        )
        for i in range(count)
    )
