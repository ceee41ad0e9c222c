#pragma once

/// VARMOE_API marks what the shared library exports; everything else is hidden.
#if defined(VARMOE_STATIC)
#define VARMOE_API
#elif defined(__GNUC__)
#define VARMOE_API __attribute__((visibility("default")))
#else
#define VARMOE_API
#endif

/// VARMOE_HIDDEN marks what lies inside an exported class and is not exported itself.
#if defined(__GNUC__)
#define VARMOE_HIDDEN __attribute__((visibility("hidden")))
#else
#define VARMOE_HIDDEN
#endif
