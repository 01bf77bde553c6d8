#include "driver.h"

#include <dlfcn.h>

#include <mutex>

namespace wnlb
{
namespace
{

struct Loaded
{
    Driver functions{};
    bool ready{false};
    std::string error;
};

template <typename Function>
bool find(void* library, char const* name, Function& function, std::string& error)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
    {
        error = std::string{"the CUDA driver has no "} + name + "; install a newer driver";
    }
    return function != nullptr;
}

Loaded load()
{
    Loaded loaded;
    // Never closed: kernels may run until the process ends.
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        loaded.error = "the CUDA driver (libcuda.so.1) is not on this machine";
        return loaded;
    }
    Driver& f = loaded.functions;
    std::string& e = loaded.error;
    loaded.ready = find(library, "cuInit", f.init, e) && find(library, "cuGetErrorString", f.getErrorString, e)
        && find(library, "cuDeviceGet", f.deviceGet, e)
        && find(library, "cuDeviceGetAttribute", f.deviceGetAttribute, e)
        && find(library, "cuCtxGetCurrent", f.ctxGetCurrent, e) && find(library, "cuCtxGetDevice", f.ctxGetDevice, e)
        && find(library, "cuModuleLoadData", f.moduleLoadData, e)
        && find(library, "cuModuleUnload", f.moduleUnload, e)
        && find(library, "cuModuleGetFunction", f.moduleGetFunction, e)
        && find(library, "cuFuncSetAttribute", f.funcSetAttribute, e)
        && find(library, "cuLaunchKernel", f.launchKernel, e);
    if (loaded.ready)
    {
        CUresult const result = f.init(0);
        if (result != CUDA_SUCCESS)
        {
            loaded.ready = false;
            char const* text = nullptr;
            f.getErrorString(result, &text);
            e = std::string{"cuInit: "} + (text != nullptr ? text : "unknown error");
        }
    }
    return loaded;
}

Loaded const& loaded()
{
    static Loaded const instance = load();
    return instance;
}

} // namespace

Driver const* driver(std::string& error) noexcept
{
    try
    {
        Loaded const& found = loaded();
        if (!found.ready)
        {
            error = found.error;
            return nullptr;
        }
        return &found.functions;
    }
    catch (...)
    {
        return nullptr;
    }
}

int deviceArchitecture(std::string& error) noexcept
{
    Driver const* cuda = driver(error);
    if (cuda == nullptr)
    {
        return 0;
    }
    CUcontext context = nullptr;
    CUdevice device = 0;
    char const* call = "cuCtxGetCurrent";
    CUresult result = cuda->ctxGetCurrent(&context);
    if (result == CUDA_SUCCESS)
    {
        call = context != nullptr ? "cuCtxGetDevice" : "cuDeviceGet";
        result = context != nullptr ? cuda->ctxGetDevice(&device) : cuda->deviceGet(&device, 0);
    }
    int major = 0;
    int minor = 0;
    if (result == CUDA_SUCCESS)
    {
        call = "cuDeviceGetAttribute";
        result = cuda->deviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    }
    if (result == CUDA_SUCCESS)
    {
        result = cuda->deviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    }
    if (result != CUDA_SUCCESS)
    {
        error = describe(call, result);
        return 0;
    }
    return 10 * major + minor;
}

std::string describe(char const* call, CUresult result)
{
    std::string ignored;
    char const* text = nullptr;
    if (Driver const* cuda = driver(ignored))
    {
        cuda->getErrorString(result, &text);
    }
    return std::string{call} + ": " + (text != nullptr ? text : "error " + std::to_string(result));
}

} // namespace wnlb
