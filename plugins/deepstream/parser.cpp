// Detections of an engine of ours, as Gst-nvinfer wants them. NMS, scores and masks are in the engine; here rows are
// copied. Built against the headers of the DeepStream that will load it, see the Makefile beside this file.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace
{

// One output of the engine, as Gst-nvinfer copied it to the host for one frame: its dimensions are without the batch.
struct Output
{
    std::vector<unsigned> dims;
    void const* data;
};

bool complain(std::string const& what)
{
    std::fprintf(stderr, "libnvdsinfer_wnlb: %s\n", what.c_str());
    return false;
}

// An output by its name. False, and told, where it is not as the model has it; ``optional``: it may be absent.
bool find(std::vector<NvDsInferLayerInfo> const& layers, std::string const& name, NvDsInferDataType type,
    std::vector<unsigned> const& dims, Output& found, bool optional = false)
{
    found.data = nullptr;
    for (auto const& layer : layers)
    {
        if (layer.layerName == nullptr || name != layer.layerName)
        {
            continue;
        }
        found.dims.assign(layer.inferDims.d, layer.inferDims.d + layer.inferDims.numDims);
        bool fits = layer.dataType == type && layer.buffer != nullptr && found.dims.size() == dims.size();
        for (std::size_t i = 0; fits && i < dims.size(); ++i)
        {
            fits = dims[i] == 0 || dims[i] == found.dims[i]; // 0: any
        }
        if (!fits)
        {
            return complain("output " + name + " has another type or shape than a model of wnlb has; is the engine "
                "built from the model.onnx beside the configuration?");
        }
        found.data = layer.buffer;
        return true;
    }
    return optional || complain("the engine has no output " + name + "; is output-blob-names as it was written?");
}

} // namespace

// Rows that count, whose score reaches the class's threshold and whose box has an extent. Gst-nvinfer would drop others
// without freeing their masks. Boxes are in the pixels of the network's input; masks are probabilities inside the box.
extern "C" bool NvDsInferParseWnlb(std::vector<NvDsInferLayerInfo> const& layers, NvDsInferNetworkInfo const& network,
    NvDsInferParseDetectionParams const& parameters, std::vector<NvDsInferInstanceMaskInfo>& objects)
{
    Output boxes, scores, labels, masks, count;
    if (!find(layers, "boxes", FLOAT, {0, 4}, boxes) || !find(layers, "count", INT32, {1}, count))
    {
        return false;
    }
    unsigned const rows = boxes.dims[0];
    if (!find(layers, "scores", FLOAT, {rows}, scores) || !find(layers, "labels", INT32, {rows}, labels)
        || !find(layers, "masks", FLOAT, {rows, 0, 0}, masks, true))
    {
        return false;
    }
    auto const* box = static_cast<float const*>(boxes.data);
    auto const* score = static_cast<float const*>(scores.data);
    auto const* label = static_cast<int const*>(labels.data);
    auto const& thresholds = parameters.perClassPreclusterThreshold;
    int const found = *static_cast<int const*>(count.data);
    unsigned const valid = static_cast<unsigned>(std::min(std::max(found, 0), static_cast<int>(rows)));
    float const width = static_cast<float>(network.width), height = static_cast<float>(network.height);
    for (unsigned i = 0; i < valid; ++i, box += 4)
    {
        unsigned const id = static_cast<unsigned>(label[i]) - 1; // labels are 1 to C; 0, in empty rows, becomes huge
        if (id >= parameters.numClassesConfigured || id >= thresholds.size() || !(score[i] >= thresholds[id]))
        {
            continue;
        }
        float const x1 = std::min(std::max(box[0], 0.0f), width), y1 = std::min(std::max(box[1], 0.0f), height);
        float const x2 = std::min(std::max(box[2], 0.0f), width), y2 = std::min(std::max(box[3], 0.0f), height);
        if (!(x2 > x1) || !(y2 > y1))
        {
            continue;
        }
        NvDsInferInstanceMaskInfo object{};
        object.classId = id;
        object.left = x1;
        object.top = y1;
        object.width = x2 - x1;
        object.height = y2 - y1;
        object.detectionConfidence = std::min(score[i], 1.0f);
        std::unique_ptr<float[]> mask;
        if (masks.data != nullptr)
        {
            std::size_t const cells = static_cast<std::size_t>(masks.dims[1]) * masks.dims[2];
            mask.reset(new float[cells]);
            std::memcpy(mask.get(), static_cast<float const*>(masks.data) + i * cells, cells * sizeof(float));
            object.mask = mask.get();
            object.mask_width = masks.dims[2];
            object.mask_height = masks.dims[1];
            object.mask_size = static_cast<unsigned>(cells * sizeof(float));
        }
        objects.push_back(object);
        mask.release(); // Gst-nvinfer frees it
    }
    return true;
}

CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(NvDsInferParseWnlb)
