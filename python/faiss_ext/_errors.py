"""The errors of FAISS's calls in the words of Python's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from . import _core


@contextmanager
def named(names: dict[str, str]) -> Iterator[None]:
    """Errors in the words of FAISS's arguments get those of Python's."""
    try:
        yield
    except _core.FaissError as error:
        message = str(error)
        for of_faiss, ours in names.items():
            message = re.sub(of_faiss, ours, message)
        raise _core.FaissError(message) from None
