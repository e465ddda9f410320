/* A CUDA driver on host memory, for tests: what PyCUDA and cuda-python need of libcuda.so.1, and it is unforgiving.

   - Two devices, each with a primary context that counts its references. Memory, streams and events belong to one, and
     are refused where the other is current (stricter than unified addressing).
   - Fresh memory is poisoned (0xFF bytes: NaN as float); every allocation ends in a guard that is checked when it is freed.
   - The pages of device memory are closed to the host (PROT_NONE) but while a copy or a kernel runs.
   - Copies must lie inside one live allocation; freed memory is refused.
   - Calls need a current context on the calling thread, one that is retained.
   - Asynchronous work is queued and done only by a synchronisation (of its stream, an event behind it, or the context).
     A copy reads its source then, so a missing synchronisation, and a buffer reused too early, are seen.
   - Each stream has a clock of its own for timing events: a copy takes 1 ms per MB, a kernel 0.5 ms.
   - What CUDA forbids while a stream captures is refused and spoils the capture: device synchronisation by any thread,
     allocation and release by the capturing one, and waiting for what is being captured.
   - sim_fail_at(n): the n-th counted call from now fails. A call that releases something still releases it, as CUDA's do
     when they report an error of earlier work; after sim_switch_anyway(1) pushing and popping contexts do so too.
   - sim_poison(device, code): a fault on the device. Every call in its context returns the code for ever (pushing and
     popping it too after sim_switch_anyway(1)), and work that is queued is not done.

   Misuse that a driver could not report is counted in sim_violations(). With SIM_REPORT in the environment a line on
   stderr tells at the end of the process what is left. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int Result;
typedef unsigned long long Address;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       NOT_FOUND = 500, NOT_READY = 600, CONTEXT_IS_DESTROYED = 709, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
       CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908, UNKNOWN = 999 };
enum { GUARD = 256, DEPTH = 64, DEVICES = 2, GLOBAL = 0, THREAD_LOCAL = 1, NON_BLOCKING = 1 };

typedef struct Context { int references, kernels; Result fault; } Context; /* kernels: running now */
typedef struct Allocation { char *start; size_t size, mapped; int pinned, copies; Context *owner; struct Allocation *next; } Allocation;
typedef struct Stream Stream;
typedef struct Event { Stream *stream; unsigned long position; Context *owner; int captured, timed; double ms; } Event;
typedef struct Operation {
    void *to; const void *from; size_t size;     /* a copy */
    void (*function)(void *); void *data;        /* a kernel */
    Stream *other; unsigned long other_position; /* a wait for another stream */
    Event *stamp;                                /* an event that keeps the time */
    unsigned long position;
    struct Operation *next;
} Operation;
struct Stream {
    Operation *first, *last, *captured, *captured_last;
    unsigned long position, done;
    double ms;
    int busy, capturing, spoiled, mode, blocking;
    pthread_t capturer;
    Context *owner;
    Stream *next;
};
typedef struct Graph { Operation *first; Context *owner; } Graph;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Allocation *allocations;
static Context primary[DEVICES];
static Stream *streams, legacy[DEVICES];
static int live_handles[DEVICES], violations, switch_anyway;
static long calls, allocated, fail_at = -1;
static __thread Context *stack[DEPTH];
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
static int live_in(int device) {
    int count = live_handles[device];
    for (Allocation *a = allocations; a; a = a->next) count += a->owner == &primary[device];
    return count;
}
int sim_live(void) { return live_in(0) + live_in(1); }
int sim_references(int device) { return primary[device].references; } /* of its primary context */
void sim_switch_anyway(int on) { switch_anyway = on; }
void sim_poison(int device, Result code) { primary[device].fault = code; }
void sim_heal(int device) { primary[device].fault = SUCCESS; } /* no driver can: for the next test in the process */
static void violation(const char *what) { violations++; fprintf(stderr, "simulated CUDA: %s\n", what); }
__attribute__((destructor)) static void report(void) {
    if (getenv("SIM_REPORT"))
        fprintf(stderr, "simulated CUDA: at the end %d live, references %d and %d, %d violations\n", sim_live(), primary[0].references, primary[1].references, violations);
}
static Context *current(void) { return depth ? stack[depth - 1] : NULL; }
static int device_of(Context *context) { return (int)(context - primary); }
static void count_handle(Context *owner, int change) {
    pthread_mutex_lock(&lock);
    live_handles[device_of(owner)] += change;
    allocated += change > 0;
    pthread_mutex_unlock(&lock);
}

