"""`placer train-configuration`: a configuration model for a profile of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placer.cli.exits import OK, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption, WorkersOption


@reports_errors
def train_configuration(
    data: Annotated[
        Path, typer.Argument(help="Folder of the labelled populations; continued where it exists.", show_default=False)
    ],
    *,
    profile: Annotated[str, typer.Option("--profile", help="Performance profile: a shipped name or a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Configuration model to write, JSON.")],
    populations: Annotated[
        int, typer.Option("--populations", min=1, help="Populations to label; rounded up to whole shards of 8.")
    ] = 1_200,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulations of a configuration.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the populations, their traffic and the fit.")] = 0,
    horizon: Annotated[float, typer.Option("--horizon", help="Simulated seconds of each.")] = 600.0,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds at the start that are not measured.")] = 100.0,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Search the best configuration of many populations in the twin, and fit a model that predicts it.

    The same command continues what was interrupted. `placer explain --model` takes the result.
    """
    from placer.cli.dataset_progress import DatasetProgress, say_interrupted
    from placer.cli.explain import print_rules
    from placer.explanation import model_to_json
    from placer.output_paths import check_outputs
    from predictors.configuration_data import sample_populations
    from predictors.optimum import SearchSettings
    from twin.errors import SurrogateError
    from twin.profile import load_profile

    check_outputs({"--output": output}, inputs={"DATA": data, "--profile": profile}, prints_json=json_output)
    try:
        from predictors.configuration_training import train_configuration_model
    except ImportError as error:
        raise SurrogateError(
            f"training needs the extra `train`. {error}.", hint="pip install 'lora-placer[train]'"
        ) from error
    loaded = load_profile(profile)
    settings = SearchSettings(num_seeds=seeds, seed=seed, horizon_s=horizon, warmup_s=warmup)
    with DatasetProgress(is_verbose=verbose) as display:
        try:
            sample_populations(
                loaded, populations=populations, output=data, settings=settings, workers=workers, observer=display
            )
        except KeyboardInterrupt:
            return say_interrupted(data, display)
        display.update("fitting")
        model = train_configuration_model(data, loaded, settings=settings, seed=seed)
    model.save(output)
    print_written(output)
    if json_output:
        typer.echo(model_to_json(model), nl=False)
    else:
        print_rules(model, "adapter")
    return OK
