// WnlbNonLocalAttention: y = softmax(query^T key) value for TensorRT 10.3 and later, without an N x N matrix.
//
// Inputs query, key [B, d, N] and value [B, e, N], output [B, e, N], all of one type (FP16, BF16 or FP32), linear. The
// arithmetic is in the kernels (plugins/attention.py); this file only chooses one and launches it.
#pragma once

#include "kernels.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace wnlb
{

constexpr char const* kPluginName = "WnlbNonLocalAttention";
constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "wnlb";

class NonLocalAttention final : public nvinfer1::IPluginV3,
                                public nvinfer1::IPluginV3OneCore,
                                public nvinfer1::IPluginV3OneBuild,
                                public nvinfer1::IPluginV3OneRuntime
{
public:
    NonLocalAttention();
    NonLocalAttention(NonLocalAttention const& other);
    NonLocalAttention& operator=(NonLocalAttention const&) = delete;
    ~NonLocalAttention() override = default;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
        nvinfer1::DynamicPluginTensorDesc const* out, std::int32_t outputs) noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, std::int32_t outputs,
        nvinfer1::DataType const* inputTypes, std::int32_t inputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* in, std::int32_t inputs,
        nvinfer1::DimsExprs const* shapeInputs, std::int32_t shapeInputCount, nvinfer1::DimsExprs* out,
        std::int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        std::int32_t inputs, std::int32_t outputs) noexcept override;
    std::int32_t getNbOutputs() const noexcept override;
    std::int32_t getNbTactics() noexcept override;
    std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept override;
    char const* getTimingCacheID() noexcept override;

    // IPluginV3OneRuntime
    std::int32_t setTactic(std::int32_t tactic) noexcept override;
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
        nvinfer1::PluginTensorDesc const* out, std::int32_t outputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    std::vector<std::int32_t> mTactics; // of the problem that configurePlugin saw
    std::int32_t mTactic{0};            // 0: the first that fits
    Problem mProblem{};
    std::shared_ptr<LoadedKernel> mLoaded;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

class NonLocalAttentionCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    NonLocalAttentionCreator();

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

private:
    nvinfer1::PluginField mField;
    nvinfer1::PluginFieldCollection mCollection{};
};

//! Where messages go; standard error until TensorRT has given its logger.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

} // namespace wnlb
