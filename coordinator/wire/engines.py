"""Name an engine: `MODULE:FACTORY`, a function without arguments that returns a `concurrent.futures.Executor`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from importlib import import_module
from pathlib import Path, PurePath

Factory = Callable[[], Executor]
REFUSED = 3  # exit code of `worker.engine.check`: the engine cannot be used, stdout says why
PASSED = b"passed"  # its stdout where the engine can be used: an engine may end the process before the answer


def load_factory(name: str) -> Factory:
    """Import the factory `MODULE:FACTORY`. Modules of the working folder are found too.

    Raises:
        ValueError: the name has another form, its module cannot be imported, or it names no function; the message says which.
    """
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute.isidentifier()):
        raise ValueError(
            f"engine {name!r}: use MODULE:FACTORY, e.g. my_engine:dask for the function `dask` of my_engine.py"
        )
    if module.endswith(".py") or module.startswith(".") or "/" in module:
        path = PurePath(module)
        dotted = ".".join(part for part in path.with_suffix("").parts if part not in ("/", ".."))
        raise ValueError(f"engine {name!r}: write {dotted}:{attribute}, the module's name and not its file's")
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:  # an installed program has its own folder there instead
        sys.path.insert(0, folder)
    try:
        factory = getattr(import_module(module), attribute, None)
    except Exception as error:  # whatever a user's module does when it is imported
        raise ValueError(f"engine {name}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(factory):
        raise ValueError(f"engine {name}: {module} has no function {attribute}")
    found: Factory = factory
    return found
