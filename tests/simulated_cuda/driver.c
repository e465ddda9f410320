/* A CUDA driver on host memory, for tests: what PyCUDA and cuda-python need of libcuda.so.1, and it is unforgiving.

   - Fresh memory is poisoned (0xFF bytes: NaN as float); every allocation ends in a guard that is checked when it is freed.
   - Copies must lie inside one live allocation; freed memory is refused.
   - Calls need a current context on the calling thread.
   - Asynchronous work is queued and done only by a synchronisation (of its stream, an event behind it, or the context).
     A copy reads its source then, so a missing synchronisation, and a buffer reused too early, are seen.
   - sim_fail_at(n): the n-th counted call from now fails. A call that releases something still releases it, as CUDA's do
     when they report an error of earlier work.

   Misuse that a driver could not report is counted in sim_violations(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Address;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
       NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, UNKNOWN = 999 };
enum { GUARD = 256, DEPTH = 64 };

typedef struct Allocation { char *start; size_t size; int pinned; struct Allocation *next; } Allocation;
typedef struct Stream Stream;
typedef struct Event { Stream *stream; unsigned long position; } Event;
typedef struct Operation {
    void *to; const void *from; size_t size;     /* a copy */
    void (*function)(void *); void *data;        /* a kernel */
    Stream *other; unsigned long other_position; /* a wait for another stream */
    unsigned long position;
    struct Operation *next;
} Operation;
struct Stream { Operation *first, *last, *captured, *captured_last; unsigned long position, done; int busy, capturing; pthread_t capturer; Stream *next; };
typedef struct Graph { Operation *first; } Graph;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Allocation *allocations;
static Stream *streams, legacy;
static int live_handles, violations, primary;
static long calls, allocated, fail_at = -1;
static __thread void *stack[DEPTH];
static __thread int depth;
static char failed_name[64];

/* ---- what tests call ---- */
long sim_calls(void) { return calls; }
long sim_allocated(void) { return allocated; } /* allocations and handles ever made */
int sim_violations(void) { return violations; }
void sim_forgive(int n) { violations -= n; } /* those that a test made on purpose */
int sim_depth(void) { return depth; } /* contexts on this thread's stack */
void sim_fail_at(long n) { pthread_mutex_lock(&lock); fail_at = n < 0 ? -1 : calls + n; failed_name[0] = 0; pthread_mutex_unlock(&lock); }
const char *sim_failed(void) { return failed_name; } /* name of the call that was made to fail, or "" */
int sim_live(void) {
    int count = live_handles;
    for (Allocation *a = allocations; a; a = a->next) count++;
    return count;
}
static void violation(const char *what) { violations++; fprintf(stderr, "simulated CUDA: %s\n", what); }

static Allocation *covering(const void *pointer, size_t size) {
    for (Allocation *a = allocations; a; a = a->next)
        if ((const char *)pointer >= a->start && (const char *)pointer + size <= a->start + a->size) return a;
    return NULL;
}
/* whether [pointer, pointer+size) is live device memory */
int sim_is_device(const void *pointer, size_t size) {
    pthread_mutex_lock(&lock);
    Allocation *a = covering(pointer, size);
    pthread_mutex_unlock(&lock);
    return a && !a->pinned;
}

/* ---- entry of every call: counting, injected failure, current context ---- */
static Result enter(const char *name, int needs_context) {
    pthread_mutex_lock(&lock);
    int fails = ++calls == fail_at;
    if (fails) snprintf(failed_name, sizeof failed_name, "%s", name);
    pthread_mutex_unlock(&lock);
    if (fails) return strstr(name, "Alloc") ? OUT_OF_MEMORY : UNKNOWN;
    return needs_context && !depth ? INVALID_CONTEXT : SUCCESS;
}
#define ENTER() do { Result entered = enter(__func__, 1); if (entered) return entered; } while (0)
#define ENTER_WITHOUT_CONTEXT() do { Result entered = enter(__func__, 0); if (entered) return entered; } while (0)

