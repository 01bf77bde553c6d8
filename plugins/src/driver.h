// The few functions of the CUDA driver that the plugin needs, found at run time: the library links against neither
// the driver nor TensorRT, and loads on a machine that has no GPU.
#pragma once

#include <cuda.h>

#include <string>

namespace wnlb
{

struct Driver
{
    CUresult (*init)(unsigned);
    CUresult (*getErrorString)(CUresult, char const**);
    CUresult (*deviceGet)(CUdevice*, int);
    CUresult (*deviceGetAttribute)(int*, CUdevice_attribute, CUdevice);
    CUresult (*ctxGetCurrent)(CUcontext*);
    CUresult (*ctxGetDevice)(CUdevice*);
    CUresult (*moduleLoadData)(CUmodule*, void const*);
    CUresult (*moduleUnload)(CUmodule);
    CUresult (*moduleGetFunction)(CUfunction*, CUmodule, char const*);
    CUresult (*funcSetAttribute)(CUfunction, CUfunction_attribute, int);
    CUresult (*launchKernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
        void**, void**);
};

//! The driver, loaded and initialised at the first call; null where there is none, and `error` says why.
Driver const* driver(std::string& error) noexcept;

//! 10 * major + minor of the device of the current context (of device 0 where there is no context); 0 where it cannot
//! be had, and `error` says why.
int deviceArchitecture(std::string& error) noexcept;

//! What a result of the driver means, with the name of the call that gave it.
std::string describe(char const* call, CUresult result);

} // namespace wnlb
