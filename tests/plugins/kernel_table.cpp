// Asks the kernel table of an archive with FP16 kernels for heads of 64 channels on SM 8.7 and 9.0, and checks the answers.
//   kernel_table COUNT      (exit code 3: the archive cannot be read)
#include "kernels.h"

#include <cstdio>
#include <cstdlib>

using wnlb::Kernel;
using wnlb::KernelTable;
using wnlb::Problem;
using wnlb::Type;

namespace
{

int gFailures = 0;

void check(bool held, char const* what)
{
    if (!held)
    {
        ++gFailures;
        std::printf("FAILED: %s\n", what);
    }
}
#define CHECK(condition) check((condition), #condition)

} // namespace

int main(int, char** argv)
{
    std::string error;
    KernelTable const* table = KernelTable::get(error);
    if (table == nullptr)
    {
        std::printf("%s\n", error.c_str());
        return 3;
    }
    CHECK(table->kernels().size() == static_cast<std::size_t>(std::atoi(argv[1])));
    Problem const embedded{Type::kFLOAT16, 1, 64, 64, 1600};
    for (int architecture : {87, 90})
    {
        std::vector<std::int32_t> const tactics = table->tactics(embedded, architecture, error);
        CHECK(tactics.size() >= 2 && tactics.front() == 1);
        for (std::int32_t tactic : tactics)
        {
            Kernel const* kernel = table->find(embedded, architecture, tactic);
            CHECK(kernel != nullptr && kernel->aligned == 1 && kernel->tactic == static_cast<std::uint32_t>(tactic));
            CHECK(kernel->architecture == static_cast<std::uint32_t>(architecture) && kernel->head == 64);
            Problem odd = embedded;
            odd.positions = 247; // no multiple of 16
            kernel = table->find(odd, architecture, tactic);
            CHECK(kernel != nullptr && kernel->aligned == 0 && odd.channels % kernel->value == 0);
        }
    }
    Problem const gaussian{Type::kFLOAT16, 2, 64, 32, 1600};
    CHECK(!table->tactics(gaussian, 87, error).empty());
    for (std::int32_t tactic : table->tactics(gaussian, 87, error))
    {
        Kernel const* kernel = table->find(gaussian, 87, tactic);
        CHECK(kernel != nullptr && 32 % kernel->value == 0);
    }
    CHECK(table->tactics(embedded, 75, error).empty());
    CHECK(error.find("compute capability 7.5") != std::string::npos && error.find("--arch 75") != std::string::npos);
    Problem const bfloat{Type::kBFLOAT16, 1, 64, 64, 1600};
    CHECK(table->tactics(bfloat, 87, error).empty());
    CHECK(error == "no kernel for bfloat16, 64 channels of query and 64 of value");
    Problem wide = embedded;
    wide.head = 128;
    CHECK(table->tactics(wide, 87, error).empty());
    CHECK(table->find(wide, 87, 1) == nullptr);
    Problem many = embedded;
    many.batch = 70000; // more than a grid can have
    CHECK(table->tactics(many, 87, error).empty());
    // Without a driver nothing is loaded, and the reason is told.
    if (wnlb::driver(error) == nullptr)
    {
        CHECK(wnlb::LoadedKernel::load(*table, table->kernels().front(), error) == nullptr);
        CHECK(!error.empty());
        CHECK(wnlb::deviceArchitecture(error) == 0);
    }
    return gFailures == 0 ? 0 : 1;
}
