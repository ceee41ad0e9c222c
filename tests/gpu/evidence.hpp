#pragma once

#include <string>

#include "oracle/compare.hpp"

/// What a run of the suite leaves for last_run.json.
namespace gpu {

/// Remembers the largest errors of a group of cases ("targets bf16").
void record_errors(const std::string& group, const oracle::Comparison& comparison);
/// Remembers a number worth keeping ("prepare warm, ms").
void record_number(const std::string& name, double value);
/// Writes them as JSON to the file that VARMOE_GPU_EVIDENCE names, if it names one.
void write_evidence();

}  // namespace gpu
