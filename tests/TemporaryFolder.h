#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

/// A folder of this process's own, removed with what is in it.
struct TemporaryFolder {
    const std::filesystem::path path = std::filesystem::temp_directory_path() /
            ("faiss_ext_test." + std::to_string(getpid()));

    TemporaryFolder() {
        std::filesystem::create_directories(path);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::filesystem::remove_all(path);
    }

    std::string file(const std::string& name) const {
        return path / name;
    }
};
