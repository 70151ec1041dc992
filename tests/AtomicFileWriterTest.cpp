#include "faiss_ext/io/AtomicFileWriter.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "TemporaryFolder.h"
#include "TestData.h"

namespace faiss_ext {
namespace {

namespace fs = std::filesystem;

std::string content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

size_t files_in(const fs::path& folder) {
    return std::distance(fs::directory_iterator(folder), {});
}

void write(
        const std::string& path,
        const std::string& text,
        FileSystem& files = FileSystem::real()) {
    AtomicFileWriter writer(path, files);
    writer(text.data(), 1, text.size());
    writer.commit();
}

/// Notes what is called, and makes one call fail.
struct Watched : FileSystem {
    std::vector<std::string> calls;
    size_t fails_at = size_t(-1);
    int error = ENOSPC;
    int folder = -1, file = -1;

    bool fails(const std::string& call) {
        calls.push_back(call);
        if (calls.size() - 1 == fails_at) {
            errno = error;
            return true;
        }
        return false;
    }
    std::string which(int fd) const {
        return fd == folder ? " folder" : fd == file ? " file" : " other";
    }

    int open(const char* path, int flags, mode_t mode) override {
        const bool is_folder = flags & O_DIRECTORY;
        if (fails(is_folder ? "open folder" : "open file")) {
            return -1;
        }
        const int fd = FileSystem::open(path, flags, mode);
        (is_folder ? folder : file) = fd;
        return fd;
    }
    ssize_t write(int fd, const void* data, size_t size) override {
        return fails("write" + which(fd)) ? -1
                                          : FileSystem::write(fd, data, size);
    }
    int fchown(int fd, uid_t owner, gid_t group) override {
        return fails("fchown" + which(fd))
                ? -1
                : FileSystem::fchown(fd, owner, group);
    }
    int fchmod(int fd, mode_t mode) override {
        return fails("fchmod" + which(fd)) ? -1 : FileSystem::fchmod(fd, mode);
    }
    int fsync(int fd) override {
        return fails("fsync" + which(fd)) ? -1 : FileSystem::fsync(fd);
    }
    int close(int fd) override {
        const bool failed = fails("close" + which(fd));
        const int error_before = errno;
        const int result = FileSystem::close(fd); // as the system does
        errno = error_before;
        return failed ? -1 : result;
    }
    int rename(const char* from, const char* to) override {
        return fails("rename") ? -1 : FileSystem::rename(from, to);
    }
    int unlink(const char* path) override {
        return fails("unlink") ? -1 : FileSystem::unlink(path);
    }
};

TEST(AtomicFileWriter, OrderOfSystemCalls) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    Watched fresh;
    write(path, "new", fresh);
    EXPECT_EQ(
            fresh.calls,
            (std::vector<std::string>{
                    "open folder",
                    "open file",
                    "write file",
                    "fsync file",
                    "close file",
                    "rename",
                    "fsync folder",
                    "close folder"}));
    Watched again;
    write(path, "newer", again);
    EXPECT_EQ(
            again.calls,
            (std::vector<std::string>{
                    "open folder",
                    "open file",
                    "fchmod file",
                    "write file",
                    "fsync file",
                    "close file",
                    "rename",
                    "fsync folder",
                    "close folder"}));
    EXPECT_EQ(content(path), "newer");
    EXPECT_EQ(files_in(folder.path), 1u);
}

TEST(AtomicFileWriter, EachSystemCallFailsOnce) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    // More than a buffer, so that some is written before the commit.
    const std::string text(3 << 20, 'x');
    write(path, text);
    Watched all;
    write(path, text, all);
    ASSERT_GE(all.calls.size(), 9u);
    for (size_t i = 0; i < all.calls.size(); i++) {
        SCOPED_TRACE(all.calls[i]);
        write(path, "old");
        Watched files;
        files.fails_at = i;
        files.error = EIO;
        if (all.calls[i] == "close folder") {
            EXPECT_NO_THROW(write(path, text, files)); // all is done
            continue;
        }
        EXPECT_FAISS_ERROR(write(path, text, files), path);
        // The rename is what counts.
        EXPECT_EQ(content(path), all.calls[i] == "fsync folder" ? text : "old");
        EXPECT_EQ(files_in(folder.path), 1u);
    }
    // Interrupted or cut short, a write goes on.
    struct Reluctant : FileSystem {
        int n = 0;
        ssize_t write(int fd, const void* data, size_t size) override {
            if (n++ % 2 == 0) {
                errno = EINTR;
                return -1;
            }
            return FileSystem::write(fd, data, (size + 1) / 2);
        }
    } reluctant;
    write(path, text, reluctant);
    EXPECT_EQ(content(path), text);
}

