"""pickles.py: what torch wrote comes out bit for bit; whatever else a file holds, nothing runs.

``golden_torch`` holds files by ``torch.save`` (see ``golden/make_torch_files.py``).
"""

import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from formats_native import (
    call,
    flag,
    mapping,
    name,
    number,
    numbers,
    persistent,
    program,
    several,
    storage,
    tensor,
    text,
    write_archive,
    write_zip64,
)
from hypothesis import given
from hypothesis import strategies as st

from convert.readers import stored_zip, unpickle
from convert.readers.extent import Joined
from convert.readers.pickles import read_tensors
from mlx_mixtral.errors import ModelError

GOLDEN = Path(__file__).parent / "golden_torch"
ARRAYS = GOLDEN / "arrays/arrays.pth"


def bits(array):
    """Comparable whatever the floats are, not-a-numbers and all."""
    width = {2: mx.uint16, 4: mx.uint32}[array.dtype.size]
    return array.shape, array.dtype, np.array(array.reshape(-1).view(width)).tobytes()


def values(file):
    joined = file if isinstance(file, Joined) else Joined((file,))
    return {key: bits(part.read()) for key, part in read_tensors(joined).items()}


def refused(file, *words):
    """The file is refused in one line that has all of the words."""
    with pytest.raises(ModelError) as error:
        values(file)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 400
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def truth():
    stored = mx.load(str(GOLDEN / "arrays/values.safetensors"))
    return {key: bits(array) for key, array in stored.items()}


# --- what torch wrote


@pytest.mark.parametrize("file", ["arrays.pth", "protocol4.pth", "without_crc.pth"])
def test_torch(truth, file):
    """Views, transposed matrices, shared storages, parameters: one storage serves eight tensors."""
    assert values(GOLDEN / "arrays" / file) == truth
    tensors = read_tensors(Joined((GOLDEN / "arrays" / file,)))
    assert len({tensors[key].extent.offset for key in ("whole", "transposed", "flat")}) == 1


@pytest.mark.parametrize("step", [5, 64, 997])
def test_torch_in_pieces(tmp_path, truth, step):
    data = ARRAYS.read_bytes()
    pieces = []
    for n in range(0, len(data), step):
        pieces.append(tmp_path / f"{n:05}")
        pieces[-1].write_bytes(data[n : n + step])
    assert values(Joined(tuple(pieces))) == truth


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("steps", ["tensor a", "strides [6, 2]", "contiguous()"]),
        ("three_axes", ["strides [12, 1, 4]"]),
        ("expanded", ["strides [0, 1]"]),
        ("integers", ["torch.LongStorage", "float16"]),
        ("path", ["would run code (pathlib.PosixPath); refused"]),
        ("module", ["would run code (torch.nn.modules.linear.Linear); refused"]),
        ("negated", ["tensor a", "more to it than its values"]),
        ("old", ["before 1.6", "save it again"]),
        ("list", ["no tensors", "state_dict()"]),
        ("two_models", ["several models"]),
        ("script", ["TorchScript", "state_dict()"]),
    ],
)
def test_torch_refused(file, words):
    refused(GOLDEN / f"refused/{file}.pth", f"{file}.pth", *words)


# --- pickles that would run code


def touch(marker):
    return f"open({str(marker)!r}, 'w').close()"


