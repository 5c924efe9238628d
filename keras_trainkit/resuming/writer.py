"""Writing beside the training: one state at a time, in a thread of its own, whose errors come back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Runs one task at a time in another thread, which Python lets end before it ends itself."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], object]) -> None:
        """Begins a task, after the one that is running.

        Raises:
            Whatever that one raised.
        """
        self.wait()

        def run() -> None:
            try:
                task()
            except BaseException as error:  # it is raised where training sees it
                self._error = error

        self._thread = threading.Thread(target=run, name="keras-trainkit-saving")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the task; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises what the last task raised, once."""
        if self._error is not None and not self.busy:
            error, self._error = self._error, None
            raise error
