// Lists in a file that grow and get shorter.
#include <fcntl.h>

#include <cerrno>
#include <set>

#include <omp.h>

#include <faiss/invlists/OnDiskInvertedLists.h>

#include "OnDiskTools.h"
#include "faiss_ext/ondisk.h"

/// Whether the disk is, from now on.
static bool disk_is_full = false;

extern "C" int posix_fallocate(int fd, off_t offset, off_t bytes) {
    return disk_is_full ? ENOSPC : fallocate(fd, 0, offset, bytes);
}

namespace faiss_ext {
namespace {

/// To give room on disk back can fail, and a change that has begun may not.
TEST(OnDiskChanges, AListThatGetsShorterKeepsItsPlace) {
    const TemporaryFolder folder;
    auto index = on_disk("GMM32,Flat", folder);
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    const auto& lists =
            dynamic_cast<const faiss::OnDiskInvertedLists&>(*ivf.invlists);
    std::vector<size_t> offsets, capacities;
    for (const auto& list : lists.lists) {
        offsets.push_back(list.offset);
        capacities.push_back(list.capacity);
    }
    const size_t bytes = lists.totsize;
    index->remove_ids(faiss::IDSelectorRange(100, kN));
    Model model = model_of(rows_of(base(), 0, 100));
    check_consistent(ivf, *extract_gmm(index.get()), model);
    for (size_t i = 0; i < ivf.nlist; i++) {
        EXPECT_EQ(lists.lists[i].offset, offsets[i]) << i;
        EXPECT_EQ(lists.lists[i].capacity, capacities[i]) << i;
    }
    EXPECT_EQ(lists.totsize, bytes);
    // it grows again, and can be written
    std::vector<idx_t> ids(2000);
    for (size_t i = 0; i < ids.size(); i++) {
        ids[i] = idx_t(1000 + i);
        model[ids[i]] = {base().row(ids[i]), base().row(ids[i]) + base().d};
    }
    index->add_with_ids(ids.size(), base().row(1000), ids.data());
    check_consistent(ivf, *extract_gmm(index.get()), model);
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    const auto back = read(folder.file("index"));
    check_consistent(
            dynamic_cast<faiss::IndexIVF&>(*back),
            *extract_gmm(back.get()),
            model);
}

/// Single additions to lists that lost nearly all: FAISS would give them
/// smaller slots and leave the ids where they were.
TEST(OnDiskChanges, AddingOneByOneToWhatIsLeft) {
    for (const char* description : {"GMM16,Flat", "GMM16,SQ8", "GMM16,PQ8x4"}) {
        for (size_t kept : {20, 100}) {
            const TemporaryFolder folder;
            auto index = on_disk(description, folder);
            index->remove_ids(faiss::IDSelectorRange(kept, kN));
            std::set<idx_t> expected;
            for (size_t i = 0; i < kept; i++) {
                expected.insert(idx_t(i));
            }
            for (size_t i = 0; i < 50; i++) {
                const idx_t id = idx_t(10000 + i);
                index->add_with_ids(1, base().row(i), &id);
                expected.insert(id);
            }
            const auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
            std::set<idx_t> stored;
            for (size_t i = 0; i < ivf.nlist; i++) {
                faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
                stored.insert(
                        ids.get(), ids.get() + ivf.invlists->list_size(i));
            }
            EXPECT_EQ(stored, expected) << description << " " << kept;
        }
    }
}

/// A list that grows maps the file of all lists anew.
TEST(OnDiskChanges, ListsGrowBesideEachOther) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(4);
    for (int repeat = 0; repeat < 5; repeat++) {
        const TemporaryFolder folder;
        auto index = trained("GMM64,Flat");
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
        ivf.replace_invlists(
                new faiss::OnDiskInvertedLists(
                        ivf.nlist, ivf.code_size, folder.file("lists").c_str()),
                true);
        for (size_t i = 0; i < kN; i += 400) {
            index->add(400, base().row(i));
        }
        check_consistent(ivf, *extract_gmm(index.get()), model_of(base()));
    }
    omp_set_num_threads(threads);
}

/// FAISS's merge_from fills a file and takes all of it for free: a list that
/// grows was put over others, or the process ended.
TEST(OnDiskChanges, ListsThatFaissMergedGrow) {
    for (const auto& [description, written] :
         {std::pair("GMM16,Flat", false),
          std::pair("GMM16,Flat", true),
          std::pair("IVF16,Flat", true)}) {
        const TemporaryFolder folder;
        auto index = trained(description);
        index->add(kN - 800, base().x.data());
        auto* ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
        auto lists = std::make_unique<faiss::OnDiskInvertedLists>(
                ivf->nlist, ivf->code_size, folder.file("lists").c_str());
        lists->merge_from_1(ivf->invlists);
        ivf->replace_invlists(lists.release(), true);
        if (written) {
            faiss_ext::write_index(index.get(), folder.file("index").c_str());
            index = read(folder.file("index"));
            ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
        }
        for (size_t i = kN - 800; i < kN; i += 400) {
            index->add(400, base().row(i));
        }
        ivf->nprobe = ivf->nlist;
        const std::vector<float> zeros(kN);
        EXPECT_EQ(find(*index, base(), 1).dis, zeros);
        index->reset();
        index->add(kN, base().x.data());
        EXPECT_EQ(find(*index, base(), 1).dis, zeros);
    }
}

/// Writes to a mapped file that has holes end in a signal where the disk is
/// full.
TEST(OnDiskChanges, AFullDiskIsAnErrorWhereListsGrow) {
    const TemporaryFolder folder;
    auto index = trained("GMM16,Flat");
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    ivf.replace_invlists(
            new faiss::OnDiskInvertedLists(
                    ivf.nlist, ivf.code_size, folder.file("lists").c_str()),
            true);
    index->add(1000, base().x.data());
    ivf.nprobe = ivf.nlist;
    const Found before = find(*index, base(), 10);
    disk_is_full = true;
    EXPECT_FAISS_ERROR(index->add(2000, base().row(1000)), "no room");
    disk_is_full = false;
    EXPECT_EQ(index->ntotal, 1000);
    EXPECT_EQ(find(*index, base(), 10), before);
    index->add(3000, base().row(1000));
    check_consistent(ivf, *extract_gmm(index.get()), model_of(base()));
}

/// A copy of the file has them where a list has room and no entries.
TEST(OnDiskChanges, AFullDiskIsAnErrorWhereListsHaveRoom) {
    const TemporaryFolder folder;
    auto index = trained("GMM16,Flat");
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    auto* lists = new faiss::OnDiskInvertedLists(
            ivf.nlist, ivf.code_size, folder.file("lists").c_str());
    ivf.replace_invlists(lists, true);
    index->add(1000, base().x.data());
    Vectors more{0, base().d, {}};
    for (size_t i = 0; i < ivf.nlist && more.n == 0; i++) {
        const auto& list = lists->lists[i];
        const size_t room = list.capacity - list.size;
        if (list.size > 0 && room * ivf.code_size >= 4096) {
            more.n = room;
            const auto* vector =
                    reinterpret_cast<const float*>(lists->get_codes(i));
            for (size_t j = 0; j < room; j++) {
                more.x.insert(more.x.end(), vector, vector + more.d);
            }
        }
    }
    ASSERT_GT(more.n, 0);
    const size_t bytes = lists->totsize;
    disk_is_full = true;
    EXPECT_FAISS_ERROR(index->add(more.n, more.x.data()), "no room");
    disk_is_full = false;
    EXPECT_EQ(index->ntotal, 1000);
    index->add(more.n, more.x.data());
    EXPECT_EQ(lists->totsize, bytes);
}

TEST(OnDiskChanges, ListsThatOverlapAreRefused) {
    const TemporaryFolder folder;
    auto index = on_disk("GMM16,Flat", folder);
    auto& lists = dynamic_cast<faiss::OnDiskInvertedLists&>(
            *dynamic_cast<faiss::IndexIVF&>(*index).invlists);
    lists.lists[1].offset -= 8;
    faiss_ext::write_index(index.get(), folder.file("index").c_str());
    EXPECT_FAISS_ERROR(read(folder.file("index")), "overlap");
}

} // namespace
} // namespace faiss_ext