class Call:
    """Pickles as a call, in whatever way Python's own pickler writes one."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return self.function, self.arguments, self.state


def getattr_chain(marker):
    builtins = name("builtins", "getattr")
    imported = call(name("builtins", "__import__"), text("os"))
    system = call(builtins, imported, text("system"))
    return program(call(system, text(f"touch '{marker}'")))


def attrgetter(marker):
    getter = call(name("operator", "attrgetter"), text("system"))
    return program(call(call(getter, call(name("builtins", "__import__"), text("os"))),
                        text(f"touch '{marker}'")))  # fmt: skip


def partial(marker):
    bound = call(name("functools", "partial"), name("builtins", "exec"), text(touch(marker)))
    return program(call(bound))


def mapped(marker):
    lazily = call(name("builtins", "map"), name("builtins", "exec"), several(text(touch(marker))))
    return program(call(name("builtins", "list"), lazily))


def built(marker):
    """BUILD sets attributes of a partial, which REDUCE then calls."""
    empty = call(name("functools", "partial"), name("builtins", "print"))
    state = several(name("builtins", "exec"), several(text(touch(marker))), b"}", b"}")
    return program(call(empty + state + b"b"))


def inside(marker):
    """The attack is one of the tensor's own arguments."""
    attack = call(name("builtins", "exec"), text(touch(marker)))
    return program(mapping({"a": tensor(storage("0", 4), [2, 2], [2, 1]) + attack + b"0"}))


def nested_tensor(marker):
    attack = call(name("os", "system"), text(f"touch '{marker}'"))
    return program(mapping({"a": tensor(attack, [2, 2], [2, 1])}))


def persistent_attack(marker):
    return program(call(name("builtins", "exec"), text(touch(marker))) + b"Q")


LIVE = {  # each of them, unpickled by Python, makes the file ``marker``
    "os.system": lambda m: pickle.dumps(Call(os.system, f"touch '{m}'"), 2),
    "os.system, protocol 0": lambda m: pickle.dumps(Call(os.system, f"touch '{m}'"), 0),
    "os.system, protocol 5": lambda m: pickle.dumps(Call(os.system, f"touch '{m}'"), 5),
    "posix.system": lambda m: program(call(name("posix", "system"), text(f"touch '{m}'"))),
    "eval": lambda m: pickle.dumps(Call(eval, touch(m)), 2),
    "exec": lambda m: pickle.dumps(Call(exec, touch(m)), 4),
    "subprocess": lambda m: pickle.dumps(Call(subprocess.call, ["touch", str(m)]), 2),
    "open": lambda m: program(call(name("builtins", "open"), text(str(m)), text("w"))),
    "io.open": lambda m: program(call(name("io", "open"), text(str(m)), text("w"))),
    "pathlib": lambda m: pickle.dumps(Call(Path.touch, Path(m)), 4),
    "getattr": getattr_chain,
    "attrgetter": attrgetter,
    "partial": partial,
    "map": mapped,
    "BUILD": built,
    "POP": inside,
    "in a tensor": nested_tensor,
    "INST": lambda m: b"(" + text(f"touch '{m}'") + b"ios\nsystem\n.",
    "OBJ": lambda m: b"(" + name("os", "system") + text(f"touch '{m}'") + b"o.",
    "STACK_GLOBAL": lambda m: b"\x80\x04" + call(text("os") + text("system") + b"\x93",
                                                 text(f"touch '{m}'")) + b".",
    "numpy": lambda m: program(call(name("numpy.testing._private.utils", "runstring"),
                                    text(touch(m)), b"}")),
    "timeit": lambda m: program(call(name("timeit", "timeit"), text(touch(m)), text("pass"),
                                     name("time", "time"), number(1))),
    "persistent id": persistent_attack,
}  # fmt: skip


# Python's own unpickler, for which torch is there and does nothing.
FOOL = """
import pickle, sys
class Fool(pickle.Unpickler):
    def find_class(self, module, name):
        torch = module.startswith("torch")
        return (lambda *arguments: None) if torch else super().find_class(module, name)
    def persistent_load(self, pid):
        return pid
Fool(sys.stdin.buffer).load()
"""