TEST(AtomicFileWriter, WithoutCommitNothingHappens) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    write(path, "old");
    {
        AtomicFileWriter writer(path);
        writer("new", 1, 3);
        EXPECT_EQ(files_in(folder.path), 2u);
    }
    EXPECT_EQ(content(path), "old");
    EXPECT_EQ(files_in(folder.path), 1u);
    // Several at once: the last that commits.
    AtomicFileWriter a(path), b(path);
    a("aaa", 1, 3);
    b("bbb", 1, 3);
    b.commit();
    a.commit();
    EXPECT_EQ(content(path), "aaa");
    EXPECT_EQ(files_in(folder.path), 1u);
}

TEST(AtomicFileWriter, PermissionsAndLinks) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const mode_t mask = umask(027);
    write(path, "one");
    umask(mask);
    struct stat status;
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0640u);
    ASSERT_EQ(chmod(path.c_str(), 0604), 0);
    write(path, "two");
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0604u);
    if (geteuid() == 0) {
        ASSERT_EQ(chown(path.c_str(), 12, 34), 0);
        write(path, "three");
        ASSERT_EQ(stat(path.c_str(), &status), 0);
        EXPECT_EQ(status.st_uid, 12u);
        EXPECT_EQ(status.st_gid, 34u);
        EXPECT_EQ(status.st_mode & 07777, 0604u);
    } else {
        ASSERT_EQ(chmod(path.c_str(), 0400), 0);
        EXPECT_FAISS_ERROR(write(path, "three"), "Permission denied");
    }

    // A link stays one; what it leads to is replaced, be it there or not.
    fs::create_directory(folder.file("below"));
    const std::string link = folder.file("link");
    const std::string chain = folder.file("below/chain");
    fs::create_symlink("index", link);
    fs::create_symlink("../link", chain);
    ASSERT_EQ(chmod(path.c_str(), 0600), 0);
    write(chain, "four");
    EXPECT_TRUE(fs::is_symlink(chain));
    EXPECT_TRUE(fs::is_symlink(link));
    EXPECT_FALSE(fs::is_symlink(path));
    EXPECT_EQ(content(path), "four");
    EXPECT_EQ(AtomicFileWriter(chain).target(), folder.file("below/../index"));
    const std::string dangling = folder.file("dangling");
    fs::create_symlink(folder.file("below/target"), dangling);
    write(dangling, "five");
    EXPECT_EQ(content(folder.file("below/target")), "five");
    const std::string loop = folder.file("loop");
    fs::create_symlink("loop", loop);
    EXPECT_FAISS_ERROR(write(loop, "six"), loop);
}

TEST(AtomicFileWriter, NamesThatDoNotWork) {
    const TemporaryFolder folder;
    EXPECT_FAISS_ERROR(write(folder.path, "x"), "directory");
    EXPECT_FAISS_ERROR(write(folder.file("no/index"), "x"), "No such file");
    EXPECT_FAISS_ERROR(write("", "x"), "No such file");
    const std::string longest = folder.file(std::string(255, 'n'));
    write(longest, "x");
    EXPECT_EQ(content(longest), "x");
    EXPECT_FAISS_ERROR(write(longest + "n", "x"), "too long");
    EXPECT_EQ(files_in(folder.path), 1u);
    // In the current folder.
    const fs::path before = fs::current_path();
    fs::current_path(folder.path);
    write("bare", "x");
    fs::current_path(before);
    EXPECT_EQ(content(folder.file("bare")), "x");
}

