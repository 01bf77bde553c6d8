#include "plugin.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>

namespace wnlb
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr std::int32_t kOk = 0;
constexpr std::int32_t kFailed = -1;
constexpr std::int32_t kInputs = 3;
constexpr char const* kKernelsField = "kernels";

std::atomic<nvinfer1::ILoggerFinder*> gLoggerFinder{nullptr};

void report(std::string const& message) noexcept
{
    nvinfer1::ILoggerFinder* const finder = gLoggerFinder.load();
    // Asked anew each time: it gives the logger of the engine that called, which may be gone later.
    if (nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    }
    else
    {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
}

std::int32_t fail(std::string const& reason) noexcept
{
    try
    {
        report(std::string{kPluginName} + ": " + reason);
    }
    catch (...)
    {
        report(kPluginName);
    }
    return kFailed;
}

//! Runs `action`; an exception becomes a message and `failed`, for none may cross TensorRT's interface.
template <typename Result, typename Action>
Result guarded(Result failed, Action&& action) noexcept
{
    try
    {
        return action();
    }
    catch (std::exception const& error)
    {
        static_cast<void>(fail(error.what()));
    }
    catch (...)
    {
        static_cast<void>(fail("unknown exception"));
    }
    return failed;
}

bool kernelType(DataType type, Type& found) noexcept
{
    switch (type)
    {
    case DataType::kHALF: found = Type::kFLOAT16; return true;
    case DataType::kBF16: found = Type::kBFLOAT16; return true;
    case DataType::kFLOAT: found = Type::kFLOAT32; return true;
    default: return false;
    }
}

std::string text(Dims const& dims)
{
    std::string shape = "[";
    for (std::int32_t i = 0; i < dims.nbDims; ++i)
    {
        shape += (i > 0 ? ", " : "") + std::to_string(dims.d[i]);
    }
    return shape + "]";
}

//! The problem that three input shapes make. False where they do not fit together, and `error` says why.
bool makeProblem(Dims const& query, Dims const& key, Dims const& value, DataType type, Problem& problem,
    std::string& error)
{
    bool const shaped = query.nbDims == 3 && key.nbDims == 3 && value.nbDims == 3;
    bool const same = shaped && std::equal(query.d, query.d + 3, key.d) && query.d[0] == value.d[0]
        && query.d[2] == value.d[2];
    if (!same)
    {
        error = "query is " + text(query) + ", key " + text(key) + ", value " + text(value)
            + "; expected [B, d, N], [B, d, N] and [B, e, N]";
        return false;
    }
    if (query.d[1] < 1 || value.d[1] < 1)
    {
        error = "query is " + text(query) + " and value " + text(value) + "; expected known numbers of channels";
        return false;
    }
    if (!kernelType(type, problem.type))
    {
        error = "type " + std::to_string(static_cast<std::int32_t>(type)) + "; expected FP16, BF16 or FP32";
        return false;
    }
    problem.batch = query.d[0];
    problem.head = query.d[1];
    problem.channels = value.d[1];
    problem.positions = query.d[2];
    if (problem.positions > 0 && std::max(problem.head, problem.channels) * problem.positions > INT32_MAX)
    {
        error = "query is " + text(query) + "; expected d * N below 2^31";
        return false;
    }
    return true;
}

//! 16 hexadecimal digits that identify the kernels in this library (FNV-1a, 64 bit); empty where there are none.
std::string const& kernelsId()
{
    static std::string const id = [] {
        std::string error;
        KernelTable const* table = KernelTable::get(error);
        if (table == nullptr)
        {
            return std::string{};
        }
        std::uint64_t hash = 14695981039346656037ULL;
        for (Kernel const& kernel : table->kernels())
        {
            auto const* record = reinterpret_cast<unsigned char const*>(&kernel);
            for (std::size_t i = 0; i < sizeof(kernel); ++i)
            {
                hash = (hash ^ record[i]) * 1099511628211ULL;
            }
        }
        char digits[17];
        std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(hash));
        return std::string{digits};
    }();
    return id;
}

} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gLoggerFinder.store(finder);
}

// The plugin

NonLocalAttention::NonLocalAttention()
{
    std::string const& id = kernelsId();
    mFields.emplace_back(
        kKernelsField, id.data(), nvinfer1::PluginFieldType::kCHAR, static_cast<std::int32_t>(id.size()));
    mCollection.nbFields = static_cast<std::int32_t>(mFields.size());
    mCollection.fields = mFields.data();
}

