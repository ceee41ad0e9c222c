#pragma once

/// VARMOE_API marks what the shared library exports; everything else is hidden.
#if defined(VARMOE_STATIC)
#define VARMOE_API
#elif defined(__GNUC__)
#define VARMOE_API __attribute__((visibility("default")))
#else
#define VARMOE_API
#endif
