#ifndef VARMOE_EXAMPLES_CUDA_DL_H_
#define VARMOE_EXAMPLES_CUDA_DL_H_

/*
 * The dozen functions of the CUDA driver that the examples need, found with dlopen so that one binary runs on machines with and
 * without a GPU. A program that always has a GPU would link libcuda or the CUDA runtime instead.
 */

#include <cuda.h>
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

struct cuda_dl {
  CUresult(CUDAAPI* init)(unsigned);
  CUresult(CUDAAPI* device_get)(CUdevice*, int);
  CUresult(CUDAAPI* retain)(CUcontext*, CUdevice);
  CUresult(CUDAAPI* release)(CUdevice);
  CUresult(CUDAAPI* set_current)(CUcontext);
  CUresult(CUDAAPI* alloc)(CUdeviceptr*, size_t);
  CUresult(CUDAAPI* free)(CUdeviceptr);
  CUresult(CUDAAPI* copy_in)(CUdeviceptr, const void*, size_t);
  CUresult(CUDAAPI* copy_out)(void*, CUdeviceptr, size_t);
  CUresult(CUDAAPI* fill)(CUdeviceptr, unsigned char, size_t);
  CUresult(CUDAAPI* stream_create)(CUstream*, unsigned);
  CUresult(CUDAAPI* stream_destroy)(CUstream);
  CUresult(CUDAAPI* stream_wait)(CUstream);
  CUresult(CUDAAPI* capture_begin)(CUstream, CUstreamCaptureMode);
  CUresult(CUDAAPI* capture_end)(CUstream, CUgraph*);
  CUresult(CUDAAPI* instantiate)(CUgraphExec*, CUgraph, unsigned long long);
  CUresult(CUDAAPI* graph_launch)(CUgraphExec, CUstream);
  CUresult(CUDAAPI* exec_destroy)(CUgraphExec);
  CUresult(CUDAAPI* graph_destroy)(CUgraph);
  CUdevice device;
};

/* Loads the driver and makes the primary context of device 0 current: the context that varmoe and the CUDA runtime use.
 * 0 when there is none. */
static int cuda_dl_open(struct cuda_dl* cuda) {
  const struct {
    const char* name;
    size_t slot;
  } wanted[] = {
      {"cuInit", offsetof(struct cuda_dl, init)},
      {"cuDeviceGet", offsetof(struct cuda_dl, device_get)},
      {"cuDevicePrimaryCtxRetain", offsetof(struct cuda_dl, retain)},
      {"cuDevicePrimaryCtxRelease_v2", offsetof(struct cuda_dl, release)},
      {"cuCtxSetCurrent", offsetof(struct cuda_dl, set_current)},
      {"cuMemAlloc_v2", offsetof(struct cuda_dl, alloc)},
      {"cuMemFree_v2", offsetof(struct cuda_dl, free)},
      {"cuMemcpyHtoD_v2", offsetof(struct cuda_dl, copy_in)},
      {"cuMemcpyDtoH_v2", offsetof(struct cuda_dl, copy_out)},
      {"cuMemsetD8_v2", offsetof(struct cuda_dl, fill)},
      {"cuStreamCreate", offsetof(struct cuda_dl, stream_create)},
      {"cuStreamDestroy_v2", offsetof(struct cuda_dl, stream_destroy)},
      {"cuStreamSynchronize", offsetof(struct cuda_dl, stream_wait)},
      {"cuStreamBeginCapture_v2", offsetof(struct cuda_dl, capture_begin)},
      {"cuStreamEndCapture", offsetof(struct cuda_dl, capture_end)},
      {"cuGraphInstantiateWithFlags", offsetof(struct cuda_dl, instantiate)},
      {"cuGraphLaunch", offsetof(struct cuda_dl, graph_launch)},
      {"cuGraphExecDestroy", offsetof(struct cuda_dl, exec_destroy)},
      {"cuGraphDestroy", offsetof(struct cuda_dl, graph_destroy)},
  };
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  CUcontext context;
  size_t i;
  if (!library) return 0;
  for (i = 0; i < sizeof wanted / sizeof wanted[0]; ++i) {
    void* address = dlsym(library, wanted[i].name);
    if (!address) return 0;
    memcpy((char*)cuda + wanted[i].slot, &address, sizeof address);
  }
  return cuda->init(0) == CUDA_SUCCESS && cuda->device_get(&cuda->device, 0) == CUDA_SUCCESS &&
         cuda->retain(&context, cuda->device) == CUDA_SUCCESS && cuda->set_current(context) == CUDA_SUCCESS;
}

#endif /* VARMOE_EXAMPLES_CUDA_DL_H_ */