@pytest.mark.parametrize("attack", LIVE)
def test_attack(tmp_path, attack):
    marker = tmp_path / "marker"
    data = LIVE[attack](marker)
    file = write_archive(tmp_path / "a.pth", data, {"0": bytes(8)})
    refused(file, "a.pth", "refused")
    # In a mapping, beside a tensor as it should be.
    body = data[2:-1] if data.startswith(b"\x80") else data[:-1]
    beside = mapping({"a": tensor(storage("0", 4), [2, 2], [2, 1]), "b": body})
    refused(write_archive(tmp_path / "a.pth", program(beside), {"0": bytes(8)}), "refused")
    assert not marker.exists()
    # And it is an attack: who trusts it falls for it.
    subprocess.run([sys.executable, "-c", FOOL], input=data, capture_output=True, check=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        name("torch", "load"),
        name("torch.hub", "load"),
        name("torch", "LongStorage"),
        name("torch", "FloatStorage.__init__"),
        name("torch.storage", "_load_from_bytes"),
        name("torch._utils", "_rebuild_tensor_v2.__globals__"),
        name("torch._tensor", "_rebuild_from_type_v2"),
        name("numpy.core.multiarray", "_reconstruct"),
        name("numpy", "dtype"),
        name("_codecs", "encode"),
        name("copyreg", "_reconstructor"),
        name("copy_reg", "_reconstructor"),
        name("__builtin__", "eval"),
        name("builtins", "dict"),
        name("collections", "OrderedDict.__class__"),
        name("collections", "Counter"),
        name("this", "s"),
        name("\u0441ollections", "OrderedDict"),
        text("collections\nos") + text("system") + b"\x93",
        text("collections") + number(1) + b"\x93",
        b"\x82\x01",  # EXT1: a class by number
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        name("collections", "OrderedDict") + b")\x81",  # NEWOBJ
        name("collections", "OrderedDict") + b")}\x92",
        name("torch", "BFloat16Storage") + b")R",
        name("collections", "OrderedDict") + b"]R",
        call(name("collections", "OrderedDict"), several(text("a"), number(1))),
        call(name("collections", "OrderedDict")) + number(1) + b"R",
        text("eval") + b")R",
        number(1) + b"}b",  # BUILD
        name("collections", "OrderedDict") + b"}b",
        call(name("torch._utils", "_rebuild_parameter"), number(1), flag(True), b"}"),
        call(name("torch._utils", "_rebuild_parameter")),
        call(name("torch._utils", "_rebuild_tensor_v2"), number(1), b")", b")", b")"),
        b"P" + b"storage\n",  # a persistent id in text
        text("storage") + b"Q",
        b"I1\n",
        b"L1L\n",
        b"\x8b\x01\x00\x00\x00\x01",  # LONG4
        b"C\x01a",
        b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a",  # BYTEARRAY8
        b"\x97",
        b"\x8f",  # EMPTY_SET
        b"\x8f(\x91",
        number(1) + b"2",  # DUP
        b"}" + number(1) + b"s",
        b"})" + number(1) + b"s",  # a tuple as a key
        b"}\x88" + number(1) + b"s",
        b"}" + 2 * (text("a") + number(1) + b"s"),
        number(1) + number(2) + b"a",
        b"\xff",
    ],
)
def test_nothing_else_in_a_pickle(tmp_path, value):
    """Refused wherever it stands, without an import."""
    data = {"0": bytes(8)}
    beside = {"a": tensor(storage("0", 4), [2, 2], [2, 1]), "b": value}
    refused(write_archive(tmp_path / "a.pth", program(value), data), "a.pth: data.pkl")
    refused(write_archive(tmp_path / "a.pth", program(mapping(beside)), data), "a.pth: data.pkl")
    assert not {"this", "numpy.core.multiarray", "torch"} & set(sys.modules)


# --- tensors that are not where they are said to be