TEST(AtomicFileWriter, DevicesAndPipesAreWrittenDirectly) {
    const TemporaryFolder folder;
    write("/dev/null", "x");
    EXPECT_TRUE(fs::is_character_file("/dev/null"));
    if (fs::exists("/dev/full")) {
        EXPECT_FAISS_ERROR(write("/dev/full", "x"), "No space left");
        EXPECT_FAISS_ERROR(
                write("/dev/full", std::string(2 << 20, 'x')), "No space left");
    }
    const std::string pipe = folder.file("pipe");
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    std::string got;
    std::thread reader([&] { got = content(pipe); });
    write(pipe, std::string(1 << 18, 'p'));
    reader.join();
    EXPECT_EQ(got, std::string(1 << 18, 'p'));
    EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST(AtomicFileWriter, WhatIsOpenIsWrittenThroughItsNumber) {
    const TemporaryFolder folder;
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const std::string by_number = "/proc/self/fd/" + std::to_string(ends[1]);
    const std::string link = folder.file("link");
    fs::create_symlink(by_number, link);
    for (const std::string& path : {by_number, link}) {
        write(path, "to the pipe");
        std::string got(11, 0);
        ASSERT_EQ(read(ends[0], got.data(), got.size()), 11);
        EXPECT_EQ(got, "to the pipe");
    }
    close(ends[0]);
    close(ends[1]);
    // A file without a name, in which there was more.
    const std::string path = folder.file("index");
    write(path, "longer than what comes");
    const int fd = open(path.c_str(), O_RDONLY);
    ASSERT_GE(fd, 0);
    fs::remove(path);
    write("/proc/self/fd/" + std::to_string(fd), "short");
    EXPECT_EQ(content("/proc/self/fd/" + std::to_string(fd)), "short");
    close(fd);
    EXPECT_EQ(files_in(folder.path), 1u); // the link
}

TEST(AtomicFileWriter, LeftoversOfTheSameProcessNumber) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    for (int i = 0; i < 3000; i++) {
        std::ofstream(
                folder.file(".index.") + std::to_string(getpid()) + '-' +
                std::to_string(i) + ".tmp");
    }
    write(path, "x");
    EXPECT_EQ(content(path), "x");
}

TEST(AtomicFileWriter, FullDisk) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    write(path, "old");
    // A limit on sizes is as good as a disk that is full, and needs no mount.
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit = {1500000, 1500000};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
            _exit(2);
        }
        try {
            write(path, std::string(4 << 20, 'x'));
        } catch (const faiss::FaissException& e) {
            _exit(strstr(e.what(), "File too large") ? 0 : 3);
        }
        _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0);
    EXPECT_EQ(content(path), "old");
    EXPECT_EQ(files_in(folder.path), 1u);
}

/// Where scripts/trust made the folder for temporary files that small.
TEST(AtomicFileWriter, DISABLED_DiskOf1MB) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const std::string old(600 << 10, 'o');
    write(path, old);
    EXPECT_FAISS_ERROR(
            write(path, std::string(600 << 10, 'n')), "No space left");
    EXPECT_FAISS_ERROR(write(path, std::string(3 << 20, 'n')), "No space left");
    EXPECT_EQ(content(path), old);
    EXPECT_EQ(files_in(folder.path), 1u);
    write(path, std::string(100 << 10, 'n')); // and goes on
    EXPECT_EQ(fs::file_size(path), 100u << 10);
}

} // namespace
} // namespace faiss_ext
