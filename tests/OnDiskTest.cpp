// Indexes in parts whose lists end in one file.
#include "faiss_ext/ondisk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include <faiss/IndexPreTransform.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "OnDiskTools.h"
#include "ProcessMemory.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

/// What is called of these, in their order.
static std::vector<std::string> calls;

extern "C" int fsync(int fd) {
    struct stat status;
    calls.push_back(
            fstat(fd, &status) == 0 && S_ISDIR(status.st_mode) ? "fsync folder"
                                                               : "fsync file");
    return int(syscall(SYS_fsync, fd));
}

extern "C" int rename(const char* from, const char* to) noexcept {
    calls.push_back("rename");
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

namespace faiss_ext {
namespace {

struct Merged : testing::TestWithParam<std::pair<const char*, int>> {};

TEST_P(Merged, IsTheIndexInMemory) {
    const TemporaryFolder folder;
    const auto [description, metric] = GetParam();
    auto whole = trained(description, faiss::MetricType(metric));
    auto disk = clone_index(whole.get());
    const auto parts = write_parts(*disk, folder, true);
    whole->add(kN, base().x.data());
    merge_ondisk(disk.get(), parts, folder.file("lists"), true);
    ASSERT_EQ(disk->ntotal, idx_t(kN));
    faiss_ext::write_index(disk.get(), folder.file("index").c_str());
    disk = read(folder.file("index"));

    const Vectors q = sift_queries(100);
    // The lists have a file of their own, the codes are mapped from the
    // index's.
    const auto mapped = read(folder.file("index"), faiss::IO_FLAG_MMAP);
    EXPECT_EQ(find(*mapped, q, 10), find(*disk, q, 10));
    EXPECT_TRUE(is_in_a_file(
            extract_gmm(mapped.get())->cells.codes.blocks[0].data()));
    auto& a = dynamic_cast<faiss::IndexIVF&>(*extract_gmm(whole.get()));
    auto& b = dynamic_cast<faiss::IndexIVF&>(*extract_gmm(disk.get()));
    ASSERT_TRUE(dynamic_cast<faiss::OnDiskInvertedLists*>(b.invlists));
    for (size_t i = 0; i < b.nlist; i++) {
        const auto ids = reinterpret_cast<uintptr_t>(b.invlists->get_ids(i));
        ASSERT_EQ(ids % sizeof(idx_t), 0u);
    }
    check_cells(b, extract_gmm(disk.get())->cells, false);
    for (size_t nprobe : {1, 3, 8, 32}) {
        a.nprobe = b.nprobe = nprobe;
        const Found in_memory = find(*whole, q, 10);
        const Found on_disk = find(*disk, q, 10);
        for (size_t i = 0; i < on_disk.dis.size(); i++) {
            // parts are transformed in other batches than the whole
            ASSERT_NEAR(
                    on_disk.dis[i],
                    in_memory.dis[i],
                    1e-5 * std::abs(in_memory.dis[i]))
                    << nprobe;
        }
        EXPECT_NEAR(
                recall(on_disk, in_memory, faiss::MetricType(metric)), 1, 1e-9);
    }
}

INSTANTIATE_TEST_SUITE_P(
        OnDisk,
        Merged,
        testing::Values(
                std::pair("GMM32,Flat", int(faiss::METRIC_L2)),
                std::pair("GMM32,Flat", int(faiss::METRIC_INNER_PRODUCT)),
                std::pair("GMM32,SQ8", int(faiss::METRIC_L2)),
                std::pair("GMM32,PQ4x4", int(faiss::METRIC_L2)),
                std::pair("PCA48,GMM32,Flat", int(faiss::METRIC_L2))));

TEST(OnDisk, AStockIndexIsMergedToo) {
    const TemporaryFolder folder;
    auto index = trained("IVF32,Flat");
    const auto parts = write_parts(*index, folder, false);
    auto whole = clone_index(index.get());
    whole->add(kN, base().x.data());
    merge_ondisk(index.get(), parts, folder.file("lists"));
    const Vectors q = sift_queries(50);
    EXPECT_EQ(find(*index, q, 5).dis, find(*whole, q, 5).dis);
}

TEST(OnDisk, FaissReadsIt) {
    const TemporaryFolder folder;
    auto index = on_disk("GMM32,Flat", folder);
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    const std::unique_ptr<faiss::Index> stock(faiss::read_index(
            folder.file("index").c_str(), faiss::IO_FLAG_READ_ONLY));
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*stock);
    ivf.nprobe = 32;
    const Vectors q = sift_queries(20);
    const Found truth = exact(model_of(base()), q, 10, faiss::METRIC_L2);
    EXPECT_EQ(recall(find(ivf, q, 10), truth, faiss::METRIC_L2), 1);
}

TEST(OnDisk, AMappedIndexFindsTheSame) {
    const TemporaryFolder folder;
    auto index = trained("GMM32,Flat");
    index->add(kN, base().x.data());
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    const auto mapped = read(folder.file("index"), faiss::IO_FLAG_MMAP);
    const Vectors q = sift_queries(50);
    for (auto* i : {index.get(), mapped.get()}) {
        dynamic_cast<faiss::IndexIVF&>(*i).nprobe = 4;
    }
    EXPECT_EQ(find(*mapped, q, 10), find(*index, q, 10));
}

TEST(OnDisk, ListsInAFileAreNotCopied) {
    const TemporaryFolder folder;
    auto index = on_disk("PCA48,GMM16,Flat", folder);
    EXPECT_FAISS_ERROR(clone_index(index.get()), "which a copy would write to");
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    const auto read_only = read(folder.file("index"), faiss::IO_FLAG_READ_ONLY);
    const Vectors q = sift_queries(20);
    EXPECT_EQ(find(*clone_index(read_only.get()), q, 5), find(*index, q, 5));
}

/// Opening one for reading waits until somebody writes to it.
TEST(OnDisk, APipeInThePlaceOfListsIsRefused) {
    const TemporaryFolder folder;
    auto index = on_disk("GMM16,Flat", folder);
    const std::string lists = folder.file("lists");
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    index.reset();
    std::filesystem::remove(lists);
    ASSERT_EQ(mkfifo(lists.c_str(), 0600), 0);
    EXPECT_FAISS_ERROR(
            read(folder.file("index"), faiss::IO_FLAG_MMAP), "is a pipe");
}

/// Lists change in their file at once, cells and codes when the index is
/// written: read between the two, searches would miss what they promise.
TEST(OnDisk, AnIndexThatIsOlderThanItsListsIsRefused) {
    for (const char* change : {"add", "remove", "both", "nothing"}) {
        SCOPED_TRACE(change);
        const TemporaryFolder folder;
        const std::string path = folder.file("index");
        auto index = on_disk("GMM16,Flat", folder);
        faiss_ext::write_index(index.get(), path.c_str());
        index = read(path);
        const std::string what = change;
        if (what == "add" || what == "both") {
            index->add(40, base().x.data());
        }
        if (what == "remove" || what == "both") {
            index->remove_ids(faiss::IDSelectorRange(100, 140));
        }
        if (what != "nothing") {
            EXPECT_FAISS_ERROR(
                    read(path), "other ids than when this index was written");
            // nobody reads ids here
            read(path, faiss::IO_FLAG_MMAP);
            delete faiss::read_index(path.c_str());
        }
        faiss_ext::write_index(index.get(), path.c_str());
        const Vectors q = sift_queries(20);
        EXPECT_EQ(find(*read(path), q, 5), find(*index, q, 5));
    }
}

TEST(OnDisk, ASymbolicLinkStays) {
    const TemporaryFolder folder;
    auto index = trained("GMM16,Flat");
    const auto parts = write_parts(*index, folder, false);
    std::filesystem::create_symlink("lists", folder.file("link"));
    merge_ondisk(index.get(), parts, folder.file("link"));
    EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
    EXPECT_TRUE(std::filesystem::is_regular_file(folder.file("lists")));
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    const Vectors q = sift_queries(20);
    EXPECT_EQ(find(*read(folder.file("index")), q, 5), find(*index, q, 5));
}

TEST(OnDisk, TwoMayWriteToOneName) {
    const TemporaryFolder folder;
    auto first = trained("GMM16,Flat");
    auto second = clone_index(first.get());
    const auto parts = write_parts(*first, folder, false);
    const auto merge = [&](faiss::Index* index) {
        merge_ondisk(index, parts, folder.file("lists"));
    };
    {
        std::jthread other(merge, second.get());
        merge(first.get());
    }
    for (auto* index : {first.get(), second.get()}) {
        check_consistent(
                dynamic_cast<faiss::IndexIVF&>(*index),
                *extract_gmm(index),
                model_of(base()));
    }
}

TEST(OnDisk, ADirectMapIsReadFromAMappedFile) {
    for (const char* description : {"GMM16,Flat", "IVF16,Flat"}) {
        for (auto type :
             {faiss::DirectMap::Array, faiss::DirectMap::Hashtable}) {
            const TemporaryFolder folder;
            auto index = on_disk(description, folder);
            dynamic_cast<faiss::IndexIVF&>(*index).set_direct_map_type(type);
            faiss_ext::write_index(index.get(), folder.file("index").c_str());
            const auto back = read(folder.file("index"), faiss::IO_FLAG_MMAP);
            std::vector<float> x(base().d);
            back->reconstruct(7, x.data());
            EXPECT_EQ(x, std::vector<float>(base().row(7), base().row(8)));
        }
    }
}

TEST(OnDisk, PartsMayHaveADirectMap) {
    const TemporaryFolder folder;
    auto index = trained("GMM16,Flat");
    auto part = clone_index(index.get());
    part->add(100, base().x.data());
    dynamic_cast<faiss::IndexIVF&>(*part).set_direct_map_type(
            faiss::DirectMap::Hashtable);
    faiss_ext::write_index(part.get(), folder.file("part").c_str());
    merge_ondisk(index.get(), {folder.file("part")}, folder.file("lists"));
    EXPECT_EQ(index->ntotal, 100);
}

/// Codes are in memory only; FAISS reads no file of empty lists.
TEST(OnDisk, CodesAloneAndNothingAreRefused) {
    const TemporaryFolder folder;
    auto codes = trained("GMM16,RaBitQ4");
    auto part = clone_index(codes.get());
    part->add(100, base().x.data());
    faiss_ext::write_index(part.get(), folder.file("codes").c_str());
    EXPECT_FAISS_ERROR(
            merge_ondisk(
                    codes.get(), {folder.file("codes")}, folder.file("lists")),
            "codes alone");
    EXPECT_EQ(codes->ntotal, 0);
    auto index = trained("GMM16,Flat");
    faiss_ext::write_index(index.get(), folder.file("empty").c_str());
    EXPECT_FAISS_ERROR(
            merge_ondisk(
                    index.get(), {folder.file("empty")}, folder.file("lists")),
            "parts");
    EXPECT_FALSE(std::filesystem::exists(folder.file("lists")));
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    ivf.replace_invlists(
            new faiss::OnDiskInvertedLists(
                    16, ivf.code_size, folder.file("lists").c_str()),
            true);
    EXPECT_FAISS_ERROR(
            faiss_ext::write_index(index.get(), folder.file("index").c_str()),
            "on disk");
    index->add(100, base().x.data());
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    EXPECT_EQ(read(folder.file("index"))->ntotal, 100);
}

TEST(OnDisk, WrongPartsLeaveEverythingAsItWas) {
    const TemporaryFolder folder;
    auto index = trained("GMM32,Flat");
    auto parts = write_parts(*index, folder, false);
    const std::string lists = folder.file("lists");
    std::ofstream(lists) << "what was there";
    auto expect_untouched = [&] {
        EXPECT_EQ(index->ntotal, 0);
        EXPECT_EQ(std::filesystem::file_size(lists), 14u);
        EXPECT_EQ(
                std::distance(
                        std::filesystem::directory_iterator(folder.path), {}),
                5);
    };
    auto other = trained("GMM32,Flat");
    dynamic_cast<faiss::IndexIVF&>(*other).cp.seed = 77;
    other->reset();
    other->train(kN, base().x.data());
    other->add(kN, base().x.data());
    faiss_ext::write_index(other.get(), folder.file("foreign").c_str());
    auto with_foreign = parts;
    with_foreign.push_back(folder.file("foreign"));
    EXPECT_FAISS_ERROR(
            merge_ondisk(index.get(), with_foreign, lists),
            "foreign: of another training");
    expect_untouched();
    std::ofstream(with_foreign.back()) << "no index";
    EXPECT_FAISS_ERROR(
            merge_ondisk(index.get(), with_foreign, lists),
            "foreign: Index type");
    expect_untouched();
    with_foreign.back() = folder.file("absent");
    EXPECT_FAISS_ERROR(
            merge_ondisk(index.get(), with_foreign, lists), "absent");
    expect_untouched();
    EXPECT_FAISS_ERROR(
            merge_ondisk(index.get(), parts, folder.file("no/folder")),
            "no/folder");
    expect_untouched();
    EXPECT_FAISS_ERROR(
            merge_ondisk(other.get(), parts, lists), "ntotal = 4000");
    const std::unique_ptr<faiss::Index> untrained(
            index_factory(base().d, "GMM16,Flat"));
    EXPECT_FAISS_ERROR(
            merge_ondisk(untrained.get(), parts, lists), "index: not trained");
    auto flat = index_factory(16, "Flat");
    EXPECT_FAISS_ERROR(
            merge_ondisk(flat, parts, lists), "expected an IVF index");
    delete flat;
    calls.clear();
    merge_ondisk(index.get(), parts, lists);
    EXPECT_EQ(index->ntotal, idx_t(kN));
    // a loss of power leaves the old file or all of the new one
    EXPECT_EQ(
            calls,
            (std::vector<std::string>{"fsync file", "rename", "fsync folder"}));
}

} // namespace
} // namespace faiss_ext
