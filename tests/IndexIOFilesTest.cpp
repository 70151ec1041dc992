// What write_index does to a file, whatever happens meanwhile.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "IndexBytes.h"
#include "TemporaryFolder.h"
#include "TestData.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

std::unique_ptr<faiss::Index> make(size_t n) {
    const Vectors base = sift_base(2000);
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(128, "GMM8x4,Flat"));
    dynamic_cast<IVFGMM&>(*index).calibrate_on_add = false;
    index->train(500, base.x.data());
    index->add(n, base.x.data());
    return index;
}

std::unique_ptr<faiss::Index> read(const std::string& path, int flags = 0) {
    return std::unique_ptr<faiss::Index>(
            faiss_ext::read_index(path.c_str(), flags));
}

std::vector<uint8_t> content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// scripts/trust asks for more.
int number_of_kills() {
    const char* text = std::getenv("FAISS_EXT_TEST_KILLS");
    return text ? std::atoi(text) : 20;
}

/// Sees where what is written lies.
struct PlacesWriter : faiss::IOWriter {
    std::vector<const void*> places;

    size_t operator()(const void* ptr, size_t, size_t nitems) override {
        places.push_back(ptr);
        return nitems;
    }
};

/// Sees how much is read at once.
struct LargestReader : faiss::VectorIOReader {
    size_t largest = 0;

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        largest = std::max(largest, size * nitems);
        return faiss::VectorIOReader::operator()(ptr, size, nitems);
    }
};

TEST(IndexIOFiles, NothingIsHeldInMemoryOnItsWay) {
    const auto index = make(2000);
    const auto& codes = dynamic_cast<const IVFGMM&>(*index).cells.codes;
    PlacesWriter writer;
    faiss_ext::write_index(index.get(), &writer);
    size_t most = size_t(1) << 20; // blocks whose checksums are taken
    for (const CodeBlocks& block : codes.blocks) {
        EXPECT_EQ(
                std::count(
                        writer.places.begin(),
                        writer.places.end(),
                        static_cast<const void*>(block.data())),
                1);
        most = std::max(most, block.size());
    }
    LargestReader reader;
    reader.data = written(*index);
    ASSERT_GT(reader.data.size(), most);
    const std::unique_ptr<faiss::Index> again(
            faiss_ext::read_index(static_cast<faiss::IOReader*>(&reader)));
    EXPECT_LE(reader.largest, most);
    EXPECT_EQ(written(*again), reader.data);
}

TEST(IndexIOFiles, KilledWhileWriting) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const auto one = make(500), other = make(1500);
    const auto one_bytes = written(*one), other_bytes = written(*other);
    faiss_ext::write_index(one.get(), path.c_str());
    std::mt19937 random(1);
    int leftovers = 0;
    for (int i = 0; i < number_of_kills(); i++) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            // No parallel region: its threads are the parent's.
            while (true) {
                faiss_ext::write_index(other.get(), path.c_str());
                faiss_ext::write_index(one.get(), path.c_str());
            }
        }
        std::this_thread::sleep_for(
                std::chrono::microseconds(random() % 30000));
        kill(child, SIGKILL);
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        const auto now = content(path);
        ASSERT_TRUE(now == one_bytes || now == other_bytes) << "kill " << i;
        ASSERT_NO_THROW(read(path)) << "kill " << i;
        for (const auto& entry :
             std::filesystem::directory_iterator(folder.path)) {
            if (entry.path() != path) {
                EXPECT_EQ(entry.path().extension(), ".tmp");
                std::filesystem::remove(entry.path());
                leftovers++;
            }
        }
    }
    // or no kill ever came in the middle, and the test shows nothing
    EXPECT_GT(leftovers, 0);
}

TEST(IndexIOFiles, NothingIsLostWithoutAWord) {
    const auto index = make(300);
    if (std::filesystem::exists("/dev/full")) {
        EXPECT_FAISS_ERROR(
                faiss_ext::write_index(index.get(), "/dev/full"),
                "No space left");
        // FAISS's own file writer, too, with an index that fits its buffer
        std::unique_ptr<faiss::Index> small(
                faiss_ext::index_factory(2, "GMM1,Flat"));
        faiss::FileIOWriter writer("/dev/full");
        setvbuf(writer.f, nullptr, _IOFBF, 1 << 22);
        EXPECT_FAISS_ERROR(
                faiss_ext::write_index(small.get(), &writer), "No space left");
    }
    EXPECT_FAISS_ERROR(
            faiss_ext::write_index(index.get(), "/no/such/folder/index"),
            "/no/such/folder/index");
}

