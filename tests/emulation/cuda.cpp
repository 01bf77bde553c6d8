// A CUDA driver in the host's memory, as libcuda.so.1, for tests on a machine without a GPU. "GPU" memory is malloc'ed
// memory, a stream does at once what it is told, and a stream that captures keeps it for the launch of the graph.
// It counts what is alive and what was done on the default stream, fails on request, and has a clock that goes on by
// what the test says that each piece of work takes.
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
enum Result : int { success = 0, invalid = 1, outOfMemory = 2, noContext = 201, invalidHandle = 400, notReady = 600, captureUnsupported = 900 };

struct Allocation
{
    size_t bytes;
    bool onGpu;
};

//! Comes to be when the stream comes to it; who asks learns of it only by a wait, as on a real GPU.
struct Event
{
    double at{-1};
    bool waitedFor{false};
};

struct Stream
{
    bool capturing{false};
    bool broken{false};
    Work recorded;
};

std::recursive_mutex mutex;
std::map<void*, Allocation> memory;             // host and "GPU"
std::set<Stream*> streams;
std::set<Event*> events;
std::set<Work*> graphs;
int retained{0};
int calls{0};
int failAt{0};
int gpus{1};
int architecture{87};
int integrated{0};
int onDefaultStream{0};
int launches{0};
double now{0};                                  // milliseconds, as what follows
double uploadTakes{0};
double downloadTakes{0};
double functionTakes{0};
double launchTakes{0};
int queriesBeforeReady{0};
int queries{0};
int sleeps{0};                                  // waits for an event other than by queries
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

int allocate(void** made, size_t bytes, bool onGpu)
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
    memory[*made] = {bytes, onGpu};
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
    auto const& [start, allocation] = *std::prev(after);
    return static_cast<char const*>(pointer) + bytes <= static_cast<char const*>(start) + allocation.bytes;
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

int copy(void* to, void const* from, size_t bytes, Stream* stream, double takes)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (!inside(to, bytes) || !inside(from, bytes))
    {
        return invalid;
    }
    return submit(stream, [=] {
        std::memcpy(to, from, bytes);
        now += takes;
    });
}

//! The stream has come to the event and to all before it.
int waitFor(Event* event)
{
    for (Event* other : events)
    {
        other->waitedFor |= other->at >= 0 && other->at <= event->at;
    }
    return success;
}

//! What is wrong with a call on an event, counted.
int checked(Event* event)
{
    return fails() ? outOfMemory : contexts.empty() ? noContext : events.count(event) == 0 ? invalidHandle : success;
}

} // namespace

extern "C"
{
// What the tests ask.
int emulatedAlive()
{
    return static_cast<int>(memory.size() + streams.size() + graphs.size() + events.size()) + retained;
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
void emulatedTakes(double upload, double download, double function, double launch)
{
    uploadTakes = upload;
    downloadTakes = download;
    functionTakes = function;
    launchTakes = launch;
}
//! Each wait by queries is told that many times that the event is not ready.
void emulatedQueriesBeforeReady(int count)
{
    queriesBeforeReady = count;
    queries = 0;
}
int emulatedQueries()
{
    return queries;
}
int emulatedSleeps()
{
    return sleeps;
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
    return allocate(made, bytes, false);
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
    return allocate(made, bytes, true);
}
//! On a GPU that shares the host's memory all of it is the GPU's.
int cuMemGetInfo_v2(size_t* free, size_t* total)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    *free = *total = size_t{8} << 30;
    for (auto const& [start, allocation] : memory)
    {
        *free -= allocation.onGpu || integrated ? allocation.bytes : 0;
    }
    return fails() ? outOfMemory : contexts.empty() ? noContext : success;
}
int cuMemFree_v2(void* pointer)
{
    return release(pointer);
}
int cuMemcpyHtoDAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream, uploadTakes);
}
int cuMemcpyDtoHAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream, downloadTakes);
}
int cuMemcpyDtoDAsync_v2(void* to, void const* from, size_t bytes, Stream* stream)
{
    return copy(to, from, bytes, stream, 0);
}
int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data)
{
    return submit(stream, [=] {
        function(data);
        now += functionTakes;
    });
}
int cuEventCreate(Event** made, unsigned)
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
    *made = *events.insert(new Event).first;
    return success;
}
int cuEventDestroy_v2(Event* event)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (contexts.empty() || events.erase(event) == 0)
    {
        return invalidHandle;
    }
    delete event;
    return success;
}
int cuEventRecord(Event* event, Stream* stream)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    if (events.count(event) == 0)
    {
        return invalidHandle;
    }
    return submit(stream, [=] { *event = Event{now}; });
}
int cuEventQuery(Event* event)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    int const wrong = checked(event);
    if (wrong == success && queries++ % (queriesBeforeReady + 1) < queriesBeforeReady)
    {
        return notReady;
    }
    return wrong != success ? wrong : waitFor(event);
}
int cuEventSynchronize(Event* event)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    int const wrong = checked(event);
    ++sleeps;
    return wrong != success ? wrong : waitFor(event);
}
int cuEventElapsedTime(float* ms, Event* start, Event* end)
{
    std::lock_guard<std::recursive_mutex> lock{mutex};
    int const wrong = checked(start);
    if (wrong != success || events.count(end) == 0 || start->at < 0 || end->at < 0)
    {
        return wrong != success ? wrong : invalidHandle;
    }
    *ms = static_cast<float>(end->at - start->at);
    return start->waitedFor && end->waitedFor ? success : notReady;
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
        now += launchTakes;
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
