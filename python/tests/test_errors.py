"""Wrong input: the argument is named, and the index stays as it was."""

from __future__ import annotations

import copy
import pathlib
import pickle
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import faiss_ext
from conftest import Floats, bad
from faiss_ext import _arrays


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_values_that_are_not_finite(
    what: Any, trained: faiss_ext.Index, base: Floats
) -> None:
    x = bad(base, what)
    with pytest.raises(ValueError, match="x.* 7"):
        trained.add(x)
    assert trained.ntotal == 0
    with pytest.raises(ValueError, match="x.* 7"):
        trained.add_with_ids(x, np.arange(50))
    with pytest.raises(ValueError, match="x.* 7"):
        trained.search(x, 3)
    with pytest.raises(ValueError, match="x.* 7"):
        trained.range_search(x, 3.0)
    fresh = faiss_ext.index_factory(128, "GMM8,Flat")
    with pytest.raises(ValueError, match="x.* 7"):
        fresh.train(x)
    assert not fresh.is_trained


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((3, 5), np.float32), ValueError, "x: 5 columns.*d = 128"),
        (np.zeros(128, np.float32), ValueError, r"x: shape \(128,\)"),
        (np.zeros((2, 3, 128), np.float32), ValueError, "x: shape"),
        (np.zeros((3, 128), complex), TypeError, "x: dtype complex128"),
        (np.zeros((3, 128), "U1"), TypeError, "x: dtype <U1"),
        (np.zeros((3, 128), object), TypeError, "x: dtype object"),
        ("vectors", TypeError, "x: a str"),
        ({1, 2}, TypeError, "x: a set"),
        (None, TypeError, "x: a NoneType"),
        ([[1.0], [1.0, 2.0]], ValueError, "x: not an array"),
    ],
)
def test_what_are_not_vectors(
    x: NDArray[Any], error: Any, match: Any, trained: faiss_ext.Index
) -> None:
    for call in (
        trained.train,
        trained.add,
        lambda x: trained.add_with_ids(x, [1]),
        lambda x: trained.search(x, 1),
        lambda x: trained.range_search(x, 1.0),
        lambda x: trained.search_and_reconstruct(x, 1),
    ):
        with pytest.raises(error, match=match):
            call(x)
    assert trained.ntotal == 0


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (np.arange(4), ValueError),
        (np.zeros((5, 1), int), ValueError),
        (np.arange(5.0), TypeError),
        (["a"] * 5, TypeError),
        (np.full(5, 2**63, np.uint64), ValueError),
    ],
)
def test_ids(
    ids: Any, error: Any, trained: faiss_ext.Index, base: Floats
) -> None:
    with pytest.raises(error, match="ids"):
        trained.add_with_ids(base[:5], ids)
    assert trained.ntotal == 0


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)]
)
def test_k(
    k: Any, error: Any, filled: faiss_ext.Index, queries: Floats
) -> None:
    with pytest.raises(error, match="k = "):
        filled.search(queries, k)


def test_a_numpy_k_is_fine(filled: faiss_ext.Index, queries: Floats) -> None:
    assert filled.search(queries, np.int64(3))[0].shape == (200, 3)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nprobe", 0, ValueError),
        ("nprobe", "many", TypeError),
        ("nprobe", "3", TypeError),
        ("max_codes", -1, ValueError),
        ("probe_mass", 0, ValueError),
        ("target_recall", 1, ValueError),
        ("target_recall", -0.1, ValueError),
        ("probe_order", "best", ValueError),
        ("cells_per_list", -1, ValueError),
        ("cells_per_list", 2**70, ValueError),
        ("cells_per_list", 1.5, TypeError),
        ("calibrate_on_add", "no", TypeError),
        ("code_bits", 3, ValueError),
        ("max_assign", 0, ValueError),
        ("max_assign", 5, ValueError),
        ("assign_ratio", -1, ValueError),
        ("assign_ratio", float("nan"), ValueError),
        ("assign_threshold", float("nan"), ValueError),
        ("covariance_type", "round", ValueError),
    ],
)
def test_fields(name: Any, value: Any, error: Any) -> None:
    index = faiss_ext.index_factory(8, "GMM4,Flat")
    before = getattr(index, name)
    with pytest.raises(error, match=f"{name}.*(expected|none of)"):
        setattr(index, name, value)
    assert getattr(index, name) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("niter", 1.5), ("seed", "a"), ("nredo", None), ("niter", 10**11)],
)
def test_fields_of_training(name: str, value: Any) -> None:
    cp = faiss_ext.index_factory(8, "GMM4,Flat").cp
    before = getattr(cp, name)
    with pytest.raises(TypeError, match=f"^{name} = {value!r}, expected an i"):
        setattr(cp, name, value)
    assert getattr(cp, name) == before
    setattr(cp, name, np.int64(7))
    assert getattr(cp, name) == 7


