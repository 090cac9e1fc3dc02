"""Reads a pickle as data: nothing that it names is imported, looked up or called.

A pickle is a program for a stack machine. The standard library's decoder (`pickletools`) splits it
into instructions and executes none; the machine here runs those that build plain containers. What
a program can name is decided by a `Vocabulary`, which also says what a permitted call means. A
global outside the vocabulary ends the reading, whether it would be called or not, and so do the
instructions that no writer of tensors uses (extension codes, old-style instances, buffers out of
band).

Sizes are bounded too: a few bytes can name a list of a list of a list, ten times each, which is a
gigabyte for whoever walks through it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_MOST_STEPS = 5_000_000
_MOST_NODES = 2_000_000
"""Of the result, counted as often as they are reached."""
_DEEPEST = 100
_MOST_MADE = 2**20
"""Letters of texts that calls make, beyond 16 a byte of the program."""
_LARGEST_KEY = 2**60
"""Integers below it have hashes of their own; others can be chosen to collide."""


class Refused(ValueError):
    """What the file does that is not permitted; the caller adds its name and a remedy."""


@dataclass(frozen=True)
class Global:
    """A name of the program, 'torch._utils._rebuild_tensor_v2'. A word, not the thing."""

    name: str


@dataclass(eq=False)
class Instance:
    """An object of a permitted class that is not built: what the program said about it."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


class Vocabulary(Protocol):
    """What a pickle may say.

    `call` and `persistent` raise Refused for what they do not accept.
    """

    def permits(self, name: str) -> bool:
        """Whether a global may be named."""
        ...

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What a permitted global called with these arguments stands for."""
        ...

    def instance(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """A new object of a permitted class."""
        ...

    def build(self, value: Any, state: Any) -> None:
        """Gives an object its state."""
        ...

    def persistent(self, key: Any) -> Any:
        """What is stored outside of the pickle under this key."""
        ...

    def finished(self, value: Any) -> Any:
        """What becomes of a value in the result; plain containers of it are finished next."""
        ...


def read_pickle(program: bytes, vocabulary: Vocabulary) -> Any:
    """The value that the program leaves, made of what the vocabulary returns and plain values.

    Raises:
        Refused: it names, does or builds what is not permitted, or it is damaged.
    """
    machine = _Machine(vocabulary, _MOST_MADE + 16 * len(program))
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if step == _MOST_STEPS:
                raise Refused(f"it has more than {_MOST_STEPS:,} instructions")
            machine.do(opcode.name, argument)
        return _Finisher(vocabulary).finish(machine.result())
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise Refused(f"its contents are damaged: {str(error)[:120] or 'cut off'}") from error


class _Machine:
    """The stack, its marks and the memo."""

    def __init__(self, vocabulary: Vocabulary, most_made: int) -> None:
        self._vocabulary = vocabulary
        self._left = most_made
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        push, pop = self._stack.append, self._stack.pop
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                | "FLOAT" | "BINFLOAT"
                | "STRING" | "BINSTRING" | "SHORT_BINSTRING"
                | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                push(argument)
            case "BYTEARRAY8":
                push(bytes(argument))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self._marked.append(self._stack)
                self._stack = []
            case "POP_MARK":
                self._above()
            case "LIST" | "FROZENSET":
                values = self._above()
                self._stack.append(values)
            case "TUPLE":
                values = self._above()
                self._stack.append(tuple(values))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                values = [pop() for _ in range(count)]
                push(tuple(reversed(values)))
            case "DICT":
                values = self._above()
                self._stack.append({})
                self._set(values)
            case "APPEND":
                value = pop()
                self._extend([value])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._above())
            case "SETITEM":
                value, key = pop(), pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._above())
            case "POP":
                # Beside a mark it removes the mark.
                _ = pop() if self._stack else self._above()
            case "DUP":
                push(self._stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "GLOBAL":
                push(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(self._named(module, attribute))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(self._counted(self._vocabulary.call(_name(function), _tuple(arguments))))
            case "NEWOBJ":
                arguments, cls = pop(), pop()
                push(self._vocabulary.instance(_name(cls), _tuple(arguments)))
            case "BUILD":
                state = pop()
                self._vocabulary.build(self._stack[-1], state)
            case "BINPERSID":
                push(self._vocabulary.persistent(pop()))
            case _:
                raise Refused(f"it uses the pickle instruction {name}")

    def _counted(self, made: Any) -> Any:
        """A text that a call made: a program can ask for a long one many times."""
        self._left -= len(made) if isinstance(made, str | bytes) else 0
        if self._left < 0:
            raise Refused("it makes far more text than it has")
        return made

    def _above(self) -> list[Any]:
        """What was pushed since the last mark."""
        values, self._stack = self._stack, self._marked.pop()
        return values

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise Refused("it appends to what is no list")
        target.extend(values)

    def _set(self, values: Sequence[Any]) -> None:
        target = self._stack[-1]
        items = target.items if isinstance(target, Instance) else target
        if type(items) is not dict or len(values) % 2:
            raise Refused("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            parts = key if type(key) is tuple else (key,)
            if not all(_is_key(part) for part in parts):
                raise Refused("it has a dictionary key that is no plain value")
            items[key] = value

    def _named(self, module: Any, attribute: Any) -> Global:
        if type(module) is not str or type(attribute) is not str:
            raise Refused("it names a global by something else than a word")
        # The names that Python 2 had, which protocol 2 still writes.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        name = f"{module}.{attribute}"
        if not self._vocabulary.permits(name):
            raise Refused(f"it names {name[:120]!r}, which is neither a tensor nor plain data")
        return Global(name)


class _Finisher:
    """The result without globals and instances, each shared part finished once.

    Parts are shared, so their number is counted as somebody who walks through the result meets
    them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._done: dict[int, tuple[Any, int, int]] = {}
        self._under_way: set[int] = set()
        self._kept: list[Any] = []  # finished parts stay alive, so that no two have one id

    def finish(self, value: Any) -> Any:
        return self._finish(value, 0)[0]

    def _finish(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """The finished value, its number of nodes and its height."""
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._under_way or depth > _DEEPEST:
            raise Refused(f"it contains itself, or is nested more than {_DEEPEST} deep")
        self._under_way.add(key)
        finished, nodes, height = self._vocabulary.finished(value), 1, 0
        children: list[tuple[Any, int, int]] = []
        if isinstance(finished, dict):
            children = [self._finish(child, depth + 1) for child in finished.values()]
            names = (self._key(name) for name in finished)
            finished = dict(zip(names, (child[0] for child in children), strict=True))
        elif isinstance(finished, list | tuple):
            children = [self._finish(child, depth + 1) for child in finished]
            finished = type(finished)(child[0] for child in children)
        for _, more, below in children:
            nodes, height = nodes + more, max(height, below + 1)
        if nodes > _MOST_NODES or height > _DEEPEST:
            raise Refused(f"it grows to more than {_MOST_NODES:,} values, or too deep")
        self._under_way.remove(key)
        self._kept.append(value)
        self._done[key] = finished, nodes, height
        return self._done[key]

    def _key(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return tuple(self._key(part) for part in key)
        return key.name if isinstance(key, Global) else key


def walk(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree with their names, joined by dots."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, child in items:
            yield from walk(child, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, tree


def _is_key(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < _LARGEST_KEY
    return value is None or type(value) in (str, bytes, bool, float, Global)


def _name(value: Any) -> str:
    if not isinstance(value, Global):
        raise Refused("it calls what is no global")
    return value.name


def _tuple(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise Refused("it calls a global with something else than arguments")
    return value
