# What `cmake --install` puts under the prefix: the program, the C++ API as one static library with
# its header, and a package for find_package(duet), whose target is duet::duet.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The rooms that the engine stands on, merged: an embedder links one file and never sees the rooms.
set(duet_merged ${CMAKE_BINARY_DIR}/libduet.a)
set(merge_script "CREATE ${duet_merged}\n")
set(merge_rooms "")
foreach(room base tensor kernels comm overlap exec sim load model text engine)
  get_target_property(type duet_${room} TYPE)
  if(NOT type STREQUAL "INTERFACE_LIBRARY")
    string(APPEND merge_script "ADDLIB $<TARGET_FILE:duet_${room}>\n")
    list(APPEND merge_rooms duet_${room})
  endif()
endforeach()
string(APPEND merge_script "SAVE\nEND\n")
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/libduet.mri CONTENT "${merge_script}")
add_custom_command(OUTPUT ${duet_merged}
  COMMAND ${CMAKE_COMMAND} -E rm -f ${duet_merged}
  COMMAND ${CMAKE_AR} -M < ${CMAKE_BINARY_DIR}/libduet.mri
  COMMAND ${CMAKE_RANLIB} ${duet_merged}
  DEPENDS ${merge_rooms} ${CMAKE_BINARY_DIR}/libduet.mri VERBATIM)
add_custom_target(duet_merged ALL DEPENDS ${duet_merged})

# The MPI library is named by its file: another one found on the embedder's machine would not do.
set(DUET_LINK_MPI "")
if(NOT DUET_MPI STREQUAL "off")
  set(DUET_LINK_MPI ${MPI_CXX_LIBRARIES})
endif()
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/duet-config.cmake.in
  ${CMAKE_BINARY_DIR}/duet-config.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/duet
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/duet-config-version.cmake COMPATIBILITY SameMinorVersion)

if(TARGET duet)
  install(TARGETS duet RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/duet DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${duet_merged} DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${CMAKE_BINARY_DIR}/duet-config.cmake ${CMAKE_BINARY_DIR}/duet-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/duet)
