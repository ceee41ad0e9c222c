#pragma once

/// Everything of the C++ API. The C API is varmoe.h.
#include "varmoe/blocks.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_gradient.hpp"
#include "varmoe/router_spec.hpp"
#include "varmoe/router_statistics.hpp"
#include "varmoe/training.hpp"
#include "varmoe/tuning.hpp"
#include "varmoe/version.hpp"
#include "varmoe/weights.hpp"
