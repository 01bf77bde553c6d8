// A CUDA driver in the host's memory, as libcuda.so.1, for tests on a machine without a GPU. "GPU" memory is malloc'ed
// memory, a stream does at once what it is told, and a stream that captures keeps it for the launch of the graph.
// It counts what is alive and what was done on the default stream, and fails on request.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace
{

using Work = std::vector<std::function<void()>>;
enum Result : int { success = 0, invalid = 1, outOfMemory = 2, noContext = 201, captureUnsupported = 900 };

struct Stream
{
    bool capturing{false};
    bool broken{false};
    Work recorded;
};

std::recursive_mutex mutex;
std::map<void*, size_t> memory;                 // host and "GPU"
std::set<Stream*> streams;
std::set<Work*> graphs;
int retained{0};
int calls{0};
int failAt{0};
int gpus{1};
int architecture{87};
int integrated{0};
int onDefaultStream{0};
int launches{0};
thread_local std::vector<void*> contexts;
int context;                                    // its address is the primary context


//! Counts the call; the one that was asked to fail does.
bool fails()
{
    return ++calls == failAt;
}

bool capturing()
{
    for (Stream* stream : streams)
    {
        if (stream->capturing)
        {
            return true;
        }
    }
    return false;
}

int allocate(void** made, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails() || bytes > (size_t{1} << 33))
    {
        return outOfMemory;
    }
    if (contexts.empty())
    {
        return noContext;
    }
    if (capturing())
    {
        for (Stream* stream : streams)
        {
            stream->broken = true;
        }
        return captureUnsupported;
    }
    *made = std::malloc(bytes);
    memory[*made] = bytes;
    return success;
}

int release(void* pointer)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (contexts.empty())
    {
        return noContext;
    }
    if (memory.erase(pointer) == 0)
    {
        return invalid;
    }
    std::free(pointer);
    return success;
}

bool inside(void const* pointer, size_t bytes)
{
    auto after = memory.upper_bound(const_cast<void*>(pointer));
    if (after == memory.begin())
    {
        return false;
    }
    auto const& [start, size] = *std::prev(after);
    return static_cast<char const*>(pointer) + bytes <= static_cast<char const*>(start) + size;
}

int submit(Stream* stream, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails())
    {
        return outOfMemory;
    }
    if (contexts.empty())
    {
        return noContext;
    }
    if (stream == nullptr)
    {
        ++onDefaultStream;
        work();
        return success;
    }
    if (streams.count(stream) == 0)
    {
        return invalid;
    }
    if (stream->capturing)
    {
        stream->recorded.push_back(std::move(work));
    }
    else
    {
        work();
    }
    return success;
}

int copy(void* to, void const* from, size_t bytes, Stream* stream)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (!inside(to, bytes) || !inside(from, bytes))
    {
        return invalid;
    }
    return submit(stream, [=] { std::memcpy(to, from, bytes); });
}

} // namespace

