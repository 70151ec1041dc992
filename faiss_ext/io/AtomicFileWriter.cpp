#include "faiss_ext/io/AtomicFileWriter.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>

#include <faiss/impl/FaissAssert.h>

namespace faiss_ext {

int FileSystem::open(const char* path, int flags, mode_t mode) {
    return ::open(path, flags, mode);
}
ssize_t FileSystem::write(int fd, const void* data, size_t size) {
    return ::write(fd, data, size);
}
int FileSystem::fchown(int fd, uid_t owner, gid_t group) {
    return ::fchown(fd, owner, group);
}
int FileSystem::fchmod(int fd, mode_t mode) {
    return ::fchmod(fd, mode);
}
int FileSystem::fsync(int fd) {
    return ::fsync(fd);
}
int FileSystem::close(int fd) {
    return ::close(fd);
}
int FileSystem::rename(const char* from, const char* to) {
    return ::rename(from, to);
}
int FileSystem::unlink(const char* path) {
    return ::unlink(path);
}

FileSystem& FileSystem::real() {
    static FileSystem files;
    return files;
}

namespace {

constexpr size_t kBuffer = 1 << 20;
/// Linux follows as many.
constexpr int kMaxLinks = 40;
constexpr int kMaxNames = 1000;
/// The longest file name that every common file system takes.
constexpr size_t kMaxName = 255;

std::string folder_of(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path();
    return parent.empty() ? "." : parent;
}

bool is_link(const std::string& path) {
    struct stat status;
    return lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

} // namespace

int follow_links(std::string& path) {
    for (int links = 0; is_link(path); links++) {
        std::error_code error;
        const auto to = std::filesystem::read_symlink(path, error);
        if (links == kMaxLinks || error) {
            return error ? error.value() : ELOOP;
        }
        // of an absolute `to` nothing else is left
        path = std::filesystem::path(path).parent_path() / to;
    }
    return 0;
}

int open_new_beside(
        const std::string& path,
        int access,
        mode_t mode,
        std::string& name,
        FileSystem& files) {
    // Not from 0: where each process has the same number (in containers), what
    // killed ones left behind would use up the names.
    static std::atomic<unsigned> counter{std::random_device{}()};
    const std::string own = std::filesystem::path(path).filename();
    const std::string begin = folder_of(path) + "/.";
    for (int i = 0; i < kMaxNames; i++) {
        std::string end = std::to_string(getpid());
        end += '-' + std::to_string(counter++) + ".tmp";
        name = begin + own.substr(0, kMaxName - 2 - end.size()) + '.' + end;
        const int fd = files.open(
                name.c_str(), access | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd >= 0) {
            return fd;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    const int error = errno;
    name.clear(); // not ours
    errno = error;
    return -1;
}

AtomicFileWriter::AtomicFileWriter(const std::string& path, FileSystem& files)
        : files(files), path(path) {
    name = path;
    if (const int error = follow_links(this->path)) {
        fail("open", error);
    }
    folder = folder_of(this->path);
    struct stat old, named;
    const bool exists = stat(name.c_str(), &old) == 0;
    if (!exists && errno != ENOENT) {
        fail("open", errno);
    }
    // Of what a process has open, links in /proc say what no path leads to:
    // "pipe:[7]", or a file's name and " (deleted)".
    const bool by_links = exists && stat(this->path.c_str(), &named) == 0 &&
            named.st_dev == old.st_dev && named.st_ino == old.st_ino;
    try {
        if (exists && (!S_ISREG(old.st_mode) || !by_links)) {
            this->path = name;
            fd = files.open(name.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC, 0);
            if (fd < 0) {
                fail("open", errno);
            }
        } else {
            open_beside(exists ? &old : nullptr);
        }
        buffer.reserve(kBuffer);
    } catch (...) {
        abandon();
        throw;
    }
}

AtomicFileWriter::~AtomicFileWriter() {
    abandon();
}

void AtomicFileWriter::abandon() {
    if (fd >= 0) {
        files.close(fd);
        fd = -1;
    }
    if (folder_fd >= 0) {
        files.close(folder_fd);
        folder_fd = -1;
    }
    if (!temporary.empty()) {
        files.unlink(temporary.c_str());
        temporary.clear();
    }
}

void AtomicFileWriter::fail(const char* what, int error) const {
    FAISS_THROW_FMT(
            "write_index: cannot %s \"%s\": %s",
            what,
            name.c_str(),
            std::generic_category().message(error).c_str());
}

void AtomicFileWriter::open_folder() {
    folder_fd =
            files.open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (folder_fd < 0 && errno != EACCES) {
        fail("open the folder of", errno);
    }
}

void AtomicFileWriter::open_beside(const struct stat* old) {
    // A file that may not be written is not replaced, either.
    if (old && faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0) {
        fail("open", errno);
    }
    open_folder();
    fd = open_new_beside(path, O_WRONLY, old ? 0600 : 0666, temporary, files);
    if (fd < 0) {
        fail("make a file beside", errno);
    }
    if (!old) {
        return;
    }
    mode_t mode = old->st_mode & 0777;
    if ((old->st_uid != geteuid() || old->st_gid != getegid()) &&
        files.fchown(fd, old->st_uid, old->st_gid) != 0 &&
        files.fchown(fd, uid_t(-1), old->st_gid) != 0) {
        mode &= 0707; // what its group may do is not for another
    }
    if (files.fchmod(fd, mode) != 0) {
        fail("set the permissions of", errno);
    }
}

void AtomicFileWriter::write_out(const uint8_t* data, size_t size) {
    while (size > 0) {
        const ssize_t n = files.write(fd, data, size);
        if (n > 0) {
            data += n;
            size -= size_t(n);
        } else if (n == 0 || errno != EINTR) {
            fail("write", n == 0 ? EIO : errno);
        }
    }
}

void AtomicFileWriter::flush() {
    write_out(buffer.data(), buffer.size());
    buffer.clear();
}

size_t AtomicFileWriter::operator()(
        const void* ptr, size_t size, size_t nitems) {
    const size_t bytes = size * nitems;
    const auto data = static_cast<const uint8_t*>(ptr);
    if (buffer.size() + bytes > kBuffer) {
        flush();
    }
    if (bytes >= kBuffer) {
        write_out(data, bytes);
    } else {
        buffer.insert(buffer.end(), data, data + bytes);
    }
    return nitems;
}

void AtomicFileWriter::commit() {
    flush();
    // Pipes and most devices have nothing to flush to.
    if (files.fsync(fd) != 0 &&
        (!temporary.empty() || (errno != EINVAL && errno != ENOTSUP))) {
        fail("flush", errno);
    }
    const int closing = fd;
    fd = -1;
    if (files.close(closing) != 0 && errno != EINTR) {
        fail("close", errno);
    }
    if (temporary.empty()) {
        return;
    }
    if (files.rename(temporary.c_str(), path.c_str()) != 0) {
        fail("replace", errno);
    }
    temporary.clear();
    if (folder_fd >= 0 && files.fsync(folder_fd) != 0 && errno != EINVAL) {
        fail("flush the folder of the new", errno);
    }
}

} // namespace faiss_ext