static Allocation *covering(const void *pointer, size_t size) {
    for (Allocation *a = allocations; a; a = a->next)
        if ((const char *)pointer >= a->start && (const char *)pointer + size <= a->start + a->size) return a;
    return NULL;
}
/* the device whose live memory holds [pointer, pointer+size), else -1 */
int sim_device_of(const void *pointer, size_t size) {
    pthread_mutex_lock(&lock);
    Allocation *a = covering(pointer, size);
    int device = a && !a->pinned ? device_of(a->owner) : -1;
    pthread_mutex_unlock(&lock);
    return device;
}
int sim_capturing(void) { for (Stream *s = streams; s; s = s->next) if (s->capturing) return 1; return 0; }
int sim_current_device(void) { return depth ? device_of(current()) : -1; }

/* ---- pages of device memory, open to the host only while something of the device runs; the lock is held ---- */
static void set_pages(Allocation *a) {
    if (!a->pinned && mprotect(a->start, a->mapped, a->copies || a->owner->kernels ? PROT_READ | PROT_WRITE : PROT_NONE)) abort();
}
static void count_copy(Allocation *a, int change) { if (a) { a->copies += change; set_pages(a); } }
static void count_kernel(Context *owner, int change) {
    int before = owner->kernels;
    owner->kernels += change;
    if (!before != !owner->kernels)
        for (Allocation *a = allocations; a; a = a->next) if (a->owner == owner) set_pages(a);
}

/* ---- entry of every call: counting, injected failure, current context, fault of its device ---- */
static Result enter(const char *name, int needs_context) {
    pthread_mutex_lock(&lock);
    int fails = ++calls == fail_at;
    if (fails) snprintf(failed_name, sizeof failed_name, "%s", name);
    pthread_mutex_unlock(&lock);
    if (fails) return strstr(name, "Alloc") ? OUT_OF_MEMORY : UNKNOWN;
    if (!needs_context) return SUCCESS;
    if (!depth) return INVALID_CONTEXT;
    if (!current()->references) { violation("a call in a primary context that nobody retains"); return CONTEXT_IS_DESTROYED; }
    return current()->fault;
}
#define ENTER() do { Result entered = enter(__func__, 1); if (entered) return entered; } while (0)
#define ENTER_WITHOUT_CONTEXT() do { Result entered = enter(__func__, 0); if (entered) return entered; } while (0)

