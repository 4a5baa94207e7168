"""The layers of the package: a module imports only from below. Nothing is imported here, sources are parsed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"qllama": "qllama", "qllama.quant": "quant", "qllama.cli": "cli"}

# From top to bottom. A package is one name here; inside itself it may import as it likes. `qllama` is what the package
# itself offers. gguf, hparams, tokenizer and quant stand side by side on purpose: the model binds them.
LAYERS = [
    "qllama.cli",
    "qllama",
    "qllama.llm",
    "qllama.generate",
    "qllama.model",
    "qllama.builder",
    "qllama.weights",
    "qllama.plan qllama.arch qllama.kv_cache qllama.sampling qllama.data",
    "qllama.team",
    "qllama.kernels",
    "qllama.quant qllama.gguf qllama.tokenizer qllama.hparams",
    "qllama.metadata",
    "qllama.jit",
    "qllama.simd",
    "qllama.cpu qllama.errors qllama.ggml",
]
HEIGHT = {name: -i for i, layer in enumerate(LAYERS) for name in layer.split()}


def sources() -> dict[str, Path]:
    """Module -> file."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


SOURCES = sources()


def unit(module: str) -> str:
    """The name in LAYERS that a module belongs to: itself, or the package right below qllama."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules that a file imports, anywhere in it, and the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else node.module or "", node.lineno


def test_there_are_sources():
    assert {"qllama", "qllama.jit", "qllama.simd.build", "qllama.quant", "qllama.cli"} <= SOURCES.keys()


def test_every_module_has_a_layer():
    units = {unit(module) for module in SOURCES}
    assert units == HEIGHT.keys(), "LAYERS and the files that exist differ"


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_below(module):
    for imported, line in imports(SOURCES[module]):
        if imported.split(".")[0] != "qllama" or unit(imported) == unit(module):
            continue
        assert HEIGHT[unit(imported)] < HEIGHT[unit(module)], f"{module}:{line} imports {imported}"


@pytest.mark.parametrize("module", SOURCES)
def test_numba_is_imported_only_where_kernels_are(module):
    """A run whose kernels are cached never pays for it."""
    if module == "qllama.jit" or unit(module) in ("qllama.simd", "qllama.kernels"):
        return
    assert not [line for name, line in imports(SOURCES[module]) if name.split(".")[0] == "numba"]


@pytest.mark.parametrize("module", SOURCES)
def test_only_jit_knows_compile_options(module):
    called = [
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(SOURCES[module].read_text()))
        if isinstance(node, ast.Call)
    ]
    assert module == "qllama.jit" or not {"njit", "jit", "cfunc"} & set(called)


@pytest.mark.parametrize("module", [m for m in SOURCES if unit(m) in ("qllama.kernels", "qllama.simd", "qllama.jit")])
def test_jit_finds_kernels_by_name(module):
    """Else importing it would import Numba: at the top level nothing below the kernels does, but the kernels."""
    if unit(module) != "qllama.jit":
        return
    top = ast.parse(SOURCES[module].read_text()).body
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
    assert not [n for n in names if n.startswith(("numba", "qllama.simd", "qllama.kernels"))]


def python_files() -> list[Path]:
    """Of the repository, but for what is hidden or built."""
    skip = {"build", "dist", "__pycache__"}
    return [p for p in sorted(ROOT.rglob("*.py"))
            if not any(part in skip or part.startswith(".") for part in p.relative_to(ROOT).parts)]  # fmt: skip


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_second_copy_of_a_package_is_imported(path):
    """`import quant` from the root of a checkout would load qllama.quant again, under another name."""
    for name, line in imports(path):
        assert name.split(".")[0] not in ("quant", "cli"), f"line {line}"


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_knows_and_stays_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) < 500
    assert ast.get_docstring(ast.parse(text)), "a file opens with what it knows and what it leaves to others"