NonLocalAttention::NonLocalAttention(NonLocalAttention const& other)
    : NonLocalAttention()
{
    mTactics = other.mTactics;
    mTactic = other.mTactic;
    mProblem = other.mProblem;
    mLoaded = other.mLoaded;
}

nvinfer1::IPluginCapability* NonLocalAttention::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* NonLocalAttention::clone() noexcept
{
    return guarded<nvinfer1::IPluginV3*>(nullptr, [this] { return new NonLocalAttention{*this}; });
}

nvinfer1::AsciiChar const* NonLocalAttention::getPluginName() const noexcept
{
    return kPluginName;
}

nvinfer1::AsciiChar const* NonLocalAttention::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

nvinfer1::AsciiChar const* NonLocalAttention::getPluginNamespace() const noexcept
{
    return kPluginNamespace;
}

std::int32_t NonLocalAttention::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
    nvinfer1::DynamicPluginTensorDesc const*, std::int32_t outputs) noexcept
{
    return guarded(kFailed, [&] {
        if (inputs != kInputs || outputs != 1)
        {
            return fail(std::to_string(inputs) + " inputs and " + std::to_string(outputs)
                + " outputs; expected query, key, value and one output");
        }
        std::string error;
        Problem problem{};
        // N may be unknown (-1): the largest of the optimisation profile counts.
        if (!makeProblem(in[0].max, in[1].max, in[2].max, in[0].desc.type, problem, error))
        {
            return fail(error);
        }
        int const architecture = deviceArchitecture(error);
        KernelTable const* table = architecture > 0 ? KernelTable::get(error) : nullptr;
        mTactics = table != nullptr ? table->tactics(problem, architecture, error) : std::vector<std::int32_t>{};
        return mTactics.empty() ? fail(error) : kOk;
    });
}

std::int32_t NonLocalAttention::getOutputDataTypes(DataType* outputTypes, std::int32_t outputs,
    DataType const* inputTypes, std::int32_t inputs) const noexcept
{
    if (inputs != kInputs || outputs != 1)
    {
        return fail("expected three inputs and one output");
    }
    outputTypes[0] = inputTypes[2];
    return kOk;
}

std::int32_t NonLocalAttention::getOutputShapes(nvinfer1::DimsExprs const* in, std::int32_t inputs,
    nvinfer1::DimsExprs const*, std::int32_t, nvinfer1::DimsExprs* out, std::int32_t outputs,
    nvinfer1::IExprBuilder&) noexcept
{
    if (inputs != kInputs || outputs != 1 || in[2].nbDims != 3)
    {
        return fail("expected three inputs of three dimensions and one output");
    }
    out[0] = in[2];
    return kOk;
}

bool NonLocalAttention::supportsFormatCombination(std::int32_t position,
    nvinfer1::DynamicPluginTensorDesc const* tensors, std::int32_t inputs, std::int32_t outputs) noexcept
{
    if (inputs != kInputs || outputs != 1 || position < 0 || position >= inputs + outputs)
    {
        return false;
    }
    Type ignored{};
    nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && kernelType(tensor.type, ignored)
        && tensor.type == tensors[0].desc.type;
}

std::int32_t NonLocalAttention::getNbOutputs() const noexcept
{
    return 1;
}

std::int32_t NonLocalAttention::getNbTactics() noexcept
{
    return static_cast<std::int32_t>(mTactics.size());
}

std::int32_t NonLocalAttention::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept
{
    if (count != getNbTactics())
    {
        return fail("room for " + std::to_string(count) + " tactics; expected " + std::to_string(mTactics.size()));
    }
    std::copy(mTactics.begin(), mTactics.end(), tactics);
    return kOk;
}

char const* NonLocalAttention::getTimingCacheID() noexcept
{
    return kernelsId().c_str();
}

std::int32_t NonLocalAttention::setTactic(std::int32_t tactic) noexcept
{
    if (tactic < 0)
    {
        return fail("tactic " + std::to_string(tactic) + "; expected 0 or more");
    }
    if (tactic != mTactic)
    {
        mTactic = tactic;
        mLoaded.reset();
    }
    return kOk;
}