SOUND = {"kept": storage("0", 6), "size": [2, 3], "stride": [3, 1], "offset": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kept": storage("0", 7)}, ["storage 0 of 12 bytes"]),
        ({"kept": storage("0", 5)}, ["storage 0 of 12 bytes"]),
        ({"kept": storage("0", 6, "FloatStorage")}, ["storage 0 of 12 bytes"]),
        ({"kept": storage("0", -6)}, ["storage 0"]),
        ({"kept": storage("0", 1 << 70)}, ["storage 0"]),
        ({"kept": storage("1", 6)}, ["storage 1", "missing"]),
        ({"kept": storage("", 6)}, ["missing"]),
        ({"kept": storage("../data/0", 6)}, ["missing"]),
        ({"kept": storage("/etc/passwd", 6)}, ["missing"]),
        ({"kept": storage("0\n", 6)}, ["missing"]),
        ({"offset": 1}, ["behind the end"]),
        ({"offset": -1}, ["impossible shape"]),
        ({"offset": 1 << 62}, ["impossible shape"]),
        ({"offset": (1 << 60) - 1}, ["behind the end"]),
        ({"size": [2, 4]}, ["behind the end"]),
        ({"size": [-2, -3]}, ["impossible shape"]),
        ({"size": [1 << 40, 1 << 40], "stride": [1 << 40, 1]}, ["behind the end"]),
        ({"size": [1 << 700, 3]}, ["impossible shape"]),
        ({"size": [2]}, ["impossible shape"]),
        ({"size": [1] * 5, "stride": [1] * 5}, ["impossible shape"]),
        ({"stride": [3]}, ["impossible shape"]),
        ({"stride": [3, -1]}, ["impossible shape"]),
        ({"stride": [1, 1]}, ["strides [1, 1]"]),
        ({"stride": [4, 1]}, ["strides [4, 1]"]),
        ({"stride": [0, 0]}, ["strides [0, 0]"]),
        ({"stride": [1, 3]}, ["strides [1, 3]"]),
    ],
)
def test_tensor_refused(tmp_path, changes, words):
    file = tmp_path / "a.pth"
    sound = mapping({"a": tensor(**SOUND)})
    assert values(write_archive(file, program(sound), {"0": bytes(12)}))
    pickled = program(mapping({"a": tensor(**(SOUND | changes))}))
    refused(write_archive(file, pickled, {"0": bytes(12)}), "tensor a", *words)


TYPE = name("torch", "BFloat16Storage")


@pytest.mark.parametrize(
    "kept",
    [
        persistent(),
        persistent(text("storage"), TYPE, text("0"), text("cpu")),
        persistent(text("storage"), TYPE, text("0"), text("cpu"), number(6), b"N"),
        persistent(text("module"), TYPE, text("0"), text("cpu"), number(6)),
        persistent(text("storage"), text("BFloat16Storage"), text("0"), text("cpu"), number(6)),
        persistent(text("storage"), name("collections", "OrderedDict"), text("0"), text("cpu"),
                   number(6)),
        persistent(text("storage"), TYPE, number(0), text("cpu"), number(6)),
        persistent(text("storage"), TYPE, b")", text("cpu"), number(6)),
        persistent(text("storage"), TYPE, text("0"), b"N", number(6)),
        persistent(text("storage"), TYPE, text("0"), text("cpu"), text("6")),
        persistent(text("storage"), TYPE, text("0"), text("cpu"), flag(True)),
        persistent(text("storage"), TYPE, text("0"), text("cpu"), b"G" + struct.pack(">d", 6)),
        persistent(storage("0", 6), TYPE, text("0"), text("cpu"), number(6)),
    ],
)  # fmt: skip
def test_persistent_id_refused(tmp_path, kept):
    pickled = program(mapping({"a": tensor(kept, [2, 3], [3, 1])}))
    refused(write_archive(tmp_path / "a.pth", pickled, {"0": bytes(12)}), "tensor a", "storage")


