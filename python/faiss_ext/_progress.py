"""Progress where something is verbose: a bar of tqdm's, if it is installed."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Bar:
    """Counts on standard error; without tqdm, or not shown, it is silent.

    Parameters
    ----------
    shown : bool
    total : int or None
    text : str
        In front of the bar.
    unit : str
        Of what is counted.
    """

    def __init__(
        self, shown: bool, total: int | None, text: str, unit: str
    ) -> None:
        self._shown = shown
        self._bar: Any = None
        if not shown:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        self._bar = tqdm(
            total=total, desc=text, unit=unit, unit_scale=True, leave=False
        )

    def advance(self, n: int = 1, note: str = "") -> None:
        """So much more is done; the note stands behind the bar."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._shown:
            print(text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
