# Install rules: libraries, headers, programs, find_package(varmoe_jit) and pkg-config files.
include(CMakePackageConfigHelpers)

set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/varmoe_jit)
install(TARGETS varmoe_jit varmoe_jit_static EXPORT varmoe_jitTargets
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/varmoe DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/varmoe_jit)
install(EXPORT varmoe_jitTargets NAMESPACE varmoe:: DESTINATION ${_package_dir})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/varmoe_jitConfig.cmake.in
  ${PROJECT_BINARY_DIR}/varmoe_jitConfig.cmake INSTALL_DESTINATION ${_package_dir})
# Before 1.0 a minor version may break the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/varmoe_jitConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/varmoe_jitConfig.cmake ${PROJECT_BINARY_DIR}/varmoe_jitConfigVersion.cmake
        DESTINATION ${_package_dir})
# The .pc file finds its prefix from its own place, so that an installed tree may be moved.
file(RELATIVE_PATH VARMOE_PC_PREFIX /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
configure_file(${PROJECT_SOURCE_DIR}/cmake/varmoe_jit.pc.in ${PROJECT_BINARY_DIR}/varmoe_jit.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/varmoe_jit.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(TARGET varmoe-tune)
  install(TARGETS varmoe-tune RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(TARGET varmoe-bench)
  install(TARGETS varmoe-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