TEST(IndexIOFiles, OverAFileThatIsMapped) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const auto index = make(500), other = make(1500);
    faiss_ext::write_index(index.get(), path.c_str());
    const auto before = content(path);
    const auto mapped = read(path, faiss::IO_FLAG_MMAP);
    // FAISS would write the name of no file, which cannot be read again.
    for (const std::string& to : {path, folder.file("another")}) {
        EXPECT_FAISS_ERROR(
                faiss_ext::write_index(mapped.get(), to.c_str()),
                "IO_FLAG_MMAP");
    }
    EXPECT_FAISS_ERROR(clone_index(mapped.get()), "IO_FLAG_MMAP");
    EXPECT_EQ(content(path), before);
    EXPECT_FALSE(std::filesystem::exists(folder.file("another")));
    // Another index may go there: what was mapped is still there for those
    // who have it mapped.
    faiss_ext::write_index(other.get(), path.c_str());
    const Vectors base = sift_base(500);
    std::vector<float> distances(base.n);
    std::vector<idx_t> ids(base.n);
    dynamic_cast<faiss::IndexIVF&>(*mapped).nprobe = 8;
    mapped->search(base.n, base.x.data(), 1, distances.data(), ids.data());
    for (size_t i = 0; i < base.n; i++) {
        EXPECT_EQ(distances[i], 0) << i;
    }
    EXPECT_EQ(read(path)->ntotal, 1500);
}

/// What would change it says so, and the direct map is still there.
TEST(IndexIOFiles, AMappedIndexIsAsItWas) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    faiss_ext::write_index(make(500).get(), path.c_str());
    const auto mapped = read(path, faiss::IO_FLAG_MMAP);
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*mapped);
    const Vectors base = sift_base(500);
    const idx_t id = 3;
    for (auto map : {faiss::DirectMap::Hashtable, faiss::DirectMap::Array}) {
        ivf.set_direct_map_type(map);
        EXPECT_FAISS_ERROR(
                ivf.update_vectors(1, &id, base.row(9)), "IO_FLAG_MMAP");
        EXPECT_FAISS_ERROR(ivf.add(1, base.row(9)), "IO_FLAG_MMAP");
        if (map == faiss::DirectMap::Hashtable) {
            EXPECT_FAISS_ERROR(
                    ivf.remove_ids(faiss::IDSelectorRange(0, 5)),
                    "IO_FLAG_MMAP");
        }
        EXPECT_FAISS_ERROR(ivf.reset(), "IO_FLAG_MMAP");
        for (size_t i = 0; i < base.n; i++) {
            std::vector<float> x(base.d);
            ivf.reconstruct(idx_t(i), x.data());
            EXPECT_TRUE(std::equal(x.begin(), x.end(), base.row(i))) << i;
        }
    }
}

TEST(IndexIOFiles, AnEmptyFileIsNamed) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    std::ofstream(path).close();
    EXPECT_FAISS_ERROR(read(path), "index: 0 bytes, expected an index");
}

TEST(IndexIOFiles, ListsInAFileOfTheirOwn) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const std::string lists = folder.file("lists");
    const auto index = make(500);
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    {
        auto on_disk = std::make_unique<faiss::OnDiskInvertedLists>(
                ivf.nlist, ivf.code_size, lists.c_str());
        faiss::InvertedLists& to = *on_disk;
        to.merge_from(ivf.invlists, 0);
        ivf.replace_invlists(on_disk.release(), true);
    }
    faiss_ext::write_index(index.get(), path.c_str());
    EXPECT_EQ(read(path)->ntotal, 500);
    EXPECT_FAISS_ERROR(
            faiss_ext::write_index(index.get(), lists.c_str()),
            "holds the inverted lists");
    EXPECT_EQ(read(path)->ntotal, 500);
}

} // namespace
} // namespace faiss_ext
