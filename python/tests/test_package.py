"""What the package shows, and its stub."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
import runpy
import subprocess
import sys
from typing import Any

import pytest

import faiss_ext
from conftest import Floats
from faiss_ext import _core


def test_everything_in_all_is_there() -> None:
    for name in faiss_ext.__all__:
        assert getattr(faiss_ext, name) is not None
    assert set(faiss_ext.__all__) == set(dir(faiss_ext))


def test_the_page_of_the_cpp_api_has_all_headers() -> None:
    """Those that are installed, but for details in folders."""
    root = pathlib.Path(__file__).parents[2]
    hooks = runpy.run_path(str(root / "docs" / "hooks.py"))
    installed = {
        f"{folder}/{header}"
        for folder in ("faiss_ext", "src")
        for files in re.findall(
            r"install\(FILES([^)]*?)DESTINATION",
            (root / folder / "CMakeLists.txt").read_text(),
        )
        for header in re.findall(r"\S+\.h", files)
        if "/" not in header
    }
    assert installed == set(hooks["HEADERS"])


def test_everything_has_a_docstring() -> None:
    for name in faiss_ext.__all__:
        thing = getattr(faiss_ext, name)
        if callable(thing):
            assert thing.__doc__, name
    for name in dir(faiss_ext.Index):
        if not name.startswith("_"):
            assert getattr(faiss_ext.Index, name).__doc__, name


def test_docstrings_are_numpydocs() -> None:
    """Sections for what a function takes and gives, as numpydoc reads them."""
    validate = pytest.importorskip("numpydoc.validate").validate
    wanted = {"GL08", "PR01", "PR02", "PR03", "PR04", "PR06", "PR10"}
    wanted |= {"RT01", "YD01", "SS01"}
    names = []
    for name in faiss_ext.__all__:
        thing = getattr(faiss_ext, name)
        if not callable(thing):
            continue
        names.append(f"faiss_ext.{name}")
        if inspect.isclass(thing) and thing.__module__ != _core.__name__:
            names += [
                f"faiss_ext.{name}.{member}"
                for of in inspect.getmro(thing)
                if of.__module__.startswith("faiss_ext.")
                for member, value in vars(of).items()
                if not member.startswith("_") and callable(value)
            ]
    assert len(names) > 50
    wrong = {}
    for name in names:
        codes = wanted
        if hasattr(getattr(faiss_ext, name.split(".")[1]), "__nb_signature__"):
            # inspect knows no arguments of these, or any, by Python's version.
            codes = wanted - {"PR01", "PR02"}
        errors = [e for e in validate(name)["errors"] if e[0] in codes]
        if errors:
            wrong[name] = errors
    assert not wrong


@pytest.fixture(scope="module")
def stub() -> ast.Module:
    path = pathlib.Path(faiss_ext.__file__).with_name("_core.pyi")
    return ast.parse(path.read_text())


def name_of(node: ast.FunctionDef | ast.AnnAssign) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    assert isinstance(node.target, ast.Name)
    return node.target.id


def test_the_stub_names_what_the_module_has(stub: ast.Module) -> None:
    typed: dict[str, set[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            typed[node.name] = {
                name_of(n)
                for n in node.body
                if isinstance(n, (ast.FunctionDef, ast.AnnAssign))
            }
        elif isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
            typed[name_of(node)] = set()
    bound = {n for n in vars(_core) if not n.startswith("_")}
    assert bound | {"__version__"} == set(typed)
    for name, members in typed.items():
        thing = getattr(_core, name)
        if not inspect.isclass(thing) or name == "FaissError":
            continue
        public = {n for n in vars(thing) if not n.startswith("_")}
        assert public == {n for n in members if not n.startswith("_")}, name


def arguments(function: ast.stmt) -> tuple[list[str], list[str], int]:
    """Names by place and by keyword, and how many may be left out."""
    assert isinstance(function, ast.FunctionDef)
    a = function.args
    optional = len(a.defaults) + sum(d is not None for d in a.kw_defaults)
    return [x.arg for x in a.args], [x.arg for x in a.kwonlyargs], optional


def bound_arguments(thing: Any) -> list[tuple[list[str], list[str], int]]:
    """The same of all overloads that nanobind made of a function."""
    found = []
    for text, *_ in thing.__nb_signature__:
        while "[" in text:  # of types, which are no Python
            text = re.sub(r"\[[^\[\]]*\]", "", text)
        text = re.sub(r"\\\d+", "...", text)  # defaults, by their number
        found.append(arguments(ast.parse(f"{text}: ...").body[0]))
    return found


def test_the_stub_has_the_arguments_of_functions(stub: ast.Module) -> None:
    typed: dict[tuple[str, str], list[ast.FunctionDef]] = {}
    for node in stub.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = node.name if isinstance(node, ast.ClassDef) else ""
        for n in inside:
            if isinstance(n, ast.FunctionDef):
                typed.setdefault((owner, n.name), []).append(n)
    compared = 0
    for (owner, name), nodes in typed.items():
        thing = getattr(getattr(_core, owner) if owner else _core, name)
        if hasattr(thing, "__nb_signature__") and name != "__setstate__":
            want = sorted(bound_arguments(thing))
            assert sorted(map(arguments, nodes)) == want, (owner, name)
            compared += 1
    assert compared > 50


def test_the_stub_says_which_fields_can_be_set(stub: ast.Module) -> None:
    for node in stub.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for n in node.body:
            if not isinstance(n, (ast.FunctionDef, ast.AnnAssign)):
                continue
            thing = getattr(getattr(_core, node.name), name_of(n), None)
            if isinstance(thing, property):
                settable = isinstance(n, ast.AnnAssign)
                assert (thing.fset is not None) == settable, name_of(n)


def test_the_module_shows_one_symbol() -> None:
    try:
        shown = subprocess.run(
            ["nm", "-D", "--defined-only", _core.__file__],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError:
        pytest.skip("no nm")
    names = [line.split()[-1] for line in shown.splitlines()]
    assert names == ["PyInit__core"]


def test_importing_it_imports_no_sklearn() -> None:
    program = "import sys, faiss_ext; print('sklearn' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == "False\n"


def test_cuda_says_what_is_missing() -> None:
    if faiss_ext.cuda_available():
        assert faiss_ext.why_no_cuda() == ""
    else:
        assert faiss_ext.why_no_cuda()


def test_threads() -> None:
    before = faiss_ext.omp_get_max_threads()
    try:
        faiss_ext.omp_set_num_threads(1)
        assert faiss_ext.omp_get_max_threads() == 1
    finally:
        faiss_ext.omp_set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error"),
    [
        ("a", TypeError),
        (None, TypeError),
        (0, ValueError),
        (2**40, ValueError),
    ],
)
def test_threads_that_cannot_be(n: Any, error: Any) -> None:
    with pytest.raises(error, match=f"^n = {n!r}, expected at least 1 thread"):
        faiss_ext.omp_set_num_threads(n)


def test_stats_count(filled: faiss_ext.Index, queries: Floats) -> None:
    faiss_ext.reset_stats()
    filled.nprobe = filled.nlist
    filled.search(queries, 1)
    stats = faiss_ext.search_stats()
    assert stats["nq"] == 200
    assert stats["ndis"] == 200 * 6000
