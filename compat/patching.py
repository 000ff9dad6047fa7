"""Puts the patches of the table around the execution of a module.

Three things can happen to a module, all of them in its own namespace:

- `OwnImports`: its import statements get a stand-in for one module, such as a NumPy that has the
  names which NumPy 2 removed.
- `OwnNames`: a name is defined in it before it runs, in front of the built-in one.
- `NewLines`: passages of its source are replaced before it is compiled.

`OwnModules` replaces modules of the package itself by others.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

Finder = Any


@dataclass(frozen=True)
class OwnImports:
    """Stand-ins for what a module imports: the imported name, and what makes the stand-in."""

    stand_ins: Mapping[str, Callable[[], Any]]

    def prepare(self, module: Any) -> None:
        """Give `module` an import statement of its own."""
        # The import statement takes __import__ from the builtins of the running code, and code
        # takes those from its module's namespace. No other module sees this one.
        own = dict(module.__dict__.get("__builtins__", vars(builtins)))
        own["__import__"] = self._importer(own["__import__"])
        module.__dict__["__builtins__"] = own

    def _importer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        stand_ins = self.stand_ins

        def own_import(
            name: str,
            globals: Optional[Mapping[str, Any]] = None,
            locals: Optional[Mapping[str, Any]] = None,
            fromlist: Optional[Sequence[str]] = (),
            level: int = 0,
        ) -> Any:
            # `import a.b` binds a: the stand-in for a.b answers `from a.b import ...` alone.
            if level == 0 and name in stand_ins and (fromlist or "." not in name):
                return stand_ins[name]()
            return original(name, globals, locals, fromlist, level)

        return own_import


@dataclass(frozen=True)
class OwnNames:
    """Names that a module finds before the built-in ones."""

    names: Mapping[str, Any]

    def prepare(self, module: Any) -> None:
        """Define the names in `module`."""
        module.__dict__.update(self.names)


@dataclass(frozen=True)
class NewLines:
    """Passages of a module's source and what stands there instead, on as many lines."""

    passages: Mapping[str, str]

    def rewrite(self, source: str) -> str:
        """Return `source` with the passages replaced; a build that lacks one keeps its own."""
        for old, new in self.passages.items():
            source = source.replace(old, new)
        return source


@dataclass(frozen=True)
class OwnModules:
    """Modules that are other ones: their name, and the name of the one to take."""

    modules: Mapping[str, str]

    def prepare(self, module: Any) -> None:
        """Register the modules, before the package `module` imports them."""
        del module
        for name, other in self.modules.items():
            sys.modules[name] = importlib.import_module(other)


def patched_spec(
    own: Finder, patches: Sequence[Any], name: str, path: Any = None, target: Any = None
) -> Any:
    """Return the spec that the other finders have for module `name`, with `patches` around it."""
    for finder in sys.meta_path:
        if finder is own or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            break
    else:
        return None
    loader: Any = spec.loader
    run = loader.exec_module

    def exec_module(module: Any) -> None:
        for patch in patches:
            if not isinstance(patch, NewLines):
                patch.prepare(module)
        lines = [patch for patch in patches if isinstance(patch, NewLines)]
        if not lines:
            return run(module)
        source = loader.get_source(name)
        for patch in lines:
            source = patch.rewrite(source)
        exec(compile(source, spec.origin or name, "exec", dont_inherit=True), module.__dict__)
        return None

    # On the loader itself, whose other methods (sources for tracebacks, data) stay as they are.
    loader.exec_module = exec_module
    return spec
