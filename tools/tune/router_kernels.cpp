#include "tools/tune/router_kernels.hpp"

#include <fmt/format.h>

#include <map>
#include <string>
#include <utility>

#include "emit/emitter.hpp"
#include "emit/routing.hpp"

namespace varmoe::tools {

std::vector<RouterSpec> routers_of(const std::vector<InputLayer>& layers) {
  std::map<std::string, RouterSpec> routers;
  for (const InputLayer& layer : layers)
    if (layer.router) routers.try_emplace(router_signature(*layer.router), *layer.router);
  std::vector<RouterSpec> distinct;
  for (const auto& [signature, router] : routers) distinct.push_back(router);
  return distinct;
}

Result<std::vector<engine::UnitRequest>> router_requests(const RouterSpec& router,
                                                         engine::KernelBuilder& builder) {
  auto emitted = emit::emit_router_kernels(router);
  if (!emitted) return emitted.error();
  std::vector<engine::UnitRequest> requests;
  for (emit::EmittedKernel& kernel : *emitted) {
    requests.push_back({emit::to_string(kernel.stage), fmt::format("block_threads={}", kernel.block_threads),
                        false, builder.unit(std::move(kernel))});
  }
  return requests;
}

}  // namespace varmoe::tools
