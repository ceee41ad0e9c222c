#pragma once

#include "abi.cuh"

// Words that every kernel uses. Device code gets no header but ours: NVRTC compiles it hermetically.

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define VARMOE_DEVICE __device__ __forceinline__
#define VARMOE_SHARED_CODE __host__ __device__ __forceinline__
// NVRTC has neither offsetof nor __builtin_offsetof; its front end's own form of them is constant.
#define VARMOE_OFFSET_OF(type, field) __INTADDR__(&(((type*)0)->field))
#else
// The host includes schedule/ for its own launch arithmetic and tests.
#define VARMOE_SHARED_CODE inline
#endif

namespace varmoe {

VARMOE_SHARED_CODE constexpr i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }
VARMOE_SHARED_CODE constexpr i32 min_of(i32 a, i32 b) { return a < b ? a : b; }
VARMOE_SHARED_CODE constexpr i32 max_of(i32 a, i32 b) { return a > b ? a : b; }

/// Element types by their PTX names; both are two bytes, so that memory movement never asks.
enum class Element : i32 { bf16 = 0, fp16 = 1 };

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
/// A if kYes, else B; the standard's conditional_t, without its header.
template <bool kYes, class A, class B>
struct SelectType {
  using type = A;
};
template <class A, class B>
struct SelectType<false, A, B> {
  using type = B;
};

/// Sixteen bytes: eight elements, the unit of every global access.
struct alignas(16) Vec16 {
  u32 v[4];
};
#endif

}  // namespace varmoe
