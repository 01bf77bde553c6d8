#include "kernels.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

extern "C" unsigned char const wnlb_kernels_begin[];
extern "C" unsigned char const wnlb_kernels_end[];

namespace wnlb
{
namespace
{

constexpr char kMagic[8] = {'W', 'N', 'L', 'B', 'K', 'R', 'N', '2'};
constexpr char const* kSymbol = "non_local_attention_kernel";
constexpr std::int64_t kMaxGridY = 65535;
constexpr std::size_t kMaxScratch = 4;

struct Header
{
    char magic[8];
    std::uint64_t count;
};

char const* name(Type type)
{
    static constexpr std::array<char const*, 3> names{"float16", "bfloat16", "float32"};
    return names[static_cast<std::size_t>(type)];
}

} // namespace

KernelTable const* KernelTable::get(std::string& error) noexcept
{
    struct Instance
    {
        KernelTable table;
        bool ready{false};
        std::string error;
    };
    try
    {
        static Instance const instance = [] {
            Instance made;
            if (char const* path = std::getenv("WNLB_KERNELS"))
            {
                std::ifstream file{path, std::ios::binary};
                made.table.mFile.assign(std::istreambuf_iterator<char>{file}, std::istreambuf_iterator<char>{});
                made.ready = made.table.read(made.table.mFile.data(), made.table.mFile.size(), made.error);
                if (!made.ready)
                {
                    made.error = std::string{"WNLB_KERNELS="} + path + ": " + made.error;
                }
                return made;
            }
            auto const size = static_cast<std::size_t>(wnlb_kernels_end - wnlb_kernels_begin);
            made.ready = made.table.read(wnlb_kernels_begin, size, made.error);
            return made;
        }();
        error = instance.error;
        return instance.ready ? &instance.table : nullptr;
    }
    catch (...)
    {
        return nullptr;
    }
}

bool KernelTable::read(unsigned char const* data, std::size_t size, std::string& error)
{
    Header header{};
    if (size >= sizeof(header))
    {
        std::memcpy(&header, data, sizeof(header));
    }
    if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    {
        error = "no kernels; expected a file that `python -m wnlb.plugins.build` wrote";
        return false;
    }
    if (header.count > (size - sizeof(header)) / sizeof(Kernel))
    {
        error = "the file of kernels is cut off";
        return false;
    }
    mKernels.resize(header.count);
    if (header.count > 0)
    {
        std::memcpy(mKernels.data(), data + sizeof(header), header.count * sizeof(Kernel));
    }
    for (Kernel const& kernel : mKernels)
    {
        bool const inside = kernel.offset <= size && kernel.size > 0 && kernel.size <= size - kernel.offset;
        bool const ends = kernel.architecture != kPortable || (inside && data[kernel.offset + kernel.size - 1] == 0);
        bool const divides = kernel.value > 0 && kernel.blockM > 0 && kernel.multiple > 0;
        if (!inside || !ends || !divides || kernel.scratch > kMaxScratch || static_cast<std::uint32_t>(kernel.type) > 2)
        {
            error = "the file of kernels is damaged";
            return false;
        }
    }
    mData = data;
    return true;
}

bool KernelTable::source(int architecture, std::uint32_t& found) const noexcept
{
    auto const own = static_cast<std::uint32_t>(architecture);
    bool portable = false;
    for (Kernel const& kernel : mKernels)
    {
        if (kernel.architecture == own)
        {
            found = own;
            return true;
        }
        portable = portable || (kernel.architecture == kPortable && own >= kPortableFrom);
    }
    found = kPortable;
    return portable;
}

bool KernelTable::fits(Kernel const& kernel, Problem const& problem, std::uint32_t source) noexcept
{
    return kernel.architecture == source && kernel.type == problem.type
        && kernel.head == problem.head && problem.channels % kernel.value == 0
        && problem.channels / kernel.value <= kMaxGridY && problem.batch <= kMaxGridY;
}

std::vector<std::int32_t> KernelTable::tactics(Problem const& problem, int architecture, std::string& error) const
{
    std::vector<std::int32_t> found;
    std::uint32_t from = kPortable;
    if (!source(architecture, from))
    {
        error = "no kernel for compute capability " + std::to_string(architecture / 10) + "."
            + std::to_string(architecture % 10);
        error += static_cast<std::uint32_t>(architecture) < kPortableFrom
            ? "; expected 8.0 or later: export the model with --attention standard"
            : "; run `python -m wnlb.plugins.build` and build the library again";
        return found;
    }
    for (Kernel const& kernel : mKernels)
    {
        auto const tactic = static_cast<std::int32_t>(kernel.tactic);
        if (tactic > 0 && fits(kernel, problem, from)
            && std::find(found.begin(), found.end(), tactic) == found.end())
        {
            found.push_back(tactic);
        }
    }
    std::sort(found.begin(), found.end());
    if (found.empty())
    {
        error = std::string{"no kernel for "} + name(problem.type) + ", " + std::to_string(problem.head)
            + " channels of query and " + std::to_string(problem.channels) + " of value";
    }
    return found;
}

Kernel const* KernelTable::find(Problem const& problem, int architecture, std::int32_t tactic) const noexcept
{
    Kernel const* best = nullptr;
    std::uint32_t from = kPortable;
    if (!source(architecture, from))
    {
        return nullptr;
    }
    for (Kernel const& kernel : mKernels)
    {
        if (!fits(kernel, problem, from))
        {
            continue;
        }
        bool const offered = kernel.tactic == 0 || kernel.tactic == static_cast<std::uint32_t>(tactic);
        if (offered && problem.positions % kernel.multiple == 0 && (best == nullptr || kernel.multiple > best->multiple))
        {
            best = &kernel; // the widest loads
        }
    }
    return best;
}

std::shared_ptr<LoadedKernel> LoadedKernel::load(KernelTable const& table, Kernel const& kernel, std::string& error)
{
    Driver const* cuda = driver(error);
    if (cuda == nullptr)
    {
        return nullptr;
    }
    std::shared_ptr<LoadedKernel> loaded{new LoadedKernel{kernel}};
    char const* call = "cuModuleLoadData";
    CUresult result = cuda->moduleLoadData(&loaded->mModule, table.code(kernel));
    if (result == CUDA_SUCCESS)
    {
        call = "cuModuleGetFunction";
        result = cuda->moduleGetFunction(&loaded->mFunction, loaded->mModule, kSymbol);
    }
    if (result == CUDA_SUCCESS)
    {
        call = "cuFuncSetAttribute";
        result = cuda->funcSetAttribute(loaded->mFunction, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            static_cast<int>(kernel.sharedBytes));
    }
    if (result != CUDA_SUCCESS)
    {
        error = describe(call, result);
        return nullptr;
    }
    return loaded;
}

LoadedKernel::~LoadedKernel()
{
    std::string ignored;
    Driver const* cuda = driver(ignored);
    if (cuda != nullptr && mModule != nullptr)
    {
        static_cast<void>(cuda->moduleUnload(mModule)); // fails only where the context is gone, and the module with it
    }
}

CUresult LoadedKernel::launch(Problem const& problem, void const* query, void const* key, void const* value,
    void* output, CUstream stream) const noexcept
{
    std::string ignored;
    Driver const* cuda = driver(ignored);
    if (cuda == nullptr)
    {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    auto positions = static_cast<std::int32_t>(problem.positions);
    std::array<void*, kMaxScratch> scratch{};
    std::array<void*, 5 + kMaxScratch> parameters{&query, &key, &value, &output, &positions};
    for (std::size_t i = 0; i < mKernel.scratch; ++i)
    {
        parameters[5 + i] = &scratch[i];
    }
    auto const rows = static_cast<unsigned>((problem.positions + mKernel.blockM - 1) / mKernel.blockM);
    auto const slices = static_cast<unsigned>(problem.channels / mKernel.value);
    return cuda->launchKernel(mFunction, rows, slices, static_cast<unsigned>(problem.batch), mKernel.threads, 1, 1,
        mKernel.sharedBytes, stream, parameters.data(), nullptr);
}

} // namespace wnlb
