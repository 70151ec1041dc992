#include <cstdio>
#include <string>

#include <gmm/Backend.h>

int main() {
    std::string why_not;
    const bool cuda = gmm::cuda_available(&why_not);
    std::printf("CUDA: %s\n", cuda ? "yes" : why_not.c_str());
}