def test_fields_that_an_index_does_not_have() -> None:
    index = faiss_ext.index_factory(8, "Flat")
    for name in ("nprobe", "target_recall", "calibration", "nlist"):
        assert not hasattr(index, name)
    with pytest.raises(ValueError, match="no mixture"):
        index.mixture()
    with pytest.raises(ValueError, match="no mixture"):
        index.optimize()
    with pytest.raises(AttributeError):
        index.nprobe_typo = 3  # type: ignore[attr-defined]


def test_read_only_fields(filled: faiss_ext.Index) -> None:
    with pytest.raises(AttributeError):
        filled.ntotal = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        filled.d = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["GMM", "GMM8", "GMM8,Falt", "GMM8_Round,Flat", "GMM0,Flat", ""]
)
def test_factory_strings(text: str) -> None:
    with pytest.raises(ValueError):
        faiss_ext.index_factory(16, text)


def test_factory_dimension() -> None:
    with pytest.raises(ValueError, match="d = 0"):
        faiss_ext.index_factory(0, "GMM8,Flat")
    with pytest.raises(TypeError, match="d = 1.5"):
        faiss_ext.index_factory(1.5, "GMM8,Flat")  # type: ignore[arg-type]


def test_too_few_to_train(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM64,Flat")
    with pytest.raises(ValueError, match="n = 10.*64"):
        index.train(base[:10])
    assert not index.is_trained


def test_adding_before_training(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM8,Flat")
    with pytest.raises(ValueError, match="not trained"):
        index.add(base[:10])


@pytest.mark.parametrize("factory", ["NSG16", "IDMap,NSG16", "PCA8,NSG16"])
def test_a_graph_of_few_vectors(factory: str, base: Floats) -> None:
    index = faiss_ext.index_factory(128, factory)
    index.train(base)
    takes = factory.startswith("IDMap")
    with pytest.raises(ValueError, match="^x: 100 vectors, expected more th"):
        if takes:
            index.add_with_ids(base[:100], range(100))
        else:
            index.add(base[:100])
    if not takes:
        with pytest.raises(ValueError, match="^x: 100 vectors, expected mor"):
            index.add(base[:100].astype(np.uint8))
    assert index.ntotal == 0


def test_a_graph_of_few_centroids(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "IVF100_NSG16,Flat")
    for x in (base, base.astype(np.uint8)):
        with pytest.raises(ValueError, match="^quantizer: 100 vectors, expec"):
            index.train(x)
    assert not index.is_trained


def test_training_a_filled_index(
    filled: faiss_ext.Index, base: Floats
) -> None:
    with pytest.raises(ValueError, match="ntotal"):
        filled.train(base)


def test_out_arrays(filled: faiss_ext.Index, queries: Floats) -> None:
    fixed = np.empty((200, 5), np.float32)
    fixed.flags.writeable = False
    for D, given in (
        (np.empty((200, 4), np.float32), r"shape \(200, 4\).*"),
        (np.empty((200, 5), np.float64), ".*dtype float64"),
        (np.empty((5, 200), np.float32).T, r"strides \(4, 800\)"),
        (fixed, "read-only"),
        ([[0.0]], "a list"),
    ):
        with pytest.raises(ValueError, match=f"^D: {given}, expected a wr"):
            filled.search(queries, 5, D=cast(Any, D))


def test_calibrate(
    filled: faiss_ext.Index, trained: faiss_ext.Index, queries: Floats
) -> None:
    with pytest.raises(ValueError, match="^queries: 5, expected at least 20$"):
        filled.calibrate(queries[:5])
    with pytest.raises(ValueError, match="nq = 3"):
        filled.calibrate(nq=3)
    with pytest.raises(ValueError, match="queries: 7 columns"):
        filled.calibrate(queries[:, :7])
    with pytest.raises(ValueError, match="k = 0"):
        filled.calibrate(queries, k=0)
    with pytest.raises(ValueError, match="^queries: row 7"):
        filled.calibrate(bad(queries, "nan"))
    with pytest.raises(ValueError, match="holds no vectors.*after adding"):
        trained.calibrate(queries)
    assert filled.calibration.own_queries
    with pytest.raises(ValueError, match="^k = -1, expected at least 0"):
        filled.calibration.choose(0.9, k=-1)


def test_the_constructor_is_not_for_users() -> None:
    with pytest.raises(TypeError, match="index_factory"):
        faiss_ext.Index(3)  # type: ignore[arg-type]


def test_errors_are_runtime_errors_as_faiss_raises_them(
    filled: faiss_ext.Index,
) -> None:
    with pytest.raises(RuntimeError):
        filled.nprobe = 0
    assert issubclass(faiss_ext.FaissError, ValueError)


def test_errors_name_no_source_file(filled: faiss_ext.Index) -> None:
    with pytest.raises(faiss_ext.FaissError) as error:
        filled.probe_order = "best"
    assert ".cpp" not in str(error.value)


def test_errors_end_with_their_text(filled: faiss_ext.Index) -> None:
    with pytest.raises(faiss_ext.FaissError, match=", codes$"):
        filled.probe_order = "best"
    with pytest.raises(faiss_ext.FaissError) as error:
        faiss_ext.swap_to_gmm(filled)
    assert "\0" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 3, 40, 1000, -1, -9])
