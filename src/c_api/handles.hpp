#pragma once

#include <utility>

#include "varmoe/blocks.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_gradient.hpp"
#include "varmoe/router_statistics.hpp"
#include "varmoe/training.hpp"
#include "varmoe/varmoe.h"

/// What the opaque handles point to.
struct varmoe_engine {
  varmoe::Engine engine;
};
struct varmoe_layer {
  varmoe::Layer layer;
};
struct varmoe_training_layer {
  varmoe::TrainingLayer layer;
};
struct varmoe_blocks {
  varmoe::Blocks blocks;
};
struct varmoe_report {
  varmoe::PrepareReport report;
};
struct varmoe_router {
  varmoe::Router router;
};
struct varmoe_block_aligner {
  varmoe::BlockAligner aligner;
};
struct varmoe_router_statistics {
  varmoe::RouterStatistics statistics;
};
struct varmoe_router_gradient {
  varmoe::RouterGradient gradient;
};
