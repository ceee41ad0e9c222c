#error "the host's spdlog got into varmoe"
