"""The layers of the package: a module imports only from below. Nothing is imported here, sources are parsed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"qllama": "qllama", "qllama.quant": "quant", "qllama.cli": "cli"}

# From top to bottom. A package is one name here; inside itself it may import as it likes. `qllama` is what the package
# itself offers. gguf, hparams and quant stand side by side on purpose: the model binds them.
LAYERS = [
    "qllama.cli",
    "qllama",
    "qllama.session qllama.convert",
    "qllama.llm qllama.bench qllama.evaluate qllama.quantize",
    "qllama.generate qllama.chat qllama.kv_file",
    "qllama.model",
    "qllama.builder",
    "qllama.weights qllama.stopwatch qllama.activations",
    "qllama.plan qllama.arch qllama.kv_cache qllama.sampling qllama.data",
    "qllama.team",
    "qllama.kernels",
    "qllama.imatrix qllama.split",
    "qllama.tokenizer qllama.gguf_writer",
    "qllama.quant qllama.gguf qllama.hparams",
    "qllama.metadata qllama.sigbus",
    "qllama.jit",
    "qllama.simd",
    "qllama.tuned",
    "qllama.atomic",
    "qllama.cpu",
    "qllama.errors qllama.ggml qllama.grids",
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


def test_contributors_read_the_same_table():
    rows = [" | ".join(name.removeprefix("qllama.") for name in layer.split()) for layer in LAYERS]
    assert "\n".join(["```", *rows, "```"]) in (ROOT / "CONTRIBUTING.md").read_text()


def test_there_are_sources():
    assert {"qllama", "qllama.jit", "qllama.simd.build", "qllama.quant", "qllama.cli"} <= SOURCES.keys()


def test_every_module_has_a_layer():
    units = {unit(module) for module in SOURCES}
    assert units == HEIGHT.keys(), "LAYERS and the files that exist differ"


def test_modules_import_only_from_below():
    wrong = [
        f"{module}:{line} imports {imported}"
        for module, path in SOURCES.items()
        for imported, line in imports(path)
        if imported.split(".")[0] == "qllama" and unit(imported) != unit(module)
        if HEIGHT[unit(imported)] >= HEIGHT[unit(module)]
    ]
    assert not wrong


def test_numba_is_imported_only_where_kernels_are_made():
    """A run whose kernels are cached never pays for it."""
    allowed = ("qllama.jit", "qllama.simd", "qllama.kernels")
    others = {m: path for m, path in SOURCES.items() if unit(m) not in allowed}
    assert not [m for m, path in others.items() if "numba" in {name.split(".")[0] for name, _ in imports(path)}]


def test_importing_jit_imports_neither_numba_nor_kernels():
    """Not at its top level: inside, when there is something to compile."""
    body = ast.parse(SOURCES["qllama.jit"].read_text()).body
    top = [node for node in body if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [alias.name for node in top for alias in node.names] + [getattr(node, "module", "") for node in top]
    assert not [n for n in names if n.startswith(("numba", "qllama.simd", "qllama.kernels", "llvmlite"))]


def test_only_jit_knows_compile_options():
    for module, path in SOURCES.items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
        assert module == "qllama.jit" or not {"njit", "jit", "cfunc"} & names, module


def python_files() -> list[Path]:
    """Of the repository, but for what is hidden or built."""
    skip = {"build", "dist", "__pycache__"}
    parts = {path: path.relative_to(ROOT).parts for path in sorted(ROOT.rglob("*.py"))}
    return [path for path, names in parts.items() if not any(n in skip or n.startswith(".") for n in names)]


def test_no_second_copy_of_a_package_is_imported():
    """`import quant` from the root of a checkout would load qllama.quant again, under another name."""
    found = [(path.name, line) for path in python_files() for name, line in imports(path)
             if name.split(".")[0] in ("quant", "cli")]  # fmt: skip
    assert not found


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_knows_and_stays_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) < 500
    assert ast.get_docstring(ast.parse(text)), "a file opens with what it knows and what it leaves to others"