/* ---- what a capture forbids: see cuStreamBeginCapture and cuThreadExchangeStreamCaptureMode in CUDA's manual ---- */
static Result spoil(Stream *s, Result result) { if (s) s->spoiled = 1; return s ? result : SUCCESS; }
static Stream *captured_by(int any_thread, Context *context) {
    for (Stream *s = streams; s; s = s->next)
        if (s->capturing && (!context || s->owner == context) && (any_thread || s->mode == GLOBAL
            || (s->mode == THREAD_LOCAL && pthread_equal(s->capturer, pthread_self())))) return s;
    return NULL;
}
static Result unsafe(void) { /* calls that may synchronise: allocation, release */
    pthread_mutex_lock(&lock);
    Result result = spoil(captured_by(0, NULL), CAPTURE_UNSUPPORTED);
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- devices and contexts ---- */
Result cuInit(unsigned flags) { (void)flags; ENTER_WITHOUT_CONTEXT(); return SUCCESS; }
Result cuDriverGetVersion(int *version) {
    const char *told = getenv("SIM_DRIVER_VERSION"); /* such as 12040 */
    *version = told ? atoi(told) : 13000;
    return SUCCESS;
}
Result cuDeviceGetCount(int *count) { *count = DEVICES; return SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { ENTER_WITHOUT_CONTEXT(); *device = ordinal; return ordinal >= 0 && ordinal < DEVICES ? SUCCESS : INVALID_DEVICE; }
Result cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, device ? "Simulated GPU B" : "Simulated GPU"); return SUCCESS; }
Result cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; *major = 8; *minor = 6; return SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 1; /* COMPUTE_CAPABILITY_MAJOR, _MINOR */
    return SUCCESS;
}
static Result uuid(unsigned char *octets, const char *of, int device) { memcpy(octets, of, 15); octets[15] = '0' + device; return SUCCESS; }
Result cuDeviceGetUuid(unsigned char *octets, int device) { return uuid(octets, "simulated card ", device); }
Result cuDeviceGetUuid_v2(unsigned char *octets, int device) { return uuid(octets, getenv("SIMULATED_MIG") ? "slice of a card" : "simulated card ", device); }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 8ul << 30; return SUCCESS; }
Result cuDevicePrimaryCtxRetain(Context **context, int device) {
    ENTER_WITHOUT_CONTEXT();
    pthread_mutex_lock(&lock);
    primary[device].references++;
    pthread_mutex_unlock(&lock);
    *context = &primary[device];
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    if (!primary[device].references) violation("a primary context is released more often than retained");
    else if (!--primary[device].references && live_in(device)) violation("a primary context is destroyed and something in it is alive");
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
static Result switched(Result entered, Context *context) { return entered || !switch_anyway ? entered : context->fault; }
Result cuCtxPushCurrent_v2(Context *context) {
    Result entered = enter(__func__, 0);
    if (entered && !switch_anyway) return entered;
    if (depth == DEPTH) { violation("contexts are pushed and never popped"); return INVALID_VALUE; }
    stack[depth++] = context;
    return switched(entered, context);
}
Result cuCtxPopCurrent_v2(Context **context) {
    Result entered = enter(__func__, 0);
    if (!depth) return INVALID_CONTEXT;
    if (entered && !switch_anyway) return entered;
    Context *popped = stack[--depth];
    if (context) *context = popped;
    return switched(entered, popped);
}
Result cuCtxGetCurrent(Context **context) { *context = current(); return SUCCESS; }
Result cuCtxGetDevice(int *device) { ENTER(); *device = device_of(current()); return SUCCESS; }

/* ---- memory ---- */
static Result allocate(void **pointer, size_t size, int pinned) {
    Result refused = unsafe();
    if (refused) return refused;
    size_t page = sysconf(_SC_PAGESIZE), mapped = (size + GUARD + page - 1) / page * page;
    char *start = size ? mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (start == MAP_FAILED) return INVALID_VALUE;
    memset(start, 0xFF, size);
    memset(start + size, 0xA5, GUARD);
    Allocation *a = malloc(sizeof *a);
    pthread_mutex_lock(&lock);
    *a = (Allocation){.start = start, .size = size, .mapped = mapped, .pinned = pinned, .owner = current(), .next = allocations};
    allocations = a;
    allocated++;
    set_pages(a);
    pthread_mutex_unlock(&lock);
    *pointer = start;
    return SUCCESS;
}
static Result release(void *pointer, int pinned, Result result) {
    Result refused = unsafe();
    if (refused) return refused; /* and nothing is freed */
    pthread_mutex_lock(&lock);
    Allocation **link = &allocations;
    while (*link && (*link)->start != pointer) link = &(*link)->next;
    Allocation *a = *link;
    if (!a || a->pinned != pinned) { violation("freed what is not allocated"); pthread_mutex_unlock(&lock); return INVALID_VALUE; }
    if (a->owner != current()) violation("freed where the context that it belongs to is not current");
    *link = a->next;
    a->copies++;
    set_pages(a);
    for (int i = 0; i < GUARD; i++)
        if ((unsigned char)a->start[a->size + i] != 0xA5) { violation("written past the end of an allocation"); break; }
    pthread_mutex_unlock(&lock);
    munmap(a->start, a->mapped);
    free(a);
    return result;
}
Result cuMemAlloc_v2(Address *pointer, size_t size) { ENTER(); return allocate((void **)pointer, size, 0); }
Result cuMemFree_v2(Address pointer) { Result result = enter(__func__, 1); return release((void *)pointer, 0, result); }
Result cuMemAllocHost_v2(void **pointer, size_t size) { ENTER(); return allocate(pointer, size, 1); }
Result cuMemHostAlloc(void **pointer, size_t size, unsigned flags) { (void)flags; ENTER(); return allocate(pointer, size, 1); }
Result cuMemFreeHost(void *pointer) { Result result = enter(__func__, 1); return release(pointer, 1, result); }
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { ENTER(); *free_bytes = *total = 8ul << 30; return SUCCESS; }
Result cuPointerGetAttribute(void *value, int attribute, Address pointer) {
    ENTER();
    int device = sim_device_of((void *)pointer, 1);
    if (attribute != 9 || device < 0) return INVALID_VALUE; /* DEVICE_ORDINAL */
    *(int *)value = device;
    return SUCCESS;
}

/* ---- streams ---- */
static Stream *stream_of(void *handle) {
    if ((size_t)handle <= 2) { /* NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD */
        Stream *s = &legacy[device_of(current())];
        s->owner = current();
        return s;
    }
    pthread_mutex_lock(&lock);
    Stream *s = streams;
    while (s && s != handle) s = s->next;
    pthread_mutex_unlock(&lock);
    return s && s->owner == current() ? s : NULL;
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
        Allocation *to = covering(o->to, o->size), *from = covering(o->from, o->size);
        int copies = !o->other && !o->function && !o->stamp && !s->owner->fault, computes = o->function && !s->owner->fault;
        if (copies && !to && !from) { violation("asynchronous copy after its memory was freed"); copies = 0; }
        if (copies) { count_copy(to, 1); count_copy(from, 1); }
        if (computes) count_kernel(s->owner, 1);
        pthread_mutex_unlock(&lock); /* a kernel may need Python's lock, which another caller may hold */
        if (o->other) run_until(o->other, o->other_position);
        if (computes) o->function(o->data), s->ms += 0.5;
        if (copies) memcpy(o->to, o->from, o->size), s->ms += o->size / 1e6;
        if (o->stamp) o->stamp->ms = s->ms;
        pthread_mutex_lock(&lock);
        if (copies) { count_copy(to, -1); count_copy(from, -1); }
        if (computes) count_kernel(s->owner, -1);
        s->done = o->position;
        s->busy = 0;
        free(o);
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
}
static Result enqueue(Stream *s, Operation operation) {
    Operation *o = malloc(sizeof *o);
    *o = operation;
    o->next = NULL;
    pthread_mutex_lock(&lock);
    Result refused = s->spoiled ? CAPTURE_INVALIDATED : SUCCESS;
    if (s == &legacy[device_of(s->owner)]) /* which waits for the blocking streams, so also for one that captures */
        for (Stream *c = streams; c; c = c->next) if (c->capturing && c->blocking && c->owner == s->owner) refused = spoil(c, CAPTURE_IMPLICIT);
    if (refused) {
        free(o);
    } else if (s->capturing) {
        if (s->captured_last) s->captured_last->next = o; else s->captured = o;
        s->captured_last = o;
    } else {
        o->position = ++s->position;
        if (s->last) s->last->next = o; else s->first = o;
        s->last = o;
    }
    pthread_mutex_unlock(&lock);
    return refused;
}
Result cuStreamCreate(void **handle, unsigned flags) {
    ENTER();
    Stream *s = calloc(1, sizeof *s);
    s->owner = current();
    s->blocking = !(flags & NON_BLOCKING);
    pthread_mutex_lock(&lock);
    s->next = streams; streams = s;
    pthread_mutex_unlock(&lock);
    count_handle(s->owner, 1);
    *handle = s;
    return SUCCESS;
}
Result cuStreamSynchronize(void *handle) {
    Result result = enter(__func__, 1);
    if (!depth) return result;
    Stream *s = stream_of(handle);
    if (!s) return INVALID_HANDLE;
    if (s->capturing) return spoil(s, CAPTURE_UNSUPPORTED);
    run_until(s, s->position);
    return result ? result : s->owner->fault;
}
Result cuStreamQuery(void *handle) {
    ENTER();
    Stream *s = stream_of(handle);
    return !s ? INVALID_HANDLE : s->capturing ? spoil(s, CAPTURE_UNSUPPORTED) : s->first ? NOT_READY : SUCCESS;
}
Result cuStreamDestroy_v2(void *handle) {
    Result result = enter(__func__, 1);
    Stream *s = depth ? stream_of(handle) : NULL;
    if (!s || s == &legacy[device_of(s->owner)]) { violation("destroyed what is not a stream of the current context"); return INVALID_HANDLE; }
    run_until(s, s->position); /* a destroyed stream still finishes its work; its struct is kept for events that point at it */
    pthread_mutex_lock(&lock);
    Stream **link = &streams;
    while (*link != s) link = &(*link)->next;
    *link = s->next;
    pthread_mutex_unlock(&lock);
    count_handle(s->owner, -1);
    return result;
}
Result cuCtxSynchronize(void) {
    Result result = enter(__func__, 1);
    if (!depth) return result;
    pthread_mutex_lock(&lock);
    Result refused = spoil(captured_by(1, current()), CAPTURE_UNSUPPORTED); /* whoever captures, in whatever mode */
    pthread_mutex_unlock(&lock);
    if (refused) return refused;
    Stream *s = stream_of(NULL);
    run_until(s, s->position);
    for (s = streams; s; s = s->next) if (s->owner == current()) run_until(s, s->position);
    return result ? result : current()->fault;
}

/* ---- copies ---- */
static Result copy(void *to, const void *from, size_t size, const void *device, void *stream, int asynchronous) {
    if (sim_device_of(device, size) != sim_current_device()) return INVALID_VALUE;
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    Result refused = enqueue(s, (Operation){.to = to, .from = from, .size = size});
    if (!refused && !asynchronous) run_until(s, s->position);
    return refused;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) { ENTER(); return copy((void *)to, from, size, (void *)to, stream, 1); }
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) { ENTER(); return copy(to, (void *)from, size, (void *)from, stream, 1); }
Result cuMemcpyHtoD_v2(Address to, const void *from, size_t size) { ENTER(); return copy((void *)to, from, size, (void *)to, NULL, 0); }
Result cuMemcpyDtoH_v2(void *to, Address from, size_t size) { ENTER(); return copy(to, (void *)from, size, (void *)from, NULL, 0); }

