// The kernels that `python -m wnlb.plugins.build` compiled: which there are, which fits, and how one is launched.
#pragma once

#include "driver.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace wnlb
{

enum class Type : std::uint32_t
{
    kFLOAT16 = 0,
    kBFLOAT16 = 1,
    kFLOAT32 = 2,
};

//! One compiled kernel. The layout is that of the records in kernels.bin; see plugins/build.py.
struct Kernel
{
    std::uint32_t architecture; //!< 10 * major + minor, exactly the device's; kPortable: PTX
    Type type;                  //!< of all four tensors
    std::uint32_t head;         //!< d, channels of query and key
    std::uint32_t value;        //!< output channels that one block computes; divides e
    std::uint32_t blockM;       //!< query positions that one block handles
    std::uint32_t threads;
    std::uint32_t sharedBytes;  //!< dynamic shared memory
    std::uint32_t multiple;     //!< only for N that is a multiple of it
    std::uint32_t tactic;       //!< the tile it was made from; 0 stands in for every tactic
    std::uint32_t scratch;      //!< pointers that the compiler appended to the parameters; all null
    std::uint64_t offset;       //!< of the code in kernels.bin: a cubin, or PTX terminated by a zero
    std::uint64_t size;
    std::uint64_t digest;       //!< the first eight bytes of the code's SHA-256
};

//! In place of an architecture: the driver compiles the kernel for any device from kPortableFrom on.
constexpr std::uint32_t kPortable = 0;
constexpr std::uint32_t kPortableFrom = 80;
static_assert(sizeof(Kernel) == 64, "must be packed as plugins/build.py packs it");

//! A problem: `query` and `key` are [batch, head, positions], `value` and `output` [batch, channels, positions].
struct Problem
{
    Type type;
    std::int64_t batch;
    std::int64_t head;
    std::int64_t channels;
    std::int64_t positions;
};

//! The kernels inside this library, or those of the file that the environment variable WNLB_KERNELS names.
class KernelTable
{
public:
    //! The table of this process; null where it cannot be read, and `error` says why.
    static KernelTable const* get(std::string& error) noexcept;

    //! The architecture whose kernels a device runs: its own, kPortable where it has none. False where there are neither.
    bool source(int architecture, std::uint32_t& found) const noexcept;

    //! Numbers of the tactics for a problem on an architecture, each of which can run it. Empty: `error` says why.
    std::vector<std::int32_t> tactics(Problem const& problem, int architecture, std::string& error) const;

    //! The kernel of one tactic for this very problem; null where there is none.
    Kernel const* find(Problem const& problem, int architecture, std::int32_t tactic) const noexcept;

    unsigned char const* code(Kernel const& kernel) const noexcept
    {
        return mData + kernel.offset;
    }

    std::vector<Kernel> const& kernels() const noexcept
    {
        return mKernels;
    }

private:
    bool read(unsigned char const* data, std::size_t size, std::string& error);
    static bool fits(Kernel const& kernel, Problem const& problem, std::uint32_t source) noexcept;

    std::vector<Kernel> mKernels;
    std::vector<unsigned char> mFile;
    unsigned char const* mData{nullptr};
};

//! A kernel that is loaded on the current device; unloaded with the last reference.
class LoadedKernel
{
public:
    //! Null where loading fails, and `error` says why.
    static std::shared_ptr<LoadedKernel> load(KernelTable const& table, Kernel const& kernel, std::string& error);

    LoadedKernel(LoadedKernel const&) = delete;
    LoadedKernel& operator=(LoadedKernel const&) = delete;
    ~LoadedKernel();

    Kernel const& kernel() const noexcept
    {
        return mKernel;
    }

    //! Launch on a stream; allocates nothing.
    CUresult launch(Problem const& problem, void const* query, void const* key, void const* value, void* output,
        CUstream stream) const noexcept;

private:
    explicit LoadedKernel(Kernel const& kernel)
        : mKernel(kernel)
    {
    }

    Kernel mKernel;
    CUmodule mModule{nullptr};
    CUfunction mFunction{nullptr};
};

} // namespace wnlb
