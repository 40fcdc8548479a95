"""`placer explain`: how many adapters a GPU serves best with how many slots, and the rules that say so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import BAD_INPUT, OK, print_error, print_warning, reports_errors
from placer.cli.options import JsonOption, ProfileOption, VerboseOption

if TYPE_CHECKING:
    from placer.explanation import Explanation, TwinCheck
    from predictors.configuration import ConfigurationModel
    from predictors.optimum import StarvationTest


@reports_errors
def explain(
    problem: Annotated[
        Path | None,
        typer.Argument(help="Problem file, or plan.json with --why-not; none: the rules alone.", show_default=False),
    ] = None,
    *,
    profile: ProfileOption = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Configuration model instead of the shipped one.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU type of the problem; default: its first.")] = None,
    starvation: Annotated[
        str, typer.Option("--starvation", help="Whose starvation counts: adapter (or replica), or replica alone.")
    ] = "adapter",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether the twin simulates what is predicted.")
    ] = True,
    search: Annotated[bool, typer.Option("--search", help="Also look for the twin's own best.")] = False,
    horizon: Annotated[float, typer.Option("--horizon", help="Simulated seconds.")] = 600.0,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds at the start that are not measured.")] = 100.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulations of a configuration.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the simulated traffic.")] = 0,
    why_not: Annotated[
        int | None,
        typer.Option(
            "--why-not", min=1, metavar="N", help="Instead: why N GPUs cannot serve PROBLEM.", show_default=False
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option("--surrogate", help="With --why-not: auto, exact or an ONNX file; default: the plan's, or auto."),
    ] = None,
    budget: Annotated[float, typer.Option("--budget", help="With --why-not: seconds for proofs and searches.")] = 60.0,
    max_evaluations: Annotated[
        int | None,
        typer.Option(
            "--max-evaluations", min=0, help="With --why-not: rows to ask the surrogate for.", show_default=False
        ),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say how many of PROBLEM's adapters a GPU serves best, with how many slots, and by which rules.

    The adapters count as a population: the answer may be more than there are of them. Without PROBLEM, print the rules
    of the configuration model of --profile. With --why-not N: the proof that N GPUs are too few, or what is known.
    """
    if why_not is not None and problem is not None:
        from placer.cli.why_not import answer_why_not

        return answer_why_not(
            problem,
            why_not,
            surrogate=surrogate,
            profile=profile,
            budget_s=budget,
            max_evaluations=max_evaluations,
            seed=seed,
            is_json=json_output,
            is_verbose=verbose,
        )
    if why_not is not None:
        print_error("`placer explain --why-not` needs PROBLEM.", hint="give a problem file, or plan.json")
        return BAD_INPUT
    if problem is None and profile is None:
        print_error("`placer explain` needs PROBLEM or --profile.", hint="see `placer explain --help`")
        return BAD_INPUT
    from placer.explanation import checked_test, load_configuration_model, model_to_json

    test = checked_test(starvation)
    if problem is None:
        from twin.profile import load_profile

        found = load_configuration_model(load_profile(str(profile)), model)
        if json_output:
            typer.echo(model_to_json(found), nl=False)
        else:
            print_rules(found, test)
        return OK
    from placer.cli.live_line import LiveLine
    from placer.explanation import (
        explain_problem,
        explanation_to_json,
        replica_of_problem,
        search_settings_for,
    )
    from placer.files import load_problem
    from placer.unmeasured import unmeasured_warnings

    content = load_problem(problem, profile=profile)
    replica = replica_of_problem(content, gpu)
    found = load_configuration_model(replica.profile, model)
    settings = search_settings_for(
        content, found, test=test, num_seeds=seeds, seed=seed, horizon_s=horizon, warmup_s=warmup
    )
    with LiveLine() as line:
        line.update("simulating" if check or search else "predicting")
        explanation = explain_problem(content, replica, found, settings=settings, is_checked=check, is_searched=search)
    for warning in unmeasured_warnings([replica.profile]):
        print_warning(warning)
    if json_output:
        typer.echo(explanation_to_json(explanation), nl=False)
    else:
        _print_explanation(explanation)
    return OK


def print_rules(model: ConfigurationModel, test: StarvationTest) -> None:
    """Print the rules of a model, and how far they, the model and arithmetic are from the twin's optimum."""
    from placer.cli.tables import print_lines, print_table
    from placer.wording import counted
    from predictors.configuration_rules import rule_lines

    training = model.training["fits"][test]
    searched = counted(training["fitted"], "population")
    print_lines(
        [
            f"Best number of adapters and slots of a GPU under {model.profile.name}, from {searched};",
            f"ruled out by the starvation of {'any adapter or the replica' if test == 'adapter' else 'the replica'}.",
            "Arithmetic: the most adapters whose load a saturated replica can take by the profile's step times, and",
            "the fewest slots for which that holds (docs/configuration.md).",
            "",
            *rule_lines(model.fits[test].rules),
            "",
        ]
    )
    rows = [
        (
            name,
            *(
                f"{errors[quantity][statistic]:.1f} %"
                for quantity in ("adapters", "slots")
                for statistic in ("median_percent", "mean_percent")
            ),
        )
        for name, errors in training["errors"].items()
    ]
    headings = ("adapters\nmedian error", "mean", "slots\nmedian error", "mean")
    print_table([(f"{training['tested']} others", False), *((heading, True) for heading in headings)], rows)


def _print_explanation(explanation: Explanation) -> None:
    from placer.cli.tables import number, print_lines, print_table
    from placer.wording import counted

    prediction, optimum = explanation.prediction, explanation.optimum
    features = explanation.features
    adapters = counted(explanation.num_adapters, "adapter")
    each = f"{features['adapter_tps']:.3g} tokens/s and {features['adapter_rps']:.3g} requests/s each"
    ranks = f"rank {features['mean_rank']:.3g} in the mean, slots of rank {features['max_lora_rank']:g}"
    print_lines([f"{adapters} as a population: {each}, {ranks}; profile {explanation.profile}", ""])
    capacity, rule = prediction.capacity, prediction.rule
    rows = [
        ("model", str(prediction.num_adapters), str(prediction.max_loras), *_judged(explanation.check)),
        ("rules", str(rule.num_adapters), str(rule.max_loras), *_judged(explanation.rule_check)),
        ("arithmetic", str(capacity.num_adapters), str(capacity.max_loras), "", f"limit: {capacity.limit}"),
    ]
    if optimum is not None:
        best = optimum.best
        cells = (
            ("0", "-", "-")
            if best is None
            else (
                str(best.num_adapters),
                str(best.max_loras),
                number(best.throughput_tps),
            )
        )
        rows.append(("twin's search", *cells, counted(optimum.num_simulations, "simulation")))
    print_table(
        [("best on one GPU", False), ("adapters", True), ("slots", True), ("simulated\ntok/s", True), ("twin", False)],
        rows,
    )
    print_lines(["", "rules: " + "; ".join(explanation.rule_path)])
    if prediction.num_adapters >= explanation.num_adapters:
        print_lines([f"one GPU serves all {adapters} of the file"])


def _judged(check: TwinCheck | None) -> tuple[str, str]:
    from placer.cli.tables import number

    if check is None:
        return "-", "not simulated"
    verdict = "STARVES" if check.starves else "served"
    return number(check.throughput_tps), f"{verdict}, {check.served_share:.1%} of the load"
