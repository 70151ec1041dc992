#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

namespace bench {

using Clock = std::chrono::steady_clock;

struct Timer {
    Clock::time_point start = Clock::now();
    double seconds() const {
        return std::chrono::duration<double>(Clock::now() - start).count();
    }
};

/// A line of /proc/self/status in MB.
inline double status_mb(const std::string& name) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind(name + ":", 0) == 0) {
            return std::stod(line.substr(name.size() + 1)) / 1024;
        }
    }
    return 0;
}

/// The most anonymous memory that the process has while it lives.
class Watch {
public:
    Watch()
            : thread([this] {
                  while (!done) {
                      most = std::max(most.load(), status_mb("RssAnon"));
                      std::this_thread::sleep_for(
                              std::chrono::milliseconds(20));
                  }
              }) {}
    ~Watch() {
        done = true;
        thread.join();
    }
    /// Since the last call.
    double take() {
        return most.exchange(0);
    }

private:
    std::atomic<bool> done = false;
    std::atomic<double> most = 0;
    std::thread thread;
};

} // namespace bench