std::int32_t NonLocalAttention::onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
    nvinfer1::PluginTensorDesc const*, std::int32_t outputs) noexcept
{
    return guarded(kFailed, [&] {
        std::string error;
        Problem problem{};
        if (inputs != kInputs || outputs != 1)
        {
            return fail("expected three inputs and one output");
        }
        if (!makeProblem(in[0].dims, in[1].dims, in[2].dims, in[0].type, problem, error))
        {
            return fail(error);
        }
        int const architecture = deviceArchitecture(error);
        KernelTable const* table = architecture > 0 ? KernelTable::get(error) : nullptr;
        if (table == nullptr)
        {
            return fail(error);
        }
        std::vector<std::int32_t> const tactics = table->tactics(problem, architecture, error);
        if (tactics.empty())
        {
            return fail(error);
        }
        std::int32_t const tactic = mTactic > 0 ? mTactic : tactics.front();
        Kernel const* kernel = table->find(problem, architecture, tactic);
        if (kernel == nullptr)
        {
            return fail("no kernel for tactic " + std::to_string(tactic) + "; build the engine again");
        }
        if (mLoaded == nullptr || mLoaded->kernel().offset != kernel->offset)
        {
            mLoaded = LoadedKernel::load(*table, *kernel, error);
        }
        mProblem = problem;
        return mLoaded != nullptr ? kOk : fail(error);
    });
}

std::int32_t NonLocalAttention::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept
{
    if (mLoaded == nullptr)
    {
        return fail("enqueue before onShapeChange");
    }
    if (mProblem.batch == 0 || mProblem.positions == 0)
    {
        return kOk;
    }
    auto const addresses = reinterpret_cast<std::uintptr_t>(inputs[0]) | reinterpret_cast<std::uintptr_t>(inputs[1])
        | reinterpret_cast<std::uintptr_t>(inputs[2]) | reinterpret_cast<std::uintptr_t>(outputs[0]);
    if (addresses % 16 != 0)
    {
        return fail("a tensor does not start at a multiple of 16 bytes");
    }
    CUresult const result = mLoaded->launch(mProblem, inputs[0], inputs[1], inputs[2], outputs[0], stream);
    return result == CUDA_SUCCESS ? kOk : fail(describe("cuLaunchKernel", result));
}

nvinfer1::IPluginV3* NonLocalAttention::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return clone();
}

nvinfer1::PluginFieldCollection const* NonLocalAttention::getFieldsToSerialize() noexcept
{
    return &mCollection;
}

// The creator

NonLocalAttentionCreator::NonLocalAttentionCreator()
    : mField{kKernelsField, nullptr, nvinfer1::PluginFieldType::kCHAR, 0}
{
    mCollection.nbFields = 1;
    mCollection.fields = &mField;
}

nvinfer1::IPluginV3* NonLocalAttentionCreator::createPlugin(nvinfer1::AsciiChar const*,
    nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) noexcept
{
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&]() -> nvinfer1::IPluginV3* {
        std::string error;
        if (KernelTable::get(error) == nullptr)
        {
            static_cast<void>(fail(error));
            return nullptr;
        }
        std::int32_t const count = fields != nullptr ? fields->nbFields : 0;
        for (std::int32_t i = 0; i < count; ++i)
        {
            nvinfer1::PluginField const& field = fields->fields[i];
            if (phase != nvinfer1::TensorRTPhase::kRUNTIME || std::strcmp(field.name, kKernelsField) != 0)
            {
                continue;
            }
            std::string const stored{static_cast<char const*>(field.data), static_cast<std::size_t>(field.length)};
            if (stored != kernelsId())
            {
                static_cast<void>(fail("the engine was built with kernels " + stored + ", this library has "
                    + kernelsId() + "; build the engine again"));
                return nullptr;
            }
        }
        return new NonLocalAttention;
    });
}

nvinfer1::PluginFieldCollection const* NonLocalAttentionCreator::getFieldNames() noexcept
{
    return &mCollection;
}

nvinfer1::AsciiChar const* NonLocalAttentionCreator::getPluginName() const noexcept
{
    return kPluginName;
}

nvinfer1::AsciiChar const* NonLocalAttentionCreator::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

nvinfer1::AsciiChar const* NonLocalAttentionCreator::getPluginNamespace() const noexcept
{
    return kPluginNamespace;
}

} // namespace wnlb
