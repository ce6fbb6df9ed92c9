"""Calls a function once a module has been imported, before anyone else sees the module."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

Hook = Callable[[Any], None]


class PostImport(importlib.abc.MetaPathFinder):
    """A finder that finds what the others find, and has their loader call a hook at its end."""

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = dict(hooks)
        self._looking: set[str] = set()

    @classmethod
    def installed(cls) -> bool:
        """Whether this process has one, of this or of another copy of this module."""
        return any(type(finder).__name__ == cls.__name__ for finder in sys.meta_path)

    @classmethod
    def install(cls, hooks: Mapping[str, Hook]) -> None:
        """Hook modules that are imported from now on, and at once those that are there."""
        sys.meta_path.insert(0, cls(hooks))
        for name, hook in hooks.items():
            if name in sys.modules:
                hook(sys.modules[name])

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The other finders' answer, its loader wrapped if the module is to be hooked."""
        if name not in self.hooks or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.hooks[name])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader, self._hook = loader, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._hook(module)
