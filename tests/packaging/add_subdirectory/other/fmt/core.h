#error "the host's fmt got into varmoe"