/* ---- devices and contexts ---- */
Result cuInit(unsigned flags) { (void)flags; ENTER_WITHOUT_CONTEXT(); return SUCCESS; }
Result cuDriverGetVersion(int *version) {
    const char *told = getenv("SIM_DRIVER_VERSION"); /* such as 12040 */
    *version = told ? atoi(told) : 13000;
    return SUCCESS;
}
Result cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { ENTER_WITHOUT_CONTEXT(); *device = ordinal; return ordinal ? 101 : SUCCESS; }
Result cuDeviceGetName(char *name, int length, int device) { (void)device; snprintf(name, length, "Simulated GPU"); return SUCCESS; }
Result cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; *major = 8; *minor = 6; return SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 1; /* COMPUTE_CAPABILITY_MAJOR, _MINOR */
    return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 8ul << 30; return SUCCESS; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; ENTER_WITHOUT_CONTEXT(); *context = &primary; return SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return SUCCESS; }
Result cuCtxPushCurrent_v2(void *context) {
    ENTER_WITHOUT_CONTEXT();
    if (depth == DEPTH) { violation("contexts are pushed and never popped"); return INVALID_VALUE; }
    stack[depth++] = context;
    return SUCCESS;
}
Result cuCtxPopCurrent_v2(void **context) {
    ENTER();
    depth--;
    if (context) *context = stack[depth];
    return SUCCESS;
}
Result cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : NULL; return SUCCESS; }
Result cuCtxGetDevice(int *device) { ENTER(); *device = 0; return SUCCESS; }

/* ---- memory ---- */
static Result allocate(void **pointer, size_t size, int pinned) {
    char *start = size ? aligned_alloc(512, (size + GUARD + 511) / 512 * 512) : NULL;
    if (!start) return INVALID_VALUE;
    memset(start, 0xFF, size);
    memset(start + size, 0xA5, GUARD);
    Allocation *a = malloc(sizeof *a);
    pthread_mutex_lock(&lock);
    *a = (Allocation){start, size, pinned, allocations};
    allocations = a;
    allocated++;
    pthread_mutex_unlock(&lock);
    *pointer = start;
    return SUCCESS;
}
static Result release(void *pointer, int pinned, Result result) {
    pthread_mutex_lock(&lock);
    Allocation **link = &allocations;
    while (*link && (*link)->start != pointer) link = &(*link)->next;
    Allocation *a = *link;
    if (!a || a->pinned != pinned) { violation("freed what is not allocated"); pthread_mutex_unlock(&lock); return INVALID_VALUE; }
    *link = a->next;
    for (int i = 0; i < GUARD; i++)
        if ((unsigned char)a->start[a->size + i] != 0xA5) { violation("written past the end of an allocation"); break; }
    pthread_mutex_unlock(&lock);
    memset(a->start, 0xDD, a->size);
    free(a->start);
    free(a);
    return result;
}
static int capturing_here(void) { /* allocation while this library captures would break a real capture as well */
    for (Stream *s = streams; s; s = s->next) if (s->capturing && pthread_equal(s->capturer, pthread_self())) return 1;
    return 0;
}
Result cuMemAlloc_v2(Address *pointer, size_t size) { ENTER(); return capturing_here() ? CAPTURE_UNSUPPORTED : allocate((void **)pointer, size, 0); }
Result cuMemFree_v2(Address pointer) { Result result = enter(__func__, 1); return release((void *)pointer, 0, result); }
Result cuMemAllocHost_v2(void **pointer, size_t size) { ENTER(); return allocate(pointer, size, 1); }
Result cuMemHostAlloc(void **pointer, size_t size, unsigned flags) { (void)flags; ENTER(); return allocate(pointer, size, 1); }
Result cuMemFreeHost(void *pointer) { Result result = enter(__func__, 1); return release(pointer, 1, result); }
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { ENTER(); *free_bytes = *total = 8ul << 30; return SUCCESS; }

