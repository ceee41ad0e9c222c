#pragma once

#include <string>

#include "tools/tune/report_data.hpp"

namespace varmoe::tools {

/// One page that needs nothing else: no script, style, font or picture from elsewhere. The same data gives
/// the same bytes.
std::string report_html(const ReportData& data);

}  // namespace varmoe::tools
