// A CUDA driver in host memory that runs one kernel: attention in double precision, of the cut that the "machine code" names.
//
// The code is text: "head value block_m threads shared". A launch is refused where grid, threads, shared memory or stream
// are not those that the cut asks for; it fills only the rows and channels of its own grid.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

struct Cut
{
    int head, value, blockM, threads, shared, allowed;
};

extern "C"
{

int cuGetErrorString(int, char const** text)
{
    *text = "planted refusal";
    return 0;
}

int cuModuleLoadData(void** module, void const* code)
{
    Cut cut{};
    if (std::sscanf(static_cast<char const*>(code), "%d %d %d %d %d", &cut.head, &cut.value, &cut.blockM, &cut.threads,
            &cut.shared) != 5)
    {
        return 200; // CUDA_ERROR_INVALID_IMAGE
    }
    *module = new Cut{cut};
    return 0;
}

int cuModuleGetFunction(void** function, void* module, char const* name)
{
    *function = module;
    return std::string_view{name} == "non_local_attention_kernel" ? 0 : 500; // CUDA_ERROR_NOT_FOUND
}

int cuFuncSetAttribute(void* function, int attribute, int value)
{
    static_cast<Cut*>(function)->allowed = value;
    return attribute == 8 ? 0 : 1;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
    unsigned shared, void* stream, void** parameters, void** extra)
{
    Cut const& cut = *static_cast<Cut*>(function);
    auto const pointer = [&](int i) { return *static_cast<float**>(parameters[i]); };
    float const *query = pointer(0), *key = pointer(1), *value = pointer(2);
    float* output = pointer(3);
    auto const n = static_cast<std::int64_t>(*static_cast<std::int32_t*>(parameters[4]));
    void const* scratch = *static_cast<void**>(parameters[5]);
    bool const fits = static_cast<int>(threads) == cut.threads && ty == 1 && tz == 1 && static_cast<int>(shared) == cut.shared
        && cut.allowed == cut.shared && stream == nullptr && extra == nullptr && scratch == nullptr;
    if (!fits)
    {
        return 1;
    }
    for (std::int64_t image = 0; image < z; ++image)
    {
        for (std::int64_t i = 0; i < std::min<std::int64_t>(static_cast<std::int64_t>(x) * cut.blockM, n); ++i)
        {
            std::vector<double> weight(static_cast<std::size_t>(n));
            double peak = -INFINITY, total = 0;
            for (std::int64_t j = 0; j < n; ++j)
            {
                double& w = weight[static_cast<std::size_t>(j)];
                for (int c = 0; c < cut.head; ++c)
                {
                    w += static_cast<double>(query[(image * cut.head + c) * n + i]) * key[(image * cut.head + c) * n + j];
                }
                peak = std::max(peak, w);
            }
            for (double& w : weight)
            {
                w = std::exp(w - peak);
                total += w;
            }
            std::int64_t const channels = static_cast<std::int64_t>(y) * cut.value;
            for (std::int64_t c = 0; c < channels; ++c)
            {
                double sum = 0;
                for (std::int64_t j = 0; j < n; ++j)
                {
                    sum += weight[static_cast<std::size_t>(j)] * value[(image * channels + c) * n + j];
                }
                output[(image * channels + c) * n + i] = static_cast<float>(sum / total);
            }
        }
    }
    return 0;
}

} // extern "C"