/* a kernel: function(data) runs when the stream gets there */
Result sim_launch(void *stream, void (*function)(void *), void *data) {
    if (!depth || current()->fault) return depth ? current()->fault : INVALID_CONTEXT;
    Stream *s = stream_of(stream);
    return s ? enqueue(s, (Operation){.function = function, .data = data}) : INVALID_HANDLE;
}

/* what a kernel of a library would read; the device, or -1 where that is no memory of one */
int sim_read(void *to, const void *from, size_t size) {
    int device = sim_device_of(from, size);
    if (device < 0) return device;
    pthread_mutex_lock(&lock);
    Allocation *a = covering(from, size);
    count_copy(a, 1);
    memcpy(to, from, size);
    count_copy(a, -1);
    pthread_mutex_unlock(&lock);
    return device;
}

/* ---- events ---- */
Result cuEventCreate(Event **event, unsigned flags) {
    ENTER();
    *event = calloc(1, sizeof **event);
    (*event)->owner = current();
    (*event)->timed = !(flags & 2); /* CU_EVENT_DISABLE_TIMING */
    count_handle(current(), 1);
    return SUCCESS;
}
Result cuEventRecord(Event *event, void *stream) {
    ENTER();
    Stream *s = stream_of(stream);
    if (!s || event->owner != current()) return INVALID_HANDLE;
    if (event->timed) enqueue(s, (Operation){.stamp = event});
    event->stream = s, event->position = s->position, event->captured = s->capturing;
    return SUCCESS;
}
Result cuEventSynchronize(Event *event) {
    Result result = enter(__func__, 1);
    if (event->captured) return spoil(event->stream, CAPTURED_EVENT);
    if (event->stream) run_until(event->stream, event->position);
    return result ? result : event->owner->fault;
}
Result cuEventQuery(Event *event) {
    ENTER();
    if (event->captured) return spoil(event->stream, CAPTURED_EVENT);
    return !event->stream || event->stream->done >= event->position ? SUCCESS : NOT_READY;
}
Result cuEventElapsedTime_v2(float *ms, Event *start, Event *end) {
    ENTER();
    Event *both[] = {start, end};
    for (int i = 0; i < 2; i++) {
        if (!both[i]->timed || !both[i]->stream || both[i]->captured || both[i]->owner != current()) return INVALID_HANDLE;
        if (both[i]->stream->done < both[i]->position) return NOT_READY;
    }
    *ms = end->ms - start->ms;
    return SUCCESS;
}
Result cuEventDestroy_v2(Event *event) { Result result = enter(__func__, 1); count_handle(event->owner, -1); if (!event->timed) free(event); return result; } /* a stamp may be under way */
Result cuStreamWaitEvent(void *stream, Event *event, unsigned flags) {
    (void)flags;
    ENTER();
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    return event->stream && event->stream != s ? enqueue(s, (Operation){.other = event->stream, .other_position = event->position}) : SUCCESS;
}

