"""An interpreter of pickles that can make tensors, and nothing else.

A pickle is a program, and Python's own interpreter calls whatever the program names. This one
knows the opcodes that ``torch.save`` writes and works on values that can do nothing: nothing is
imported, and nothing is called. It also spends no more time and memory than the pickle is long.
Python's does not hold to that even where it is kept from importing anything: 300 bytes are
enough for a tuple whose hash takes years, and 20 for a table of 16 GB.

Format: the texts in Python's module pickletools.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

# 8x22B, with 1,739 tensors, takes some 300 kB and 60,000 steps.
MOST_BYTES = 8 << 20
MOST_STEPS = 1_000_000

STORAGES = {
    "torch BFloat16Storage": mx.bfloat16,
    "torch HalfStorage": mx.float16,
    "torch FloatStorage": mx.float32,
}
# Whatever else a pickle names is refused.
_CALLS = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)


class Refused(Exception):
    """What is wrong with the pickle, in one line."""


@dataclass(frozen=True)
class Global:
    """One of the names above."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage as the pickle tells of it: ``("storage", type, key, device, count)``, or not."""

    told: tuple[Any, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle tells of it: storage, offset, size, stride and more, unchecked."""

    told: tuple[Any, ...]


def run(pickle: bytes) -> Any:
    """The value that ``pickle`` makes: of dicts, lists, tuples, scalars and the classes above.

    It may hold itself, or be far larger when it is walked through than it is in memory: what
    is in a tuple, list or dict may be there any number of times.

    Raises:
        Refused: it is damaged, takes too many steps, or does something that tensors do not need.
    """
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if step == MOST_STEPS:
                raise Refused(f"data.pkl takes more than {MOST_STEPS:,} steps; refused")
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except (IndexError, KeyError, ValueError):
        raise Refused("data.pkl is damaged; fetch the file again") from None
    return value


class _Machine:
    """A stack of values and a memo.

    Where an opcode lacks what it needs, a step raises IndexError, KeyError or ValueError.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                push(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self._outer.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self._to_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([pop() for _ in range(int(opcode[-1]))][::-1]))
            case "APPEND" | "APPENDS":
                items = [pop()] if opcode == "APPEND" else self._to_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [pop(), pop()][::-1] if opcode == "SETITEM" else self._to_mark()
                _fill(self._top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_global(argument))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                push(_global(f"{_text(module)} {_text(name)}"))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_made(function, arguments))
            case "BUILD":
                pop()  # a state_dict() keeps the versions of its modules as an attribute
                self._top(dict)
            case "BINPERSID":
                push(Storage(_tuple(pop())))
            case _:
                raise Refused(f"data.pkl uses {opcode}, which torch.save does not write; refused")

    def _to_mark(self) -> list[Any]:
        """Drops what lies above the last mark, and returns it."""
        items, self.stack = self.stack, self._outer.pop()
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"data.pkl puts things into what is no {kind.__name__}; refused")
        return self.stack[-1]


def _fill(mapping: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys, such as tuples of tuples of tuples, can take for ever to hash.
        if type(key) not in (str, int):
            raise Refused("data.pkl has a mapping with keys other than names; refused")
        if key in mapping:
            raise Refused(f"data.pkl has {shown(key)} twice; fetch the file again")
        mapping[key] = value


def _global(name: str) -> Global:
    if name in _CALLS or name in STORAGES:
        return Global(name)
    dotted = shown(name.replace(" ", "."))
    if name.startswith("torch ") and name.endswith("Storage"):
        raise Refused(f"data.pkl holds a {dotted}; weights are bfloat16, float16 or float32")
    raise Refused(f"data.pkl would run code ({dotted}); refused")


def _made(function: Any, arguments: Any) -> Any:
    """What the call of ``function`` stands for."""
    name = function.name if type(function) is Global else None
    match name, _tuple(arguments):
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2", (Storage(), _, _, _, *_):
            return Tensor(arguments)
        case "torch._utils _rebuild_parameter", (Tensor() as data, _, _):
            return data
    raise Refused("data.pkl makes something else than tensors; refused")


def _tuple(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise Refused("data.pkl gives arguments that are no tuple; refused")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Refused("data.pkl names something by what is no name; refused")
    return value


def shown(name: str | int) -> str:
    """A name from the pickle as part of one line."""
    text = str(name)[:80]
    return text if text.isprintable() else ascii(text)