@pytest.mark.parametrize(
    "shape", [b"N", b"]", number(6), text("ab"), several(flag(True), number(6)),
              several(text("2"), number(3)), several(b"G" + bytes(8), number(3)),
              several(b")", b")")],
)  # fmt: skip
@pytest.mark.parametrize("place", [1, 2, 3])
def test_shape_of_another_type(tmp_path, shape, place):
    parts = [storage("0", 6), number(0), numbers(2, 3), numbers(3, 1), flag(False), b"}"]
    parts[place] = shape if place > 1 or shape != number(6) else b"\x88"
    pickled = program(mapping({"a": call(name("torch._utils", "_rebuild_tensor_v2"), *parts)}))
    refused(write_archive(tmp_path / "a.pth", pickled, {"0": bytes(12)}), "a.pth")


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m", "\ud800", "a\u202eb"])
def test_name_refused(tmp_path, key):
    pickled = program(mapping({key: tensor(**SOUND)}))
    refused(write_archive(tmp_path / "a.pth", pickled, {"0": bytes(12)}), "no name")


def test_mapping_of_tensors(tmp_path):
    """Flat, or one within another; what is no tensor is left out."""
    part = tensor(**SOUND)
    inner = mapping({"a": part})
    for value in (
        inner,
        mapping({"a": part, "step": number(7), "args": b"}"}),
        mapping({"model": inner}),
        mapping({"step": number(7), "state_dict": inner, "optimizer": mapping({"state": b"]"})}),
        mapping({"a": call(name("torch._utils", "_rebuild_parameter"), part, flag(True), b"}")}),
        b"\x80\x05" + inner,
    ):
        file = write_archive(tmp_path / "a.pth", program(value), {"0": bytes(12)})
        assert list(values(file)) == ["a"]
    for value in (part, b"}", b"N", mapping({"a": mapping({"b": inner})}), number(1)):
        file = write_archive(tmp_path / "a.pth", program(value), {"0": bytes(12)})
        refused(file, "no tensors")


# --- pickles that take more than they are long


def in_time(tmp_path, pickled, *words):
    start = time.perf_counter()
    refused(write_archive(tmp_path / "a.pth", pickled, {"0": bytes(12)}), *words)
    assert time.perf_counter() - start < 10


def test_bombs(tmp_path):
    # A tuple of two of a tuple of two ..., 200 deep: as a key, a persistent id, an argument.
    doubled = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(200))
    in_time(tmp_path, program(b"}" + doubled + b"Ns"), "keys other than names")
    in_time(tmp_path, program(mapping({"a": tensor(doubled + b"Q", [2, 3], [3, 1])})), "tensor a")
    in_time(tmp_path, program(text("collections") + doubled + b"\x93"), "no name")
    odd = [SOUND["kept"], number(0), numbers(2, 3), numbers(3, 1), b"N", b"N", doubled]
    rebuilt = call(name("torch._utils", "_rebuild_tensor_v2"), *odd)
    in_time(tmp_path, program(mapping({"a": rebuilt})), "more to it")
    # A memo as large as its largest number.
    in_time(tmp_path, program(b"Nr\xff\xff\xff\xff"), "no tensors")
    # Deep nesting.
    in_time(tmp_path, program(b")" + b"\x85" * 300_000), "no tensors")
    in_time(tmp_path, program(b"(" * 300_000), "damaged")
    in_time(tmp_path, program(b"]" * 200_000 + b"a" * 199_999), "no tensors")
    # One mapping, 100,000 times over.
    often = b"".join(text(str(n)) + b"h\x00" for n in range(100_000))
    in_time(tmp_path, program(b"}q\x00(" + often + b"u"), "no tensors")
    # More steps, and more bytes, than any model needs.
    in_time(tmp_path, program(b"N" * (unpickle.MOST_STEPS + 1)), "steps")
    in_time(tmp_path, program(text("a" * unpickle.MOST_BYTES)), "bytes, more than weights need")
    # Lengths that are not there.
    for opcode in (b"X", b"T", b"B", b"\x8a", b"\x8b", b"\x8d", b"\x8e", b"\x95", b"\x96"):
        for length in (b"\xff" * 8, b"\xff" * 3 + b"\x7f"):
            in_time(tmp_path, program(opcode + length), "a.pth")
    in_time(tmp_path, program(b"L" + b"9" * 100_000 + b"L\n"), "a.pth")


