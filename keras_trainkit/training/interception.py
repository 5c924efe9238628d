"""Calls of one object's method, taken over for a while and in one thread only."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

_lock = threading.Lock()
_users: dict[tuple[int, str], int] = {}
_before: dict[tuple[int, str], Any] = {}
_local = threading.local()


@contextlib.contextmanager
def intercepted(target: Any, method: str, handler: Callable[..., Any]) -> Iterator[None]:
    """Has `handler(original, *arguments)` answer the calls of `target.method` that this thread makes.

    Where one is inside of another the inner handler is asked first, and its `original` is the outer one.

    MirroredStrategy runs each replica in a thread of its own and changes between them in the middle of a step, so other
    threads keep the method as it is. Afterwards the object has nothing left of it: copies and saved files are clean.
    """
    key = (id(target), method)
    stack = _stacks().setdefault(key, [])
    with _lock:
        _users[key] = _users.get(key, 0) + 1
        if _users[key] == 1:
            if method in vars(target):
                _before[key] = vars(target)[method]
            # Past `__setattr__`, where Keras would track it.
            vars(target)[method] = _dispatcher(target, method)
    stack.append(handler)
    try:
        yield
    finally:
        stack.pop()
        with _lock:
            _users[key] -= 1
            if not _users[key]:
                del _users[key], vars(target)[method]
                if key in _before:
                    vars(target)[method] = _before.pop(key)


def _dispatcher(target: Any, method: str) -> Callable[..., Any]:
    # A method that was put into this one object comes before that of its class.
    original, key = getattr(target, method), (id(target), method)

    def dispatch(*arguments: Any, **keywords: Any) -> Any:
        answer = original
        for handler in _stacks().get(key, ()):
            answer = functools.partial(handler, answer)
        return answer(*arguments, **keywords)

    return dispatch


def _stacks() -> dict[tuple[int, str], list[Callable[..., Any]]]:
    if not hasattr(_local, "stacks"):
        _local.stacks = {}
    return _local.stacks
