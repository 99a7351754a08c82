"""Imports go downward only. Read from the source, whatever a run would happen to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("mlx_mixtral/**/*.py"), *ROOT.glob("convert/**/*.py")])

# Each part of mlx_mixtral and the parts that it may import; what only types need is free.
ARROWS = {
    "errors": "",
    "jsonfile": "errors",
    "config": "jsonfile errors",
    "catalog": "errors",
    "shards": "jsonfile errors",
    "weights": "shards config errors",
    "tokenizer": "jsonfile errors",
    "template": "tokenizer jsonfile errors",
    "model": "config errors",
    "tuning": "",
    "experts": "tuning model weights config errors",
    "blas": "",
    "before_mlx": "blas tuning",
    "cpu": "blas tuning experts model",
    "network": "cpu experts model shards weights config errors",
    "memory": "generation config errors",
    "budget": "errors",
    "streaming": "budget network cpu experts model weights config errors",
    "loading": "budget streaming memory generation network jsonfile weights model config catalog "
    "tokenizer template errors",
    "generation": "experts shards tuning model config errors",
    "chat": "loading generation model config errors",
    "server": "loading memory generation weights template tokenizer config errors",
    "lab": "chat loading streaming budget network memory cpu generation experts model weights "
    "template tokenizer config tuning before_mlx jsonfile catalog errors",
}
# What takes long to import and `import mlx_mixtral` and `mixtral-mlx --help` do without.
HEAVY = {"mlx_lm", "transformers", "torch", "huggingface_hub", "jinja2", "rich", "prompt_toolkit"}
HEAVY |= {"fastapi", "uvicorn", "pydantic", "structlog", "llguidance", "prometheus_client"}


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file): file for file in FILES}


def imports(file, *, types=True, inside_functions=True):
    """The full names that a file imports; of ``from a import b`` both a and a.b."""
    names, todo = set(), list(ast.parse(file.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += [*(node.body if types else []), *node.orelse]
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return names


def part(name):
    """``mlx_mixtral.model.moe`` belongs to ``model``."""
    top, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return first if top == "mlx_mixtral" else ""


def inner(files=FILES):
    """(file, its part) within mlx_mixtral, below cli."""
    found = [(file, part(module(file))) for file in files]
    return [(file, of) for file, of in found if of not in ("", "cli", "__main__")]


def test_every_part_has_a_place_in_the_plan():
    assert {of for _, of in inner()} <= set(ARROWS)


@pytest.mark.parametrize("file", [f for f, _ in inner()], ids=module)
def test_imports_go_downward(file):
    own = part(module(file))
    wanted = {part(name) for name in imports(file, types=False)} - {"", own, "__version__"}
    assert wanted <= set(ARROWS[own].split())


def test_the_arrows_themselves_make_no_circle():
    placed = set()
    while rest := [p for p in ARROWS if p not in placed]:
        free = {p for p in rest if set(ARROWS[p].split()) <= placed}
        assert free, f"a circle among {rest}"
        placed |= free


def test_experts_know_of_the_model_only_the_seam():
    for file in ROOT.glob("mlx_mixtral/experts/*.py"):
        known = {name for name in imports(file) if part(name) == "model"}
        assert all(name.startswith("mlx_mixtral.model.moe") for name in known), file


def test_the_model_is_arithmetic_alone():
    """No paths, no files, no printing, nothing of the device's or the user's."""
    for file in ROOT.glob("mlx_mixtral/model/*.py"):
        tops = {name.partition(".")[0] for name in imports(file)}
        library = {"__future__", "collections", "functools", "itertools", "typing"}
        assert tops <= {*library, "mlx", "mlx_mixtral"}, file
        names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
        assert not names & {"print", "open"}, file


def test_convert_knows_the_format_and_no_more():
    for file in ROOT.glob("convert/**/*.py"):
        known = {part(name) for name in imports(file)} - {""}
        # What a calibration text is, the tokenizer and the template know.
        text = {"tokenizer", "template"} if file.stem == "calibration" else set()
        assert known <= {"config", "weights", "shards", "jsonfile", "errors"} | text, file


def test_nothing_below_cli_imports_convert_or_cli():
    for file, _ in inner():
        names = imports(file)
        assert not [n for n in names if n.partition(".")[0] == "convert"], file
        assert not [n for n in names if part(n) == "cli"], file
    for file in ROOT.glob("convert/**/*.py"):
        assert not [n for n in imports(file) if part(n) == "cli"], file


def test_no_module_is_a_drawer_for_everything():
    assert not [
        m for m in MODULES if m.rpartition(".")[2] in ("utils", "util", "common", "helpers")
    ]


@pytest.mark.parametrize("start", ["mlx_mixtral", "mlx_mixtral.__main__", "convert"])
def test_nothing_heavy_at_the_door(start):
    """Followed from module to module, as far as imports run on import."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        found = imports(MODULES[name], types=False, inside_functions=False)
        assert not {n for n in found if n.partition(".")[0] in HEAVY}, name
        packages = {n.rpartition(".")[0] for n in found}
        todo += [*found, *packages]


def test_importing_the_package_is_light():
    code = "import mlx_mixtral, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert "mlx_mixtral" in loaded
    assert not loaded & (HEAVY | {"mlx", "numpy", "sentencepiece"})
