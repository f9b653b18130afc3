# One library per folder of src/. A target sees only the headers of the rooms it names (and of
# those they name): each room's headers are reached through a folder of its own that holds one
# link, so an include that points up does not compile.
function(duet_room name)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS" ${ARGN})
  set(gate ${DUET_ROOMS}/${name})
  file(MAKE_DIRECTORY ${gate})
  if(NOT EXISTS ${gate}/${name})
    file(CREATE_LINK ${CMAKE_SOURCE_DIR}/src/${name} ${gate}/${name} SYMBOLIC)
  endif()
  # For the test of the arrows: the room and everything it may include.
  set(reach ${name})
  foreach(dep ${ARG_DEPS})
    get_property(below GLOBAL PROPERTY duet_reach_${dep})
    list(APPEND reach ${below})
  endforeach()
  list(REMOVE_DUPLICATES reach)
  set_property(GLOBAL PROPERTY duet_reach_${name} ${reach})
  list(JOIN reach " " reach_text)
  file(APPEND ${DUET_ROOMS}/reach.txt.new "${name} ${reach_text}\n")
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cc)
  if(name STREQUAL cli)
    list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  endif()
  list(TRANSFORM ARG_DEPS PREPEND duet_ OUTPUT_VARIABLE deps)
  if(sources)
    add_library(duet_${name} STATIC ${sources})
    target_include_directories(duet_${name} PUBLIC ${gate})
    target_link_libraries(duet_${name} PUBLIC ${deps} PRIVATE duet_warnings ${ARG_LIBS})
    # Half of a file's compilation is its headers. The kernels' files have flags and names of their own.
    if(DUET_UNITY AND NOT name STREQUAL "kernels")
      set_target_properties(duet_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # A class of a header whose members have types that its file keeps to itself: no fault where one file has it.
        target_compile_options(duet_${name} PRIVATE -Wno-subobject-linkage)
      endif()
    endif()
    if(name STREQUAL cli)  # nothing here takes time but its own compilation
      if(DUET_SANITIZE)
        target_compile_options(duet_cli PRIVATE -O0)
      else()
        target_compile_options(duet_cli PRIVATE -O1)
      endif()
    endif()
    if(DUET_SANITIZE MATCHES "undefined" AND NOT name MATCHES "^(base|tensor|kernels|comm|load)$")
      # Where no raw memory is handled these checks find what ASan finds, and double the time to compile.
      target_compile_options(duet_${name} PRIVATE -fno-sanitize=null,object-size,vptr,pointer-overflow,alignment)
    endif()
    foreach(source ${sources})
      # A kernel file names the instruction set it is written for. No -march elsewhere: the
      # binary starts on any x86-64 and chooses at run time. (GCC 12 takes the undefined operands in
      # its own AVX-512 intrinsics for uninitialised variables.)
      if(source MATCHES "_avx2\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
      elseif(source MATCHES "_avx512\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
          "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mprefer-vector-width=512;-Wno-maybe-uninitialized;-Wno-uninitialized")
      elseif(source MATCHES "_amx\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
          "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mamx-tile;-mamx-bf16;-mamx-int8;-mprefer-vector-width=512;-Wno-maybe-uninitialized;-Wno-uninitialized")
      elseif(source MATCHES "_avx512bf16\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
          "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-mavx512bf16;-mprefer-vector-width=512;-Wno-maybe-uninitialized;-Wno-uninitialized")
      endif()
      if(DUET_SANITIZE MATCHES "undefined" AND source MATCHES "_(avx512|avx512bf16|amx)\\.cc$")
        # Half of the room's time to compile, on machines that mostly can't run them; ASan and the oracles watch them.
        set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined)
      endif()
    endforeach()
  else()
    add_library(duet_${name} INTERFACE)
    target_include_directories(duet_${name} INTERFACE ${gate})
    target_link_libraries(duet_${name} INTERFACE ${deps})
  endif()
endfunction()

# Tests keep measured costs in the build folder, not in the home of who runs them.
set(DUET_TEST_ENV XDG_CACHE_HOME=${CMAKE_BINARY_DIR}/cache)

# How the tests' own code is compiled (what they test keeps its flags): most of a build's time would go into
# optimizing gtest's macros, and twice that into checking them for undefined behaviour.
set(DUET_TEST_OPTIONS "")
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  set(DUET_TEST_OPTIONS -O1)
endif()
if(DUET_SANITIZE)
  set(DUET_TEST_OPTIONS -O0)
endif()
if(DUET_SANITIZE MATCHES "undefined")
  list(APPEND DUET_TEST_OPTIONS -fno-sanitize=undefined)
endif()

# tests/<folder>/*.cc → one binary test_<folder>, every case a ctest of its own. SLOW: a gtest filter of cases
# that get the label <folder>-slow instead of <folder>.
function(duet_tests folder)
  cmake_parse_arguments(ARG "" "SLOW" "DEPS;LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${folder}/*.cc)
  if(NOT sources)
    return()
  endif()
  list(TRANSFORM ARG_DEPS PREPEND duet_ OUTPUT_VARIABLE deps)
  add_executable(test_${folder} ${sources})
  target_include_directories(test_${folder} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(test_${folder} PRIVATE
    DUET_FIXTURES="${CMAKE_SOURCE_DIR}/tests/fixtures" DUET_MODELS="${CMAKE_SOURCE_DIR}/models")
  target_compile_options(test_${folder} PRIVATE ${DUET_TEST_OPTIONS})
  target_link_libraries(test_${folder} PRIVATE ${deps} duet_warnings GTest::gtest GTest::gmock GTest::gtest_main ${ARG_LIBS})
  set(others "*")
  if(ARG_SLOW)
    gtest_discover_tests(test_${folder} TEST_FILTER ${ARG_SLOW} DISCOVERY_TIMEOUT 60
      PROPERTIES TIMEOUT 300 LABELS "${folder}-slow" ENVIRONMENT ${DUET_TEST_ENV})  # one label: discovery can't pass a list
    set(others "-${ARG_SLOW}")
  endif()
  gtest_discover_tests(test_${folder} TEST_FILTER ${others} DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT 300 LABELS "${folder}" ENVIRONMENT ${DUET_TEST_ENV})
endfunction()