extern "C"
{
// What the tests ask.
int emulatedAlive()
{
    return static_cast<int>(memory.size() + streams.size() + graphs.size()) + retained;
}
int emulatedCalls()
{
    return calls;
}
int emulatedOnDefaultStream()
{
    return onDefaultStream;
}
int emulatedLaunches()
{
    return launches;
}
int emulatedCapturing()
{
    return capturing();
}
int emulatedContexts()
{
    return static_cast<int>(contexts.size());
}
void emulatedFailAt(int call)
{
    calls = 0;
    failAt = call;
}

void emulatedMachine(int count, int sm, int sharesMemory)
{
    gpus = count;
    architecture = sm;
    integrated = sharesMemory;
}

// The driver.
int cuInit(unsigned)
{
    return gpus > 0 ? success : 100;
}
int cuDriverGetVersion(int* version)
{
    *version = 13000;
    return success;
}
int cuGetErrorString(int result, char const** text)
{
    *text = result == outOfMemory ? "out of memory" : result == 100 ? "no CUDA-capable device is detected" : "emulated error";
    return success;
}
int cuGetErrorName(int, char const** text)
{
    *text = "CUDA_ERROR";
    return success;
}
int cuDeviceGetCount(int* count)
{
    *count = gpus;
    return success;
}
int cuDeviceGet(int* device, int index)
{
    *device = index;
    return success;
}
int cuDeviceGetName(char* name, int length, int)
{
    std::strncpy(name, "Emulated GPU", static_cast<size_t>(length));
    return success;
}
int cuDeviceTotalMem_v2(size_t* bytes, int)
{
    *bytes = size_t{8} << 30;
    return success;
}
int cuDeviceGetAttribute(int* value, int attribute, int)
{
    *value = attribute == 75 ? architecture / 10 : attribute == 76 ? architecture % 10 : attribute == 18 ? integrated : 16;
    return success;
}
int cuDevicePrimaryCtxRetain(void** made, int)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails())
    {
        return outOfMemory;
    }
    ++retained;
    *made = &context;
    return success;
}
int cuDevicePrimaryCtxRelease_v2(int)
{
    --retained;
    return success;
}
int cuCtxPushCurrent_v2(void* pushed)
{
    contexts.push_back(pushed);
    return success;
}
int cuCtxPopCurrent_v2(void** popped)
{
    if (contexts.empty())
    {
        return noContext;
    }
    if (popped != nullptr)
    {
        *popped = contexts.back();
    }
    contexts.pop_back();
    return success;
}
int cuCtxGetCurrent(void** current)
{
    *current = contexts.empty() ? nullptr : contexts.back();
    return success;
}
int cuCtxGetDevice(int* device)
{
    *device = 0;
    return contexts.empty() ? noContext : success;
}
int cuStreamCreate(Stream** made, unsigned)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails())
    {
        return outOfMemory;
    }
    *made = *streams.insert(new Stream).first;
    return contexts.empty() ? noContext : success;
}
int cuStreamDestroy_v2(Stream* stream)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (streams.erase(stream) == 0)
    {
        return invalid;
    }
    delete stream;
    return success;
}
int cuStreamSynchronize(Stream* stream)
{
    return submit(stream, [] {});
}
int cuMemHostAlloc(void** made, size_t bytes, unsigned)
{
    return allocate(made, bytes);
}
int cuMemFreeHost(void* pointer)
{
    return release(pointer);
}
int cuMemHostGetDevicePointer_v2(void** made, void* pointer, unsigned)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    *made = pointer;
    return fails() ? outOfMemory : success;
}
int cuMemAlloc_v2(void** made, size_t bytes)
{
    return allocate(made, bytes);
}
int cuMemFree_v2(void* pointer)
{
    return release(pointer);
}
int cuMemcpyHtoDAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream);
}
int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data)
{
    return submit(stream, [=] { function(data); });
}
int cuStreamBeginCapture_v2(Stream* stream, int)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails() || streams.count(stream) == 0 || stream->capturing)
    {
        return captureUnsupported;
    }
    stream->capturing = true;
    stream->broken = false;
    stream->recorded.clear();
    return success;
}
int cuStreamEndCapture(Stream* stream, Work** made)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    stream->capturing = false;
    *made = nullptr;
    if (fails() || stream->broken)
    {
        return captureUnsupported;
    }
    *made = *graphs.insert(new Work{std::move(stream->recorded)}).first;
    return success;
}
int cuGraphInstantiateWithFlags(Work** made, Work* graph, unsigned long long)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (fails())
    {
        return outOfMemory;
    }
    *made = *graphs.insert(new Work{*graph}).first;
    return success;
}
int cuGraphLaunch(Work* graph, Stream* stream)
{
    ++launches;
    return submit(stream, [graph] {
        for (auto const& work : *graph)
        {
            work();
        }
    });
}
int cuGraphDestroy(Work* graph)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    graphs.erase(graph);
    delete graph;
    return success;
}
int cuGraphExecDestroy(Work* graph)
{
    return cuGraphDestroy(graph);
}
int cuGetProcAddress_v2(char const* name, void** found, int, uint64_t, int* status)
{
    *found = dlsym(RTLD_DEFAULT, (std::string{name} + "_v2").c_str());
    if (*found == nullptr)
    {
        *found = dlsym(RTLD_DEFAULT, name);
    }
    if (status != nullptr)
    {
        *status = *found == nullptr ? 1 : 0;
    }
    return *found == nullptr ? 500 : success;
}
}
