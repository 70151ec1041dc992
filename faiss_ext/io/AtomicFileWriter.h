#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <faiss/impl/io.h>

namespace faiss_ext {

/// The system calls that change files, so that tests can look at their order
/// and make each fail. They return what the system's own do, errno too.
struct FileSystem {
    virtual int open(const char* path, int flags, mode_t mode);
    virtual ssize_t write(int fd, const void* data, size_t size);
    virtual int fchown(int fd, uid_t owner, gid_t group);
    virtual int fchmod(int fd, mode_t mode);
    virtual int fsync(int fd);
    virtual int close(int fd);
    virtual int rename(const char* from, const char* to);
    virtual int unlink(const char* path);
    virtual ~FileSystem() = default;

    static FileSystem& real();
};

/// Of a symbolic link, what it leads to, be it there or not. Returns 0, or an
/// error as in errno.
int follow_links(std::string& path);

/** A new file in the folder of `path`, ".NAME.PID-N.tmp", which nobody else
 * writes.
 *
 * @param access  O_WRONLY or O_RDWR
 * @param name    output: the file's, empty if there is none
 * @return  its descriptor; -1: errno says why there is none
 */
int open_new_beside(
        const std::string& path,
        int access,
        mode_t mode,
        std::string& name,
        FileSystem& files = FileSystem::real());

/** Writes a file so that it is the old one or the new one, whatever happens.
 *
 * What is written goes to a new file in the same folder, ".NAME.PID-N.tmp";
 * commit() flushes it to the device, renames it to NAME, and flushes the
 * folder. Without a commit the destructor removes it; a process that is killed
 * leaves it behind, and it may be deleted. The new file has the old one's
 * permissions, and its owner and group where the system allows it; of a
 * symbolic link the target is replaced, of several hard links the one named. A
 * device or pipe, or an open file that no path leads to any more (by
 * /proc/self/fd), is written directly.
 *
 * Throws FaissException naming the file and the system's reason for everything
 * that fails, what is buffered included.
 */
struct AtomicFileWriter : faiss::IOWriter {
    explicit AtomicFileWriter(
            const std::string& path, FileSystem& files = FileSystem::real());
    AtomicFileWriter(const AtomicFileWriter&) = delete;
    AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
    ~AtomicFileWriter() override;

    size_t operator()(const void* ptr, size_t size, size_t nitems) override;
    void commit();

    /// Where it will be: the path, or what the symbolic links there lead to.
    const std::string& target() const {
        return path;
    }

private:
    void open_beside(const struct stat* old);
    void open_folder();
    void write_out(const uint8_t* data, size_t size);
    void flush();
    void abandon();
    [[noreturn]] void fail(const char* what, int error) const;

    FileSystem& files;
    std::string path;
    std::string folder;
    std::string temporary; ///< empty: written directly, or committed
    int fd = -1;
    int folder_fd = -1; ///< -1: a folder that may not be read
    std::vector<uint8_t> buffer;
};

} // namespace faiss_ext
