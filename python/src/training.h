#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include <faiss/Index.h>
#include <faiss/VectorTransform.h>

namespace faiss_ext_python {

/// Throws for n vectors in a graph of which older FAISS ends the process.
void check_graph(const faiss::Index* index, const char* what, size_t n);

/** What an index has not trained yet.
 *
 * FAISS trains what is not trained and keeps what is. Transforms and quantizers
 * that a refused or interrupted call has trained would be kept by the next one,
 * of vectors that nobody asked for.
 */
class Untrained {
public:
    /// Throws FaissException where a GMM index inside wants more than n, or
    /// centroids are too few for their graph.
    Untrained(faiss::Index& index, size_t n);
    /// All of it is as it was.
    void restore();

private:
    std::vector<std::function<void()>> undo;

    void collect(faiss::Index& index);
    void collect(faiss::VectorTransform& transform);
    template <class T>
    bool keep(faiss::VectorTransform& transform);
};

/// Calls train, which trains the index on n vectors, or leaves it as it is.
template <class F>
void train_or_leave(faiss::Index& index, size_t n, F train) {
    Untrained before(index, n);
    try {
        train();
    } catch (...) {
        before.restore();
        throw;
    }
}

} // namespace faiss_ext_python