/* ---- streams ---- */
static Stream *stream_of(void *handle) {
    if ((size_t)handle <= 2) return &legacy; /* NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD */
    for (Stream *s = streams; s; s = s->next) if (s == handle) return s;
    return NULL;
}
static void run_until(Stream *s, unsigned long position) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (s->busy && s->done < position) pthread_cond_wait(&changed, &lock);
        if (s->done >= position) break; /* also when this thread is inside a later operation of that stream */
        Operation *o = s->first;
        if (!o || o->position > position) break;
        if (!(s->first = o->next)) s->last = NULL;
        s->busy = 1;
        if (o->size && !o->function) {
            Allocation *to = covering(o->to, o->size), *from = covering(o->from, o->size);
            if (!to && !from) { violation("asynchronous copy after its memory was freed"); o->size = 0; }
        }
        pthread_mutex_unlock(&lock); /* a kernel may need Python's lock, which another caller may hold */
        if (o->other) run_until(o->other, o->other_position);
        else if (o->function) o->function(o->data);
        else memcpy(o->to, o->from, o->size);
        pthread_mutex_lock(&lock);
        s->done = o->position;
        s->busy = 0;
        free(o);
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
}
static void enqueue(Stream *s, Operation operation) {
    Operation *o = malloc(sizeof *o);
    *o = operation;
    o->next = NULL;
    pthread_mutex_lock(&lock);
    if (s->capturing) {
        if (s->captured_last) s->captured_last->next = o; else s->captured = o;
        s->captured_last = o;
    } else {
        o->position = ++s->position;
        if (s->last) s->last->next = o; else s->first = o;
        s->last = o;
    }
    pthread_mutex_unlock(&lock);
}
Result cuStreamCreate(void **handle, unsigned flags) {
    (void)flags;
    ENTER();
    Stream *s = calloc(1, sizeof *s);
    pthread_mutex_lock(&lock);
    s->next = streams; streams = s; live_handles++; allocated++;
    pthread_mutex_unlock(&lock);
    *handle = s;
    return SUCCESS;
}
Result cuStreamSynchronize(void *handle) {
    Result result = enter(__func__, 1);
    Stream *s = stream_of(handle);
    if (!s) return INVALID_HANDLE;
    if (s->capturing) return CAPTURE_UNSUPPORTED;
    run_until(s, s->position);
    return result;
}
Result cuStreamQuery(void *handle) { ENTER(); Stream *s = stream_of(handle); return !s ? INVALID_HANDLE : s->first ? NOT_READY : SUCCESS; }
Result cuStreamDestroy_v2(void *handle) {
    Result result = enter(__func__, 1);
    Stream *s = stream_of(handle);
    if (!s || s == &legacy) { violation("destroyed what is not a stream"); return INVALID_HANDLE; }
    run_until(s, s->position); /* a destroyed stream still finishes its work; its struct is kept for events that point at it */
    pthread_mutex_lock(&lock);
    Stream **link = &streams;
    while (*link != s) link = &(*link)->next;
    *link = s->next;
    live_handles--;
    pthread_mutex_unlock(&lock);
    return result;
}
Result cuCtxSynchronize(void) {
    Result result = enter(__func__, 1);
    run_until(&legacy, legacy.position);
    for (Stream *s = streams; s; s = s->next) run_until(s, s->position);
    return result;
}

/* ---- copies ---- */
static Result copy(void *to, const void *from, size_t size, const void *device, void *stream, int asynchronous) {
    if (!sim_is_device(device, size)) return INVALID_VALUE;
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    enqueue(s, (Operation){.to = to, .from = from, .size = size});
    if (!asynchronous) run_until(s, s->position);
    return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) { ENTER(); return copy((void *)to, from, size, (void *)to, stream, 1); }
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) { ENTER(); return copy(to, (void *)from, size, (void *)from, stream, 1); }
Result cuMemcpyHtoD_v2(Address to, const void *from, size_t size) { ENTER(); return copy((void *)to, from, size, (void *)to, NULL, 0); }
Result cuMemcpyDtoH_v2(void *to, Address from, size_t size) { ENTER(); return copy(to, (void *)from, size, (void *)from, NULL, 0); }

