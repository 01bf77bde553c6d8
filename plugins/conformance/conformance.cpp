// Drives WnlbNonLocalAttention in the order in which TensorRT does: creator, shapes, types, formats, configuration,
// tactics, serialisation, creation for run time, tactic, attachment, shapes, enqueue. Needs TensorRT's headers, not TensorRT.
// Without a GPU it checks everything up to what needs one, and that the refusal says why. With one it checks the numbers
// against float64 for every tactic, a changed shape, and a captured graph.
//
//   wnlb_conformance libwnlb_plugins.so            every head size and type
//   wnlb_conformance libwnlb_plugins.so --small    two small shapes in FP16: under compute-sanitizer the rest takes hours
#include <NvInferRuntime.h>

#include <cuda.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace
{

int gFailures = 0;
int gChecks = 0;

void check(bool held, char const* what)
{
    ++gChecks;
    if (!held)
    {
        ++gFailures;
        std::printf("FAILED: %s\n", what);
    }
}
#define CHECK(condition) check((condition), #condition)

class Log final : public ILogger
{
public:
    void log(Severity severity, AsciiChar const* text) noexcept override
    {
        last = text;
        errors += severity <= Severity::kERROR ? 1 : 0;
    }
    std::string last;
    int errors{0};
};

class Finder final : public ILoggerFinder
{
public:
    explicit Finder(ILogger& logger)
        : current(&logger)
    {
    }
    ILogger* findLogger() override
    {
        return current;
    }
    ILogger* current; //!< of the engine that calls, as TensorRT has it
};

template <typename Function>
Function symbol(void* library, char const* name)
{
    auto function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
    {
        std::printf("FAILED: %s is not exported\n", name);
        std::exit(1);
    }
    return function;
}

struct Shape
{
    std::int64_t batch, head, channels, positions;
};

Dims dims(std::int64_t a, std::int64_t b, std::int64_t c)
{
    Dims made{};
    made.nbDims = 3;
    made.d[0] = static_cast<decltype(made.d[0] + 0)>(a);
    made.d[1] = static_cast<decltype(made.d[0] + 0)>(b);
    made.d[2] = static_cast<decltype(made.d[0] + 0)>(c);
    return made;
}

PluginTensorDesc tensor(Dims const& shape, DataType type, TensorFormat format = TensorFormat::kLINEAR)
{
    PluginTensorDesc made{};
    made.dims = shape;
    made.type = type;
    made.format = format;
    made.scale = 1.0F;
    return made;
}

//! Query, key, value and output.
std::vector<PluginTensorDesc> tensors(Shape const& s, DataType type)
{
    Dims const query = dims(s.batch, s.head, s.positions);
    Dims const value = dims(s.batch, s.channels, s.positions);
    return {tensor(query, type), tensor(query, type), tensor(value, type), tensor(value, type)};
}

std::vector<DynamicPluginTensorDesc> dynamic(std::vector<PluginTensorDesc> const& fixed)
{
    std::vector<DynamicPluginTensorDesc> made;
    for (PluginTensorDesc const& desc : fixed)
    {
        DynamicPluginTensorDesc entry{};
        entry.desc = desc;
        entry.desc.dims.d[2] = -1; // N is not known
        entry.min = desc.dims;
        entry.min.d[2] = 1;
        entry.opt = desc.dims;
        entry.max = desc.dims;
        made.push_back(entry);
    }
    return made;
}

template <typename Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

// The GPU, through the driver alone

struct Gpu
{
    void* library{dlopen("libcuda.so.1", RTLD_NOW)};
    CUcontext context{nullptr};
    CUdevice device{0};
    CUstream stream{nullptr};
    bool ready{false};

    template <typename... Parameters, typename... Arguments>
    void call(char const* name, CUresult (*)(Parameters...), Arguments... arguments) const
    {
        auto function = symbol<CUresult (*)(Parameters...)>(library, name);
        CUresult const result = function(arguments...);
        if (result != CUDA_SUCCESS)
        {
            std::printf("FAILED: %s gave %d\n", name, static_cast<int>(result));
            std::exit(1);
        }
    }

    Gpu()
    {
        if (library == nullptr || symbol<CUresult (*)(unsigned)>(library, "cuInit")(0) != CUDA_SUCCESS)
        {
            return;
        }
        call("cuDeviceGet", &cuDeviceGet, &device, 0);
        call("cuDevicePrimaryCtxRetain", &cuDevicePrimaryCtxRetain, &context, device);
        call("cuCtxSetCurrent", &cuCtxSetCurrent, context);
        call("cuStreamCreate", &cuStreamCreate, &stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
        ready = true;
    }

    CUdeviceptr allocate(std::size_t bytes) const
    {
        CUdeviceptr address = 0;
        call("cuMemAlloc_v2", &cuMemAlloc, &address, bytes);
        return address;
    }
};

// Numbers

float rounded(float value, DataType type)
{
    if (type == DataType::kHALF)
    {
        return static_cast<float>(static_cast<_Float16>(value));
    }
    if (type == DataType::kBF16)
    {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, 4);
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000U;
        std::memcpy(&value, &bits, 4);
    }
    return value;
}

std::vector<unsigned char> packed(std::vector<float> const& values, DataType type)
{
    std::size_t const item = type == DataType::kFLOAT ? 4 : 2;
    std::vector<unsigned char> bytes(values.size() * item);
    for (std::size_t i = 0; i < values.size(); ++i)
    {
        if (type == DataType::kHALF)
        {
            auto const half = static_cast<_Float16>(values[i]);
            std::memcpy(&bytes[i * item], &half, item);
        }
        else
        {
            float const value = rounded(values[i], type);
            std::memcpy(&bytes[i * item], reinterpret_cast<unsigned char const*>(&value) + (4 - item), item);
        }
    }
    return bytes;
}

std::vector<float> unpacked(std::vector<unsigned char> const& bytes, DataType type)
{
    std::size_t const item = type == DataType::kFLOAT ? 4 : 2;
    std::vector<float> values(bytes.size() / item);
    for (std::size_t i = 0; i < values.size(); ++i)
    {
        if (type == DataType::kHALF)
        {
            _Float16 half{};
            std::memcpy(&half, &bytes[i * item], item);
            values[i] = static_cast<float>(half);
        }
        else
        {
            std::memcpy(reinterpret_cast<unsigned char*>(&values[i]) + (4 - item), &bytes[i * item], item);
        }
    }
    return values;
}

std::vector<double> oracle(
    std::vector<float> const& query, std::vector<float> const& key, std::vector<float> const& value, Shape const& s)
{
    std::vector<double> output(static_cast<std::size_t>(s.batch * s.channels * s.positions));
    std::vector<double> weight(static_cast<std::size_t>(s.positions));
    auto const at = [&](std::int64_t image, std::int64_t channels, std::int64_t channel, std::int64_t position) {
        return static_cast<std::size_t>((image * channels + channel) * s.positions + position);
    };
    for (std::int64_t image = 0; image < s.batch; ++image)
    {
        for (std::int64_t i = 0; i < s.positions; ++i)
        {
            double peak = -INFINITY;
            for (std::int64_t j = 0; j < s.positions; ++j)
            {
                double sum = 0;
                for (std::int64_t c = 0; c < s.head; ++c)
                {
                    sum += static_cast<double>(query[at(image, s.head, c, i)]) * key[at(image, s.head, c, j)];
                }
                weight[static_cast<std::size_t>(j)] = sum;
                peak = std::max(peak, sum);
            }
            double total = 0;
            for (double& w : weight)
            {
                w = std::exp(w - peak);
                total += w;
            }
            for (std::int64_t c = 0; c < s.channels; ++c)
            {
                double sum = 0;
                for (std::int64_t j = 0; j < s.positions; ++j)
                {
                    sum += weight[static_cast<std::size_t>(j)] * value[at(image, s.channels, c, j)];
                }
                output[at(image, s.channels, c, i)] = sum / total;
            }
        }
    }
    return output;
}

struct Data
{
    std::vector<double> expected;
    CUdeviceptr query, key, value, output;
    std::size_t outputBytes;
};

Data makeData(Gpu const& gpu, Shape const& s, DataType type)
{
    std::mt19937 random{7};
    std::normal_distribution<float> normal;
    auto const draw = [&](std::int64_t channels, float scale) {
        std::vector<float> values(static_cast<std::size_t>(s.batch * channels * s.positions));
        for (float& value : values)
        {
            value = rounded(normal(random) * scale, type);
        }
        return values;
    };
    float const scale = 1.5F / std::sqrt(std::sqrt(static_cast<float>(s.head)));
    std::vector<float> const query = draw(s.head, scale), key = draw(s.head, scale), value = draw(s.channels, 1.0F);
    Data data{};
    data.expected = oracle(query, key, value, s);
    auto const upload = [&](std::vector<float> const& values) {
        std::vector<unsigned char> const bytes = packed(values, type);
        CUdeviceptr const address = gpu.allocate(bytes.size());
        gpu.call("cuMemcpyHtoD_v2", &cuMemcpyHtoD, address, static_cast<void const*>(bytes.data()), bytes.size());
        return address;
    };
    data.query = upload(query);
    data.key = upload(key);
    data.value = upload(value);
    data.outputBytes = data.expected.size() * (type == DataType::kFLOAT ? 4 : 2);
    data.output = gpu.allocate(data.outputBytes);
    return data;
}

//! Relative error of the whole output; poison where nothing was written shows as NaN.
double errorOf(Gpu const& gpu, Data const& data, DataType type)
{
    std::vector<unsigned char> bytes(data.outputBytes);
    gpu.call("cuMemcpyDtoH_v2", &cuMemcpyDtoH, static_cast<void*>(bytes.data()), data.output, bytes.size());
    std::vector<float> const got = unpacked(bytes, type);
    double wrong = 0;
    double norm = 0;
    for (std::size_t i = 0; i < got.size(); ++i)
    {
        wrong += (got[i] - data.expected[i]) * (got[i] - data.expected[i]);
        norm += data.expected[i] * data.expected[i];
    }
    return std::sqrt(wrong / norm);
}

void poison(Gpu const& gpu, Data const& data)
{
    gpu.call("cuMemsetD8_v2", &cuMemsetD8, data.output, static_cast<unsigned char>(0xFF), data.outputBytes);
    gpu.call("cuCtxSynchronize", &cuCtxSynchronize);
}

int enqueue(IPluginV3OneRuntime& runtime, Gpu const& gpu, Data const& data, std::vector<PluginTensorDesc> const& all)
{
    void const* inputs[] = {reinterpret_cast<void const*>(data.query), reinterpret_cast<void const*>(data.key),
        reinterpret_cast<void const*>(data.value)};
    void* outputs[] = {reinterpret_cast<void*>(data.output)};
    return runtime.enqueue(all.data(), all.data() + 3, inputs, outputs, nullptr, reinterpret_cast<cudaStream_t>(gpu.stream));
}

void release(Gpu const& gpu, Data const& data)
{
    for (CUdeviceptr address : {data.query, data.key, data.value, data.output})
    {
        gpu.call("cuMemFree_v2", &cuMemFree, address);
    }
}

void checkNumbers(IPluginV3* plugin, Gpu const& gpu, Shape const& s, DataType type, std::int32_t tactic)
{
    auto* runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    CHECK(runtime->setTactic(tactic) == 0);
    auto* attached = runtime->attachToContext(nullptr);
    CHECK(attached != nullptr);
    auto* context = capability<IPluginV3OneRuntime>(attached, PluginCapabilityType::kRUNTIME);
    double const allowed = type == DataType::kFLOAT ? 1e-5 : type == DataType::kHALF ? 2e-3 : 1.5e-2;
    for (std::int64_t positions : {s.positions, s.positions + 5, std::int64_t{1}}) // the shape changes
    {
        Shape const now{s.batch, s.head, s.channels, positions};
        std::vector<PluginTensorDesc> const all = tensors(now, type);
        CHECK(context->onShapeChange(all.data(), 3, all.data() + 3, 1) == 0);
        Data const data = makeData(gpu, now, type);
        poison(gpu, data);
        CHECK(enqueue(*context, gpu, data, all) == 0);
        gpu.call("cuStreamSynchronize", &cuStreamSynchronize, gpu.stream);
        double const error = errorOf(gpu, data, type);
        CHECK(error < allowed);
        std::printf("  d=%lld e=%lld N=%lld type=%d tactic %d: error %.1e\n", static_cast<long long>(now.head),
            static_cast<long long>(now.channels), static_cast<long long>(positions), static_cast<int>(type), tactic, error);

        CUgraph graph = nullptr; // the same through a captured graph
        CUgraphExec executable = nullptr;
        poison(gpu, data);
        gpu.call("cuStreamBeginCapture_v2", &cuStreamBeginCapture, gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
        CHECK(enqueue(*context, gpu, data, all) == 0);
        gpu.call("cuStreamEndCapture", &cuStreamEndCapture, gpu.stream, &graph);
        gpu.call("cuGraphInstantiateWithFlags", &cuGraphInstantiateWithFlags, &executable, graph, 0ULL);
        gpu.call("cuGraphLaunch", &cuGraphLaunch, executable, gpu.stream);
        gpu.call("cuStreamSynchronize", &cuStreamSynchronize, gpu.stream);
        CHECK(errorOf(gpu, data, type) < allowed);
        gpu.call("cuGraphExecDestroy", &cuGraphExecDestroy, executable);
        gpu.call("cuGraphDestroy", &cuGraphDestroy, graph);
        release(gpu, data);
    }
    delete attached;
}

void checkShapesAndFormats(IPluginV3OneBuild* build)
{
    CHECK(build->getNbOutputs() == 1);
    DataType const inputTypes[] = {DataType::kHALF, DataType::kHALF, DataType::kHALF};
    DataType outputType = DataType::kFLOAT;
    CHECK(build->getOutputDataTypes(&outputType, 1, inputTypes, 3) == 0);
    CHECK(outputType == DataType::kHALF);
    CHECK(build->getOutputDataTypes(&outputType, 1, inputTypes, 2) != 0);

    int marks[3] = {}; // stand for expressions, which the plugin hands on and does not look into
    DimsExprs query{};
    query.nbDims = 3;
    for (int i = 0; i < 3; ++i)
    {
        query.d[i] = reinterpret_cast<IDimensionExpr const*>(&marks[i]);
    }
    DimsExprs value = query;
    value.d[1] = reinterpret_cast<IDimensionExpr const*>(&gChecks);
    DimsExprs const inputs[] = {query, query, value};
    DimsExprs output{};
    alignas(IExprBuilder) static unsigned char unused[sizeof(IExprBuilder)];
    auto& builder = reinterpret_cast<IExprBuilder&>(unused);
    CHECK(build->getOutputShapes(inputs, 3, nullptr, 0, &output, 1, builder) == 0);
    CHECK(output.nbDims == 3 && std::memcmp(output.d, value.d, 3 * sizeof(output.d[0])) == 0);
    CHECK(build->getOutputShapes(inputs, 2, nullptr, 0, &output, 1, builder) != 0);

    for (DataType type : {DataType::kHALF, DataType::kBF16, DataType::kFLOAT})
    {
        std::vector<DynamicPluginTensorDesc> all = dynamic(tensors({1, 64, 64, 100}, type));
        for (std::int32_t position = 0; position < 4; ++position)
        {
            CHECK(build->supportsFormatCombination(position, all.data(), 3, 1));
        }
        all[2].desc.format = TensorFormat::kCHW2;
        CHECK(!build->supportsFormatCombination(2, all.data(), 3, 1));
        all[3].desc.type = type == DataType::kFLOAT ? DataType::kHALF : DataType::kFLOAT;
        CHECK(!build->supportsFormatCombination(3, all.data(), 3, 1)); // one type for all
        all[0].desc.type = DataType::kINT32;
        CHECK(!build->supportsFormatCombination(0, all.data(), 3, 1));
        CHECK(!build->supportsFormatCombination(4, all.data(), 3, 1));
    }
}

void checkBadShapes(IPluginV3OneBuild* build, Log& log)
{
    std::vector<PluginTensorDesc> wrong = tensors({1, 64, 64, 100}, DataType::kHALF);
    wrong[1].dims.d[1] = 32;
    std::vector<DynamicPluginTensorDesc> all = dynamic(wrong);
    int const before = log.errors;
    CHECK(build->configurePlugin(all.data(), 3, all.data() + 3, 1) != 0);
    CHECK(log.errors == before + 1);
    CHECK(log.last.find("query is [1, 64, 100], key [1, 32, 100]") != std::string::npos);
    CHECK(build->configurePlugin(all.data(), 2, all.data() + 3, 1) != 0);
    all = dynamic(tensors({1, 1024, 1024, 2200000}, DataType::kHALF));
    CHECK(build->configurePlugin(all.data(), 3, all.data() + 3, 1) != 0);
    CHECK(log.last.find("below 2^31") != std::string::npos);
}

} // namespace

int main(int argc, char** argv)
{
    bool const small = argc == 3 && std::string{argv[2]} == "--small";
    if (argc != 2 && !small)
    {
        std::printf("usage: %s libwnlb_plugins.so [--small]\n", argv[0]);
        return 2;
    }
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        std::printf("FAILED: %s\n", dlerror());
        return 1;
    }
    Log log;
    Finder finder{log};
    symbol<void (*)(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
    std::int32_t count = 0;
    using Creators = IPluginCreatorInterface* const* (*) (std::int32_t&);
    IPluginCreatorInterface* const* creators = symbol<Creators>(library, "getCreators")(count);
    CHECK(count == 1);
    CHECK(std::string{creators[0]->getInterfaceInfo().kind} == "PLUGIN CREATOR_V3ONE");
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[0]);
    CHECK(std::string{creator->getPluginName()} == "WnlbNonLocalAttention");
    CHECK(std::string{creator->getPluginVersion()} == "1");
    CHECK(std::string{creator->getPluginNamespace()} == "wnlb");
    CHECK(creator->getFieldNames() != nullptr);
    CHECK(symbol<std::int32_t (*)()>(library, "wnlbTensorRtVersion")()
        == NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH);
    std::int32_t const kernels = symbol<std::int32_t (*)(std::int32_t)>(library, "wnlbKernelCount")(0);
    CHECK(kernels > 0);

    PluginFieldCollection const none{0, nullptr};
    std::unique_ptr<IPluginV3> plugin{creator->createPlugin("attention", &none, TensorRTPhase::kBUILD)};
    CHECK(plugin != nullptr);
    if (plugin == nullptr)
    {
        return 1;
    }
    auto* core = capability<IPluginV3OneCore>(plugin.get(), PluginCapabilityType::kCORE);
    auto* build = capability<IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
    CHECK(core != nullptr && build != nullptr);
    CHECK(std::string{core->getPluginName()} == "WnlbNonLocalAttention");
    CHECK(std::string{core->getPluginNamespace()} == "wnlb");
    checkShapesAndFormats(build);
    checkBadShapes(build, log);
    Log later;
    finder.current = &later;
    checkBadShapes(build, later);
    finder.current = &log;

    // Serialised and made again, as when an engine is loaded.
    auto* runtime = capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
    PluginFieldCollection const* fields = runtime->getFieldsToSerialize();
    CHECK(fields != nullptr && fields->nbFields == 1 && fields->fields[0].length == 16);
    std::unique_ptr<IPluginV3> again{creator->createPlugin("attention", fields, TensorRTPhase::kRUNTIME)};
    CHECK(again != nullptr);
    std::string const foreign = "0123456789abcdef";
    PluginField const field{"kernels", foreign.data(), PluginFieldType::kCHAR, 16};
    PluginFieldCollection const other{1, &field};
    CHECK(creator->createPlugin("attention", &other, TensorRTPhase::kRUNTIME) == nullptr);
    CHECK(log.last.find("build the engine again") != std::string::npos);
    std::unique_ptr<IPluginV3> copy{plugin->clone()};
    CHECK(copy != nullptr && copy.get() != plugin.get());
    CHECK(build->getWorkspaceSize(nullptr, 0, nullptr, 0) == 0);
    CHECK(build->getTimingCacheID() != nullptr && std::strlen(build->getTimingCacheID()) == 16);
    CHECK(runtime->setTactic(-1) != 0);
    CHECK(runtime->enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) != 0); // no shape yet

    Gpu const gpu;
    std::vector<DynamicPluginTensorDesc> const all = dynamic(tensors({2, 64, 64, 96}, DataType::kHALF));
    if (!gpu.ready)
    {
        CHECK(build->configurePlugin(all.data(), 3, all.data() + 3, 1) != 0);
        CHECK(log.last.find("CUDA driver") != std::string::npos || log.last.find("cuInit") != std::string::npos);
        std::printf("%d checks, %d failed; %d kernels; no GPU: nothing was launched (%s)\n", gChecks, gFailures, kernels,
            log.last.c_str());
        return gFailures == 0 ? 0 : 1;
    }
    std::vector<Shape> shapes{{2, 32, 32, 96}, {1, 128, 64, 80}};
    std::vector<DataType> types{DataType::kHALF};
    if (!small)
    {
        shapes.insert(shapes.end(), {{2, 64, 64, 96}, {1, 256, 256, 80}, {1, 512, 512, 64}, {1, 1024, 1024, 48}});
        types.insert(types.end(), {DataType::kBF16, DataType::kFLOAT});
    }
    for (DataType type : types)
    {
        for (Shape const& shape : shapes)
        {
            std::vector<DynamicPluginTensorDesc> const descs = dynamic(tensors(shape, type));
            CHECK(build->configurePlugin(descs.data(), 3, descs.data() + 3, 1) == 0);
            std::vector<std::int32_t> tactics(static_cast<std::size_t>(build->getNbTactics()));
            CHECK(!tactics.empty());
            CHECK(build->getValidTactics(tactics.data(), static_cast<std::int32_t>(tactics.size())) == 0);
            for (std::int32_t tactic : tactics)
            {
                checkNumbers(again.get(), gpu, shape, type, tactic);
            }
        }
    }
    std::printf("%d checks, %d failed; %d kernels\n", gChecks, gFailures, kernels);
    return gFailures == 0 ? 0 : 1;
}
