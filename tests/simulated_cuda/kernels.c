/* Modules and kernels for the simulated driver: a module is the path of a shared object, built by cc from CUDA's C.

   A kernel takes five arguments of eight bytes and runs thread by thread, so it may not use __syncthreads. The shared
   object has sim_thread(block, thread, width), which sets its blockIdx, threadIdx and blockDim. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { SUCCESS = 0, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, ARGUMENTS = 5 };
typedef void (*Kernel)(void *, void *, void *, void *, void *);
typedef struct { Kernel kernel; void (*thread)(unsigned, unsigned, unsigned); } Function;
typedef struct { Function function; unsigned blocks, width; void *arguments[ARGUMENTS]; } Launch;

int sim_depth(void);
void sim_launch(void *stream, void (*function)(void *), void *data);

Result cuModuleLoadData(void **module, const void *image) {
    if (!sim_depth()) return INVALID_CONTEXT;
    *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    return *module ? SUCCESS : INVALID_IMAGE;
}
Result cuModuleGetFunction(Function **function, void *module, const char *name) {
    Function found = {(Kernel)dlsym(module, name), (void (*)(unsigned, unsigned, unsigned))dlsym(module, "sim_thread")};
    if (!found.kernel || !found.thread) return NOT_FOUND;
    *function = malloc(sizeof found);
    **function = found;
    return SUCCESS;
}
static void run(void *data) {
    Launch *l = data;
    for (unsigned block = 0; block < l->blocks; block++)
        for (unsigned thread = 0; thread < l->width; thread++) {
            l->function.thread(block, thread, l->width);
            l->function.kernel(l->arguments[0], l->arguments[1], l->arguments[2], l->arguments[3], l->arguments[4]);
        }
}
Result cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra) {
    (void)grid_y; (void)grid_z; (void)block_y; (void)block_z; (void)shared; (void)extra;
    if (!sim_depth()) return INVALID_CONTEXT;
    Launch *l = malloc(sizeof *l); /* kept for good: a graph may launch it again */
    *l = (Launch){.function = *function, .blocks = grid_x, .width = block_x};
    for (int i = 0; i < ARGUMENTS; i++) memcpy(&l->arguments[i], parameters[i], sizeof(void *));
    sim_launch(stream, run, l);
    return SUCCESS;
}
