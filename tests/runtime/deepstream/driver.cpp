// Calls the parser as Gst-nvinfer does, with the outputs of one frame, and hands its objects to Python.
#include <cstring>

#include "parser.cpp"

struct Layer { const char* name; int type; unsigned rank; unsigned dims[8]; void* data; };

// Numbers of an object in ``out``: class, left, top, width, height, score, mask width, mask height. Masks in a row after
// one another in ``cells``. Returns the objects, or -1 where the parser gives up.
extern "C" int parse(Layer const* given, int count, unsigned width, unsigned height, unsigned classes,
    float const* thresholds, float* out, float* cells)
{
    std::vector<NvDsInferLayerInfo> layers;
    for (int i = 0; i < count; ++i)
    {
        NvDsInferLayerInfo layer{};
        layer.dataType = static_cast<NvDsInferDataType>(given[i].type);
        layer.inferDims.numDims = given[i].rank;
        std::memcpy(layer.inferDims.d, given[i].dims, sizeof(given[i].dims));
        layer.layerName = given[i].name;
        layer.buffer = given[i].data;
        layers.push_back(layer);
    }
    NvDsInferParseDetectionParams parameters{classes, std::vector<float>(thresholds, thresholds + classes)};
    std::vector<NvDsInferInstanceMaskInfo> objects;
    if (!NvDsInferParseWnlb(layers, {width, height, 3}, parameters, objects))
    {
        return -1;
    }
    for (auto const& object : objects)
    {
        float const values[] = {static_cast<float>(object.classId), object.left, object.top, object.width,
            object.height, object.detectionConfidence, static_cast<float>(object.mask_width),
            static_cast<float>(object.mask_height)};
        out = std::copy(values, values + 8, out);
        if (object.mask != nullptr)
        {
            std::memcpy(cells, object.mask, object.mask_size);
            cells += object.mask_size / sizeof(float);
            delete[] object.mask;
        }
    }
    return static_cast<int>(objects.size());
}
