"""The descriptions of the settings: the docstrings below the fields, read from the source code.

Only `config init` and the reference need them, so a server does not parse its own source when it
starts.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from repeater.config.fields import MADE_OF


@functools.cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The docstring of every field that has a docstring, by field; inherited fields included."""
    texts: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if one not in (object, BaseModel) and issubclass(one, BaseModel):
            texts |= docstrings(MADE_OF.get(one, one))
    return {name: texts[name] for name in model.model_fields if name in texts}


def docstrings(options: type) -> dict[str, str]:
    """The docstring of each field of a class; fields without one share that of the next field.

    Empty if the source code is not available.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(options)))
    except (OSError, TypeError):
        return {}
    return dict(_docstrings(tree))


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    waiting: list[str] = []
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                waiting.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))):
                for name in waiting:
                    yield name, " ".join(text.split())
                waiting.clear()
