#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "engine/engine_impl.hpp"
#include "plan/routing.hpp"
#include "varmoe/error.hpp"

/// What calls have in common: checks of arguments, their launches' context, their
/// borders.
namespace varmoe::engine {

inline constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;
/// Tokens, rows and places are counted in 32 bits on the device.
inline constexpr std::int64_t kMaxCount = INT32_MAX;

inline bool aligned(const void* p, std::uintptr_t alignment) noexcept {
  return (std::bit_cast<std::uintptr_t>(p) & (alignment - 1)) == 0;
}

struct Pointer {
  const char* name;
  const void* pointer;
  std::uintptr_t alignment;
  bool required;
};

template <std::size_t N>
bool pointers_ok(const std::array<Pointer, N>& pointers) noexcept {
  return std::all_of(pointers.begin(), pointers.end(), [](const Pointer& p) {
    return p.pointer ? aligned(p.pointer, p.alignment) : !p.required;
  });
}

template <std::size_t N>
std::string pointer_problem(const std::array<Pointer, N>& pointers) {
  for (const Pointer& p : pointers) {
    if (!p.pointer && p.required) return fmt::format("{} is null", p.name);
    if (!aligned(p.pointer, p.alignment))
      return fmt::format("{} = {}: must be {}-byte aligned", p.name, fmt::ptr(p.pointer), p.alignment);
  }
  return {};
}

/// Memory that an argument names; none where it is null.
struct Span {
  const char* name;
  const void* begin;
  std::uint64_t bytes;

  bool overlaps(const Span& other) const noexcept {
    if (!begin || !other.begin || bytes == 0 || other.bytes == 0) return false;
    const auto a = std::bit_cast<std::uintptr_t>(begin), b = std::bit_cast<std::uintptr_t>(other.begin);
    return a < b ? b - a < bytes : a - b < other.bytes;
  }
};

/// Rows of two-byte elements.
inline Span rows_span(const char* name, const void* begin, std::int64_t rows, std::int64_t stride,
                      std::int64_t columns) noexcept {
  const std::int64_t elements = rows > 0 ? (rows - 1) * stride + columns : 0;
  return {name, begin, static_cast<std::uint64_t>(elements) * 2};
}

/// Of the first pair that shares memory: `a overlaps b`; empty: none does.
inline std::string overlap_problem(std::initializer_list<std::pair<Span, Span>> pairs) {
  for (const auto& [one, other] : pairs)
    if (one.overlaps(other)) return fmt::format("{} overlaps {}", one.name, other.name);
  return {};
}

inline plan::RoutingContext context_of(const Engine::Impl& engine) {
  plan::RoutingContext context;
  if (engine.on_cpu()) return context;
  context.driver = &engine.device->driver();
  // Drivers before CUDA 12.3 cannot capture such launches.
  context.dependent_launch =
      engine.device->attributes().compute_major >= 9 && engine.device->driver().version() >= 12030;
  return context;
}

/// Runs `f`; what it throws becomes an error.
template <class F>
auto guarded(F&& f) noexcept -> decltype(f()) try {
  return f();
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

inline Error moved_from(const char* call, const char* what) {
  return {ErrorCode::invalid_argument, fmt::format("{} on a {} that was moved from", call, what)};
}

}  // namespace varmoe::engine
