#pragma once

#include "prelude.cuh"
#include "tile/operand_columns.cuh"
#include "tile/operand_rows.cuh"

namespace varmoe::tile {

/// The weight operand of a block tile: rows of nk weights, columns of kn weights.
template <class Config, bool kKn, bool kTwoHalves, int kThreads>
using WeightOperand =
    typename SelectType<kKn, StridedColumns<Config::kBlockN, Config::kBlockK, kThreads, kTwoHalves>,
                        StridedRows<Config::kBlockN, Config::kBlockK, kThreads, kTwoHalves>>::type;

}  // namespace varmoe::tile
