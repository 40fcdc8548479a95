"""Place many LoRA adapters on as few vLLM GPUs as serve their traffic, and check the plan with a digital twin.

Examples
--------
>>> import placer
>>> problem = placer.load_problem("workload.yaml")  # doctest: +SKIP
>>> plan = placer.plan(problem, budget=60, seed=0)  # doctest: +SKIP
>>> plan.num_gpus, plan.lower_bound  # doctest: +SKIP

Notes
-----
Importing this package loads nothing but itself: every name below is fetched from its module when it is first used,
so a scheduler that only asks for a version pays for neither NumPy nor a solver.
"""

from importlib import import_module

# Type checkers take this name for true; `typing` itself takes longer to load than the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from placer.advising import advise
    from placer.files import load_problem
    from placer.plan_document import Plan
    from placer.planning import plan
    from placer.replan_document import Replan
    from placer.replanning.run import replan
    from placer.routing_study import routing
    from solvers.problem import Problem
    from twin.simulate import simulate

__all__ = [
    "Plan",
    "Problem",
    "Replan",
    "__version__",
    "advise",
    "load_problem",
    "plan",
    "replan",
    "routing",
    "simulate",
]

_MODULE_OF_EXPORT = {
    "Plan": "placer.plan_document",
    "Problem": "solvers.problem",
    "Replan": "placer.replan_document",
    "advise": "placer.advising",
    "load_problem": "placer.files",
    "plan": "placer.planning",
    "replan": "placer.replanning.run",
    "routing": "placer.routing_study",
    "simulate": "twin.simulate",
}


def __getattr__(name: str) -> object:
    """Fetch a public name from its module on first use (PEP 562).

    Parameters
    ----------
    name : str
        The attribute that the package does not hold yet.

    Returns
    -------
    object
        The public object; it is kept, so that the next access costs nothing.

    Raises
    ------
    AttributeError
        If `name` is not public.
    """
    if name == "__version__":
        # Not imported above: the metadata reader alone takes longer to load than this package.
        value: object = import_module("importlib.metadata").version("lora-placer")
    elif name in _MODULE_OF_EXPORT:
        value = getattr(import_module(_MODULE_OF_EXPORT[name]), name)
    else:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the loaded names together with the lazy ones."""
    return sorted({*globals(), *__all__})