/* ---- graphs ---- */
static void free_operations(Operation *o) { while (o) { Operation *next = o->next; free(o); o = next; } }
static Graph *new_graph(void) {
    Graph *graph = malloc(sizeof *graph);
    *graph = (Graph){NULL, current()};
    count_handle(graph->owner, 1);
    return graph;
}
static Result destroy(Graph *graph, Result result) { count_handle(graph->owner, -1); free_operations(graph->first); free(graph); return result; }
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    ENTER();
    Stream *s = stream_of(stream);
    if (!s || s == &legacy[device_of(s->owner)] || s->capturing) return INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    s->capturing = 1;
    s->spoiled = 0;
    s->mode = mode;
    s->capturer = pthread_self();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
Result cuStreamEndCapture(void *stream, Graph **graph) {
    Result result = enter(__func__, 1);
    Stream *s = depth ? stream_of(stream) : NULL;
    if (!s || !s->capturing) return INVALID_HANDLE;
    if (s->mode <= THREAD_LOCAL && !pthread_equal(s->capturer, pthread_self())) return spoil(s, CAPTURE_WRONG_THREAD);
    pthread_mutex_lock(&lock);
    if (!result && s->spoiled) result = CAPTURE_INVALIDATED;
    s->capturing = s->spoiled = 0;
    Operation *captured = s->captured;
    s->captured = s->captured_last = NULL;
    pthread_mutex_unlock(&lock);
    if (result) { free_operations(captured); *graph = NULL; return result; }
    *graph = new_graph();
    (*graph)->first = captured;
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    (void)flags;
    ENTER();
    *executable = new_graph();
    Operation **last = &(*executable)->first;
    for (Operation *o = graph->first; o; o = o->next) {
        *last = malloc(sizeof **last);
        **last = *o;
        (*last)->next = NULL;
        last = &(*last)->next;
    }
    return SUCCESS;
}
Result cuGraphLaunch(Graph *executable, void *stream) {
    ENTER();
    Stream *s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    for (Operation *o = executable->first; o; o = o->next) enqueue(s, *o);
    return SUCCESS;
}
Result cuGraphDestroy(Graph *graph) { return destroy(graph, enter(__func__, 1)); }
Result cuGraphExecDestroy(Graph *graph) { return destroy(graph, enter(__func__, 1)); }

/* ---- errors, and how cuda-python finds functions ---- */
static const struct { Result code; const char *name, *text; } errors[] = { /* the texts are those of CUDA 13 */
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
static Result find_error(Result code, const char **found, int text) {
    *found = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) if (errors[i].code == code) *found = text ? errors[i].text : errors[i].name;
    return *found ? SUCCESS : INVALID_VALUE;
}
Result cuGetErrorName(Result error, const char **name) { return find_error(error, name, 0); }
Result cuGetErrorString(Result error, const char **text) { return find_error(error, text, 1); }
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
