// What the parser uses of DeepStream's interface, declared for this test: names, order and types of the members as in
// nvdsinfer.h and nvdsinfer_custom_impl.h of DeepStream 6 and later. The parser is built against the real ones.
#pragma once

#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };
struct NvDsInferDims { unsigned numDims; unsigned d[8]; unsigned numElements; };
struct NvDsInferLayerInfo
{
    NvDsInferDataType dataType;
    NvDsInferDims inferDims;
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
};
struct NvDsInferNetworkInfo { unsigned width, height, channels; };
struct NvDsInferParseDetectionParams
{
    unsigned numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
};
struct NvDsInferInstanceMaskInfo
{
    unsigned classId;
    float left, top, width, height, detectionConfidence;
    float* mask;
    unsigned mask_width, mask_height, mask_size;
};
#define CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(parse) \
    static bool (*const check_##parse)(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&, \
        NvDsInferParseDetectionParams const&, std::vector<NvDsInferInstanceMaskInfo>&) __attribute__((unused)) = parse;