def test_truncated_bytes(cut: Any, filled: faiss_ext.Index) -> None:
    data = faiss_ext.serialize_index(filled)
    with pytest.raises(ValueError):
        faiss_ext.deserialize_index(data[:cut])


def test_flipped_bits(filled: faiss_ext.Index) -> None:
    data = faiss_ext.serialize_index(filled)
    for at in (len(data) // 2, len(data) - 100):
        damaged = data.copy()
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="corrupt"):
            faiss_ext.deserialize_index(damaged)


def test_files(tmp_path: pathlib.Path, filled: faiss_ext.Index) -> None:
    with pytest.raises(ValueError, match="missing.index"):
        faiss_ext.read_index(tmp_path / "missing.index")
    with pytest.raises(ValueError, match="no/folder"):
        faiss_ext.write_index(filled, tmp_path / "no" / "folder" / "x")
    (tmp_path / "text").write_text("this is not an index, whatever it is")
    with pytest.raises(ValueError):
        faiss_ext.read_index(tmp_path / "text")
    with pytest.raises(TypeError, match="index"):
        faiss_ext.write_index(
            "index",  # type: ignore[arg-type]
            tmp_path / "x",
        )
    with pytest.raises(TypeError, match="data"):
        faiss_ext.deserialize_index(np.zeros(8))
    with pytest.raises(TypeError, match="^data: a str, expected bytes"):
        faiss_ext.deserialize_index("index")
    with pytest.raises(ValueError, match="^data: 0 bytes, expected more"):
        faiss_ext.deserialize_index(b"")
    with pytest.raises(TypeError, match="^io_flags = 'r', expected an integ"):
        faiss_ext.read_index(tmp_path / "text", "r")  # type: ignore[arg-type]
    calls: list[Any] = [
        faiss_ext.read_index,
        lambda path: faiss_ext.write_index(filled, path),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"^path = 'a\\x00b', expected no"
        ):
            call("a\0b")
        with pytest.raises(TypeError, match="^path = 3, expected a string"):
            call(3)


