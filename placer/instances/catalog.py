"""Which instances the families hold; nothing is made before it is asked for."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from placer.instances.instance import Instance, Judges
from placer.instances.planted import planted_instance
from placer.instances.recorded import azure_instance, missing_data, servegen_instance
from placer.instances.synthetic import (
    beyond_domain,
    duplicates,
    hot_and_cold,
    optimistic,
    papers_instance,
    sizes_instance,
)
from twin.errors import InputError

PAPERS_SIZES = (64, 96, 192, 384, 768, 1536)
SIZES = (10, 100, 1_000, 10_000)
_AZURE = (("conv", 6), ("code", 16))
# Rates, GPUs to fill, and about how many adapters they hold.
_PLANTED = (("hot", 8, 330), ("hot", 40, 1_700), ("mixed", 12, 1_000), ("mixed", 40, 3_000), ("cold", 8, 2_700))


@dataclass(frozen=True)
class InstanceEntry:
    """An instance that can be made.

    Attributes
    ----------
    name, family
        As those of the instance.
    num_adapters
        How many there are; of planted instances about.
    make
        Makes it, given whom to ask when GPUs are to be filled.
    needs_data
        It is made from a public trace that is not part of the package.
    """

    name: str
    family: str
    num_adapters: int
    make: Callable[[Judges], Instance]
    needs_data: bool = False

    def unavailable(self) -> str:
        """Return why it cannot be made here; empty: it can."""
        return missing_data() if self.needs_data else ""


def catalog() -> tuple[InstanceEntry, ...]:
    """Return every instance of every family, by family and size."""
    return (*_papers(), *_sizes(), *_planted(), *_adversarial(), *_recorded())


def family_names() -> tuple[str, ...]:
    """Return the names of the families."""
    return tuple(dict.fromkeys(entry.family for entry in catalog()))


def select(
    *, families: Sequence[str] = (), patterns: Sequence[str] = (), max_adapters: int | None = None
) -> tuple[InstanceEntry, ...]:
    """Return the entries of `families`, and those whose names match one of `patterns` (``*`` stands for anything).

    Raises
    ------
    InputError
        When a family is unknown or a pattern matches nothing.
    """
    entries = catalog()
    known = family_names()
    for family in families:
        if family not in known:
            raise InputError(
                f"a family must be one of {', '.join(known)}. Got {family!r}.", field="family", value=family
            )
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(entry.name, pattern) for entry in entries):
            raise InputError(
                f"an instance must be one that there is. Nothing is called {pattern!r}.",
                field="instance",
                value=pattern,
                hint="`placer compare --list-instances` lists them",
            )
    chosen = [
        entry
        for entry in entries
        if entry.family in families or any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)
    ]
    return tuple(entry for entry in chosen if max_adapters is None or entry.num_adapters <= max_adapters)


def _papers() -> Iterator[InstanceEntry]:
    for count in PAPERS_SIZES:
        for rates in ("high", "mixed", "low"):
            for ranks in ("r8", "r32", "r8-16-32"):
                name = f"papers-{rates}-{ranks}-n{count}"
                make = partial(_ignoring, partial(papers_instance, name, rates=rates, ranks=ranks, num_adapters=count))
                yield InstanceEntry(name, "papers", count, make)


def _sizes() -> Iterator[InstanceEntry]:
    for count in SIZES:
        for law in ("discrete", "zipf"):
            name = f"sizes-{law}-n{count}"
            make = partial(_ignoring, partial(sizes_instance, name, law=law, num_adapters=count))
            yield InstanceEntry(name, "sizes", count, make)


def _planted() -> Iterator[InstanceEntry]:
    for rates, num_gpus, about in _PLANTED:
        name = f"planted-{rates}-g{num_gpus}"
        yield InstanceEntry(name, "planted", about, partial(_planted_with, name, rates=rates, num_gpus=num_gpus))


def _adversarial() -> Iterator[InstanceEntry]:
    makers: tuple[tuple[str, int, Callable[..., Instance]], ...] = (
        ("hot-and-cold", 96, hot_and_cold),
        ("hot-and-cold", 480, hot_and_cold),
        ("beyond-domain", 1_200, beyond_domain),
        ("optimistic", 192, optimistic),
        ("duplicates", 240, duplicates),
    )
    for what, count, maker in makers:
        name = f"adversarial-{what}-n{count}"
        yield InstanceEntry(name, "adversarial", count, partial(_ignoring, partial(maker, name, num_adapters=count)))


def _recorded() -> Iterator[InstanceEntry]:
    for kind, copies in _AZURE:
        for popularity in ("dirichlet", "zipf"):
            for count in (100, 400):
                name = f"azure-{kind}-{popularity}-n{count}"
                azure = partial(
                    azure_instance, name, kind=kind, popularity=popularity, num_adapters=count, copies=copies
                )
                yield InstanceEntry(name, "azure", count, partial(_ignoring, azure), needs_data=True)
    for count in (64, 256):
        name = f"servegen-n{count}"
        make = partial(_ignoring, partial(servegen_instance, name, num_adapters=count))
        yield InstanceEntry(name, "servegen", count, make, needs_data=True)


def _ignoring(make: Callable[[], Instance], judges: Judges) -> Instance:
    """Return an instance that does not depend on who judges."""
    del judges
    return make()


def _planted_with(name: str, judges: Judges, *, rates: str, num_gpus: int) -> Instance:
    return planted_instance(name, judges, rates=rates, num_gpus=num_gpus)
