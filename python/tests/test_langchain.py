"""What takes a faiss index takes ours: langchain-community's FAISS store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import faiss_ext

pytest.importorskip("faiss")
store_module = pytest.importorskip("langchain_community.vectorstores.faiss")
docstore = pytest.importorskip("langchain_community.docstore.in_memory")
embeddings: Any = pytest.importorskip("langchain_core.embeddings")

D = 32


class ByLetters(embeddings.Embeddings):  # type: ignore[misc]
    """Texts that share words are near each other."""

    def embed_query(self, text: str) -> Any:
        v = np.zeros(D)
        for word in text.split():
            seed = int.from_bytes(word.encode(), "little") % 2**32
            v += np.random.default_rng(seed).normal(size=D)
        return v.tolist()

    def embed_documents(self, texts: Any) -> Any:
        return [self.embed_query(t) for t in texts]


WORDS = "red green blue round square flat small large old new".split()
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]


@pytest.fixture
def store() -> Any:
    index = faiss_ext.index_factory(D, "GMM8,Flat")
    vectors = np.array(ByLetters().embed_documents(TEXTS), np.float32)
    index.train(vectors)
    index.nprobe = 8
    index.set_direct_map("hashtable")  # marginal relevance reconstructs
    made = store_module.FAISS(
        embedding_function=ByLetters(),
        index=index,
        docstore=docstore.InMemoryDocstore(),
        index_to_docstore_id={},
    )
    made.add_texts(TEXTS, metadatas=[{"n": i} for i in range(len(TEXTS))])
    return made


def test_search_finds_the_text(store: Any) -> None:
    for text in TEXTS[::97]:
        found = store.similarity_search(text, k=3)
        assert sorted(found[0].page_content.split()) == sorted(text.split())


def test_scores_are_distances(store: Any) -> None:
    document, score = store.similarity_search_with_score(TEXTS[5], k=1)[0]
    assert score == pytest.approx(0, abs=1e-3)
    assert sorted(document.page_content.split()) == sorted(TEXTS[5].split())


def test_filter_and_marginal_relevance(store: Any) -> None:
    found = store.similarity_search(
        TEXTS[0], k=3, filter={"n": 7}, fetch_k=1000
    )
    assert [d.metadata["n"] for d in found] == [7]
    found = store.max_marginal_relevance_search(TEXTS[0], k=3, fetch_k=10)
    assert len({d.page_content for d in found}) == 3


def test_the_store_crosses_as_bytes(store: Any) -> None:
    copy = store_module.FAISS.deserialize_from_bytes(
        store.serialize_to_bytes(),
        ByLetters(),
        allow_dangerous_deserialization=True,
    )
    assert isinstance(copy.index, faiss_ext.Index)
    for text in TEXTS[::301]:
        assert copy.similarity_search(text, k=5) == store.similarity_search(
            text, k=5
        )