def test_pickles_that_were_damaged(filled: faiss_ext.Index) -> None:
    data = pickle.dumps(filled)
    with pytest.raises((ValueError, pickle.UnpicklingError, EOFError)):
        pickle.loads(data[: len(data) // 2])


@pytest.mark.parametrize("thresh", [float("nan"), "near", None, [1.0, 2.0]])
def test_thresh(filled: faiss_ext.Index, base: Floats, thresh: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^thresh = "):
        filled.range_search(base[:1], thresh)


def test_factory_arguments() -> None:
    with pytest.raises(ValueError, match="d = 1099511627776"):
        faiss_ext.index_factory(1 << 40, "GMM8,Flat")
    with pytest.raises(TypeError, match="metric = 'ip'"):
        faiss_ext.index_factory(
            8,
            "GMM8,Flat",
            "ip",  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"description = 'GMM4,Flat\\x00x'"):
        faiss_ext.index_factory(8, "GMM4,Flat\0x")
    with pytest.raises(TypeError, match="description = 8"):
        faiss_ext.index_factory(8, 8)  # type: ignore[arg-type]


def test_the_mixtures_errors_call_vectors_x() -> None:
    x = np.zeros((50, 4), np.float16)
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="^x: row 3"):
        faiss_ext.index_factory(4, "GMM2,Flat").train(x)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda i: faiss_ext.IDSelectorRange(
                1.5,  # type: ignore[arg-type]
                3,
            ),
            TypeError,
            "imin = 1.5",
        ),
        (
            lambda i: faiss_ext.IDSelectorRange(0, 2**63),
            ValueError,
            "imax = 9",
        ),
        (
            lambda i: faiss_ext.SearchParameters(sel=range(2**64)),
            ValueError,
            r"sel\.stop = 18446744073709551616, expected at most 9223",
        ),
        (
            lambda i: faiss_ext.SearchParameters(sel=[[True], [False]]),
            ValueError,
            r"sel: shape \(2, 1\), expected a mask of one dimension",
        ),
        (
            lambda i: i.remove_ids(np.zeros((3, 2), bool)),
            ValueError,
            r"ids: shape \(3, 2\), expected a mask",
        ),
        (
            lambda i: faiss_ext.SearchParameters(target_recall=1),
            ValueError,
            r"target_recall = 1, .*\[0, 1\); for 1 set nprobe = nlist",
        ),
        (
            lambda i: faiss_ext.index_factory(8, "IVF4,PQ7"),
            ValueError,
            'description = "IVF4,PQ7" of d = 8: The dimension',
        ),
        (
            lambda i: i.remove_ids(range(-(2**64), 0, 2)),
            ValueError,
            r"ids\.start = -18446744073709551616, expected at least -9223",
        ),
        (
            lambda i: faiss_ext.SearchParameters(nprobe=2**70),
            ValueError,
            "nprobe = 1180591620717411303424, expected at most 9223",
        ),
        (lambda i: i.merge_from(copy.copy(i), "x"), TypeError, "add_id = 'x'"),
        (lambda i: i.set_parameters(3), TypeError, "description = 3, expect"),
        (lambda i: i.reconstruct_n(1.5, 2), TypeError, "n0 = 1.5, expected"),
        (lambda i: i.search([[0] * 128], 2**70), ValueError, "k = 118"),
        (
            lambda i: faiss_ext.swap_to_gmm(
                i,
                3,  # type: ignore[arg-type]
            ),
            ValueError,
            "covariance_type = 3, expected",
        ),
        (
            lambda i: faiss_ext.index_factory(8, "Flat", 2**40),
            ValueError,
            "metric = 1099511627776, expected at most",
        ),
    ],
)
def test_arguments_are_checked_before_the_bindings(
    call: Any, error: Any, match: str, trained: faiss_ext.Index
) -> None:
    with pytest.raises(error, match=f"^{match}"):
        call(trained)


def wide(n: int, row: int) -> NDArray[np.float64]:
    """Rows that are converted in several blocks, one with a NaN."""
    x = np.random.default_rng(0).normal(size=(n, 8))
    x[row, 3] = np.nan
    return x


def test_rows_of_what_is_converted_are_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 1 << 10)
    x = wide(500, 321)
    index = faiss_ext.index_factory(8, "GMM4,Flat")
    index.train(np.nan_to_num(x))
    for call in (index.add, lambda x: index.add_with_ids(x, np.arange(500))):
        with pytest.raises(ValueError, match="^x: row 321 has the value nan"):
            call(x)
    with pytest.raises(ValueError, match=r"^x\[1\]: row 321 .*\(ntotal was"):
        index.add(iter([x[:3], x]))
    kmeans = faiss_ext.Kmeans(8, 2, niter=1)
    kmeans.train(np.nan_to_num(x))
    with pytest.raises(ValueError, match="^x: row 321 has the value nan"):
        kmeans.assign(x)


def test_rows_of_a_sample_are_the_users() -> None:
    x = wide(70000, 321)
    x[::7] = np.nan  # some are drawn
    index = faiss_ext.index_factory(8, "GMM4,Flat")
    with pytest.raises(ValueError, match=r"^x: row (\d+) has") as error:
        index.train(x)
    row = int(str(error.value).split()[2])
    assert row % 7 == 0 and row > 0
    with pytest.raises(ValueError, match=r"^x\[1\]: row 0 has the value nan"):
        index.train(iter([x[1:3], x]))