/* a kernel: function(data) runs when the stream gets there */
void sim_launch(void *stream, void (*function)(void *), void *data) {
    enqueue(stream_of(stream), (Operation){.function = function, .data = data});
}

/* ---- events ---- */
Result cuEventCreate(void **event, unsigned flags) { (void)flags; ENTER(); *event = calloc(1, sizeof(Event)); live_handles++; allocated++; return SUCCESS; }
Result cuEventRecord(Event *event, void *stream) {
    ENTER();
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    *event = (Event){s, s->position};
    return SUCCESS;
}
Result cuEventSynchronize(Event *event) { Result result = enter(__func__, 1); if (event->stream) run_until(event->stream, event->position); return result; }
Result cuEventQuery(Event *event) { ENTER(); return !event->stream || event->stream->done >= event->position ? SUCCESS : NOT_READY; }
Result cuEventDestroy_v2(Event *event) { Result result = enter(__func__, 1); free(event); live_handles--; return result; }
Result cuStreamWaitEvent(void *stream, Event *event, unsigned flags) {
    (void)flags;
    ENTER();
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (event->stream && event->stream != s) enqueue(s, (Operation){.other = event->stream, .other_position = event->position});
    return SUCCESS;
}

/* ---- graphs ---- */
static void free_operations(Operation *o) { while (o) { Operation *next = o->next; free(o); o = next; } }
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)mode;
    ENTER();
    Stream *s = stream_of(stream);
    if (!s || s == &legacy) return INVALID_HANDLE;
    s->capturing = 1;
    s->capturer = pthread_self();
    return SUCCESS;
}
Result cuStreamEndCapture(void *stream, Graph **graph) {
    Result result = enter(__func__, 1);
    Stream *s = stream_of(stream);
    if (!s || !s->capturing) return INVALID_HANDLE;
    s->capturing = 0;
    Operation *captured = s->captured;
    s->captured = s->captured_last = NULL;
    if (result) { free_operations(captured); *graph = NULL; return result; }
    *graph = malloc(sizeof **graph);
    (*graph)->first = captured;
    live_handles++; allocated++;
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    (void)flags;
    ENTER();
    *executable = malloc(sizeof **executable);
    (*executable)->first = NULL;
    Operation **last = &(*executable)->first;
    for (Operation *o = graph->first; o; o = o->next) {
        *last = malloc(sizeof **last);
        **last = *o;
        (*last)->next = NULL;
        last = &(*last)->next;
    }
    live_handles++; allocated++;
    return SUCCESS;
}
Result cuGraphLaunch(Graph *executable, void *stream) {
    ENTER();
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    for (Operation *o = executable->first; o; o = o->next) enqueue(s, *o);
    return SUCCESS;
}
Result cuGraphDestroy(Graph *graph) { Result result = enter(__func__, 1); free_operations(graph->first); free(graph); live_handles--; return result; }
Result cuGraphExecDestroy(Graph *graph) { Result result = enter(__func__, 1); free_operations(graph->first); free(graph); live_handles--; return result; }

/* ---- errors, and how cuda-python finds functions ---- */
Result cuGetErrorName(Result error, const char **name) {
    *name = error == SUCCESS ? "CUDA_SUCCESS" : error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
        : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : error == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
        : error == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR_UNKNOWN";
    return SUCCESS;
}
Result cuGetErrorString(Result error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == INVALID_CONTEXT ? "invalid device context" : error == INVALID_VALUE ? "invalid argument" : "unknown error";
    return SUCCESS;
}
Result cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *status) {
    (void)version; (void)flags;
    static const char *const suffixes[] = {"WithFlags", "_v4", "_v3", "_v2", ""};
    Dl_info self;
    dladdr((void *)cuGetProcAddress_v2, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = NULL;
    for (int i = 0; i < 5 && !*function; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
        *function = dlsym(library, name);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