# --- archives


@pytest.fixture
def sound(tmp_path):
    """An archive with one tensor."""
    pickled = program(mapping({"a": tensor(**SOUND)}))
    return write_archive(tmp_path / "a.pth", pickled, {"0": bytes(12)})


def rewritten(file, **settings):
    """The same entries, written in another way."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", **settings) as archive:
        for path, data in entries.items():
            archive.writestr(path, data)
    return file


def test_archive_refused(sound, tmp_path):
    refused(rewritten(sound, compression=zipfile.ZIP_DEFLATED), "'archive/byteorder'", "compressed")
    pickled = program(mapping({"a": tensor(**SOUND)}))
    file = tmp_path / "b.pth"
    refused(write_archive(file, pickled, {"0": bytes(12)}, byteorder=b"big"), "byte order")
    refused(write_archive(file, pickled, {"0": bytes(12)}, byteorder=bytes(99)), "byte order")
    refused(write_archive(file, pickled, {"0": bytes(12)}, **{"b/data.pkl": b"N."}), "torch.save")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data/0", bytes(12))
    refused(file, "'archive/data/0' twice")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickled)
    refused(file, "torch.save")
    file.write_bytes(b"")
    refused(file, "not a whole zip archive")
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(file, "not a whole zip archive", "fetch it again")
    refused(tmp_path / "absent.pth", "absent.pth")


def test_bomb_of_zeros(tmp_path, sound):
    """A compressed entry is refused for what it is, not unpacked."""
    with zipfile.ZipFile(sound, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(50_000_000))
    pickled = program(mapping({"a": tensor(storage("1", 25_000_000), [5000, 5000], [5000, 1])}))
    file = write_archive(tmp_path / "b.pth", pickled, {"0": b""})
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(50_000_000))
    assert file.stat().st_size < 100_000
    refused(file, "'archive/data/1' is compressed")


@pytest.mark.parametrize(
    ("at", "change", "words"),
    [
        (0, b"PK\3\5", ["disagree"]),
        (8, b"\x08\0", ["disagree"]),  # its way of compression
        (18, b"\x0d\0\0\0", ["disagree"]),  # its size
        (18, b"\0\0\0\0", ["disagree"]),
        (26, b"\x0d\0", ["disagree"]),  # the length of its name
        (28, b"\xff\xff", ["behind the end"]),  # the length of what follows it
        (30, b"archivf/data/0", ["another name"]),
    ],
)
def test_header_refused(sound, at, change, words):
    """The two places that tell of an entry do not tell the same."""
    data = bytearray(sound.read_bytes())
    begin = data.index(b"archive/data/0") - 30
    data[begin + at : begin + at + len(change)] = change
    sound.write_bytes(data)
    refused(sound, "'archive/data/0'", *words)


@pytest.mark.parametrize(
    ("at", "change", "words"),
    [
        (8, b"\1\0", ["encrypted"]),
        (10, b"\x0c\0", ["compressed"]),
        (20, b"\xff\xff\xff\x7f", ["compressed"]),
        (20, 2 * b"\xff\xff\xff\x7f", ["disagree"]),
        (42, b"\xff\xff\xff\x7f", ["outside the file"]),
        (42, b"\1\0\0\0", ["disagree"]),
    ],
)
def test_directory_refused(sound, at, change, words):
    data = bytearray(sound.read_bytes())
    begin = data.rindex(b"archive/data/0") - 46
    data[begin + at : begin + at + len(change)] = change
    sound.write_bytes(data)
    refused(sound, "'archive/data/0'", *words)


def test_sizes_that_follow(tmp_path):
    """torch writes no sizes into an entry's own header; they stand in the directory."""
    data = bytearray(ARRAYS.read_bytes())
    begin = data.index(b"arrays/data/0") - 30
    assert data[begin + 6] & 8
    assert data[begin + 18 : begin + 26] == bytes(8)
    data[begin + 6] = 0
    file = tmp_path / "a.pth"
    file.write_bytes(data)
    refused(file, "disagree")


