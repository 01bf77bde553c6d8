// What the shared library exports: TensorRT's IPluginRegistry::loadLibrary calls the first two.
#include "plugin.h"

#define WNLB_EXPORT extern "C" __attribute__((visibility("default")))

WNLB_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count)
{
    static wnlb::NonLocalAttentionCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

WNLB_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    wnlb::setLoggerFinder(finder);
}

//! For wnlb.plugins.load: the TensorRT that the library was compiled for, as major * 10000 + minor * 100 + patch.
WNLB_EXPORT std::int32_t wnlbTensorRtVersion()
{
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

//! For wnlb.plugins.load: the number of kernels that a device of this architecture (10 * major + minor) runs, its own or
//! the portable ones; 0 for all kernels, -1 where they cannot be read.
WNLB_EXPORT std::int32_t wnlbKernelCount(std::int32_t architecture)
{
    std::string error;
    wnlb::KernelTable const* table = wnlb::KernelTable::get(error);
    if (table == nullptr)
    {
        return -1;
    }
    std::uint32_t from = wnlb::kPortable;
    bool const some = architecture != 0 && table->source(architecture, from);
    std::int32_t count = 0;
    for (wnlb::Kernel const& kernel : table->kernels())
    {
        count += architecture == 0 || (some && kernel.architecture == from) ? 1 : 0;
    }
    return count;
}
