// Asks the kernel table of an archive with FP16 kernels for heads of 64 channels on SM 8.7 and 9.0 and portable ones, and
// checks the answers.
//   kernel_table COUNT             (exit code 3: the archive cannot be read)
//   kernel_table refuse SM         prints why an architecture without kernels is refused
#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

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

int main(int count, char** argv)
{
    std::string error;
    KernelTable const* table = KernelTable::get(error);
    if (table == nullptr)
    {
        std::printf("%s\n", error.c_str());
        return 3;
    }
    Problem const embedded{Type::kFLOAT16, 1, 64, 64, 1600};
    if (count == 3)
    {
        int const architecture = std::atoi(argv[2]);
        CHECK(table->tactics(embedded, architecture, error).empty() && table->find(embedded, architecture, 1) == nullptr);
        std::printf("%s\n", error.c_str());
        return gFailures == 0 ? 0 : 1;
    }
    CHECK(table->kernels().size() == static_cast<std::size_t>(std::atoi(argv[1])));
    // 8.9 and 12.1 have no kernels of their own here.
    for (int architecture : {87, 90, 89, 121})
    {
        bool const own = architecture == 87 || architecture == 90;
        std::uint32_t const source = own ? static_cast<std::uint32_t>(architecture) : wnlb::kPortable;
        std::vector<std::int32_t> const tactics = table->tactics(embedded, architecture, error);
        CHECK(tactics.size() >= 2 && tactics.front() == 1);
        for (std::int32_t tactic : tactics)
        {
            Kernel const* kernel = table->find(embedded, architecture, tactic);
            CHECK(kernel != nullptr && kernel->multiple == 8 && kernel->tactic == static_cast<std::uint32_t>(tactic));
            CHECK(kernel->architecture == source && kernel->head == 64);
            bool const machineCode = std::memcmp(table->code(*kernel), "\x7f" "ELF", 4) == 0;
            CHECK(machineCode == own);
            Problem odd = embedded;
            for (auto const& [positions, multiple] : {std::pair{247, 1U}, {1050, 2U}, {988, 2U}, {4200, 8U}})
            {
                odd.positions = positions;
                kernel = table->find(odd, architecture, tactic);
                CHECK(kernel != nullptr && kernel->multiple == multiple && odd.channels % kernel->value == 0);
            }
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
    CHECK(error == "no kernel for compute capability 7.5; expected 8.0 or later: export the model with --attention standard");
    CHECK(table->find(embedded, 75, 1) == nullptr);
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