def test_long_directory(sound, monkeypatch):
    """A directory is not read, whatever length the archive claims for it."""
    monkeypatch.setattr(stored_zip, "LONGEST_DIRECTORY", 200)
    refused(sound, "a directory of")
    file = write_zip64(sound, [("archive/data.pkl", 0, b"N.")])
    data = bytearray(file.read_bytes())
    data[-22 - 20 - 16 : -22 - 20 - 8] = struct.pack("<Q", 1 << 62)
    file.write_bytes(data)
    refused(sound, "not a whole zip archive")


def test_cut_short(sound):
    data = sound.read_bytes()
    for end in range(len(data)):
        sound.write_bytes(data[:end])
        refused(sound, "a.pth")


def test_beginning_missing(sound):
    """The directory is found from the end, and points before the file."""
    sound.write_bytes(sound.read_bytes()[20:])
    refused(sound, "lies outside the file")


def test_more_than_32_bits(tmp_path):
    """Sizes and offsets of more than 4 GiB, in an archive that is mostly a hole."""
    rows = np.arange(8, dtype="<f4")
    hole = 5 << 30
    count = hole // 4 + 8
    pickled = program(
        mapping(
            {
                "last": tensor(storage("0", count, "FloatStorage"), [2, 4], [4, 1], hole // 4),
                "after": tensor(storage("1", 2, "FloatStorage"), [2], [1]),
            }
        )
    )
    entries = [
        ("archive/data/0", hole, rows.tobytes()),
        ("archive/data/1", 0, rows[:2].tobytes()),
        ("archive/data.pkl", 0, pickled),
    ]
    file = write_zip64(tmp_path / "a.pth", entries)
    assert file.stat().st_size > 5 << 30
    assert values(file) == {
        "last": bits(mx.array(rows.reshape(2, 4))),
        "after": bits(mx.array(rows[:2])),
    }


# --- any bytes at all


def bounded(file):
    """Refused, or every tensor lies within the file."""
    try:
        tensors = read_tensors(Joined((file,)))
    except ModelError as error:
        tensors, message = {}, str(error)
    else:
        message = ""
    assert not message or message.isprintable()
    size = file.stat().st_size
    for part in tensors.values():
        assert 0 <= part.extent.offset <= part.extent.offset + part.nbytes <= size
        assert part.read().shape == part.shape


@st.composite
def damaged(draw, data):
    """``data`` with a few bytes changed, slices moved, taken out or put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        match draw(st.sampled_from(["byte", "number", "out", "in", "copy"])):
            case "byte":
                out[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1]))
                out[at : at + 4] = number.to_bytes(4, "little")
            case "out":
                del out[at : at + draw(st.integers(1, 40))]
            case "in":
                out[at:at] = draw(st.binary(max_size=20))
            case "copy":
                begin = draw(st.integers(0, max(0, len(out) - 1)))
                out[at:at] = out[begin : begin + draw(st.integers(1, 60))]
    return bytes(out)


PICKLE = zipfile.ZipFile(ARRAYS).read("arrays/data.pkl")


@pytest.mark.fuzz
@given(data=damaged(ARRAYS.read_bytes()))
def test_damaged_archive(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "damaged.pth"
    file.write_bytes(data)
    bounded(file)


@pytest.mark.fuzz
@given(data=damaged(PICKLE))
def test_damaged_pickle(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "damaged.pth"
    bounded(write_archive(file, data, {str(n): bytes(48) for n in range(5)}))
