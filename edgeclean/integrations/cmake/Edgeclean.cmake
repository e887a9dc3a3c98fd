# edgeclean in a CMake build: an untrusted checkpoint becomes a library that firmware links.
#
#   execute_process(COMMAND edgeclean integrations cmake OUTPUT_VARIABLE EDGECLEAN_DIR
#                   OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
#   include("${EDGECLEAN_DIR}/Edgeclean.cmake")
#
#   edgeclean_add_model(digits
#     CHECKPOINT digits.pth
#     MODEL_FILE digits.toml          # what the checkpoint does not say
#     CONFIG edgeclean.toml           # any setting of any stage
#     POLICY policy.toml              # gates: a build that fails one stops
#     TARGET orin-nano
#     EVALUATE test-images)           # for the accuracy gate
#   target_link_libraries(firmware PRIVATE digits)      # #include "digits.h"
#
# The network is made again when the checkpoint, or any file that was read with it, changes; the
# dependency file that edgeclean writes says which. A gate that fails stops the build and leaves the
# bundle of the last good one.
#
# Needs CMake 3.20 with Ninja or Makefiles, and C (or, with FORM incbin, ASM) enabled.

if(CMAKE_VERSION VERSION_LESS 3.20)
  message(FATAL_ERROR "edgeclean needs CMake 3.20 or later; this is ${CMAKE_VERSION}")
endif()
cmake_policy(VERSION 3.20) # of this file alone: include() keeps it from the caller

# What a project has set before stays: set(... CACHE) would take it away here, once (CMP0126).
if(NOT DEFINED EDGECLEAN_COMMAND)
  set(EDGECLEAN_COMMAND "edgeclean" CACHE STRING
      "How to run edgeclean; a list, such as /opt/venv/bin/python;-m;edgeclean")
endif()

# edgeclean_add_model(<name> CHECKPOINT <file> [...])
#
# Makes the library <name> with the network's bytes and its header. One-value arguments:
#   MODEL_FILE, CONFIG, POLICY, TARGET_FILE   files, relative to the current source folder
#   EVALUATE                                  labelled images: a folder or an .npz pack, likewise
#   TARGET, JETPACK, RATIO, SEED, THREADS     as the options of `edgeclean compress`
#   MAX_ACCURACY_DROP, MIN_SPEEDUP, MAX_SIZE  gates; they win over the policy file
#   SYMBOL, ALIGN                             of the array; <name> and 64 if not given
#   FORM                                      c (if not given), incbin, or none for no library
#   FILE                                      of the bundle, such as litert/model.tflite;
#                                             model.onnx if not given
#   OUTPUT_DIRECTORY                          relative to the current binary folder;
#                                             edgeclean/<name> if not given
# Switch: FAIL_ON_BACKDOOR. Many values: OPTIONS, further options of `edgeclean compress`;
# DEPENDS, further files or targets that the network depends on.
#
# The target <name>_bundle makes the bundle alone; with FORM none, it verifies it at each build. The
# property EDGECLEAN_BUNDLE of both targets is the bundle's folder, to install from.
function(edgeclean_add_model name)
  set(files MODEL_FILE CONFIG POLICY TARGET_FILE EVALUATE)
  set(values TARGET JETPACK RATIO SEED THREADS MAX_ACCURACY_DROP MIN_SPEEDUP MAX_SIZE)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "FAIL_ON_BACKDOOR"
    "CHECKPOINT;SYMBOL;ALIGN;FORM;FILE;OUTPUT_DIRECTORY;${files};${values}" "OPTIONS;DEPENDS")
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "edgeclean_add_model(${name}): unknown ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  if(ARG_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR
      "edgeclean_add_model(${name}): no value for ${ARG_KEYWORDS_MISSING_VALUES}")
  endif()
  if(NOT DEFINED ARG_CHECKPOINT)
    message(FATAL_ERROR "edgeclean_add_model(${name}): give CHECKPOINT")
  endif()
  foreach(default "SYMBOL=${name}" "ALIGN=64" "FORM=c" "FILE=model.onnx"
          "OUTPUT_DIRECTORY=edgeclean/${name}")
    string(REGEX MATCH "^[A-Z_]+" key "${default}")
    if(NOT DEFINED ARG_${key})
      string(REGEX REPLACE "^[A-Z_]+=" "" ARG_${key} "${default}")
    endif()
  endforeach()
  if(NOT ARG_FORM MATCHES "^(c|incbin|none)$")
    message(FATAL_ERROR "edgeclean_add_model(${name}): FORM is ${ARG_FORM}; c, incbin or none")
  endif()
  if(NOT ARG_FORM STREQUAL "none")
    _edgeclean_check_source(${name} "${ARG_SYMBOL}" "${ARG_ALIGN}" "${ARG_FORM}")
  endif()

  set(options "")
  set(inputs "")
  foreach(key ${files})
    if(DEFINED ARG_${key})
      _edgeclean_option("${key}" option)
      _edgeclean_absolute("${ARG_${key}}" path)
      list(APPEND options "${option}" "${path}")
      if(NOT IS_DIRECTORY "${path}")
        list(APPEND inputs "${path}")
      endif()
    endif()
  endforeach()
  foreach(key ${values})
    if(DEFINED ARG_${key})
      _edgeclean_option("${key}" option)
      list(APPEND options "${option}" "${ARG_${key}}")
    endif()
  endforeach()
  if(ARG_FAIL_ON_BACKDOOR)
    list(APPEND options --fail-on-backdoor)
  endif()

  _edgeclean_absolute("${ARG_CHECKPOINT}" checkpoint)
  set(folder "${ARG_OUTPUT_DIRECTORY}")
  cmake_path(ABSOLUTE_PATH folder BASE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" NORMALIZE)
  _edgeclean_plain("${folder}/bundle.d")
  set(bundle "${folder}/bundle")
  file(MAKE_DIRECTORY "${folder}")
  add_custom_command(
    OUTPUT "${bundle}/model.onnx"
    BYPRODUCTS "${bundle}/manifest.json" "${bundle}/report.json" "${bundle}/report.html"
    COMMAND ${EDGECLEAN_COMMAND} compress "${checkpoint}" ${options} ${ARG_OPTIONS}
            --quiet -o "${bundle}" --depfile "${folder}/bundle.d"
    DEPENDS "${checkpoint}" ${inputs} ${ARG_DEPENDS}
    DEPFILE "${folder}/bundle.d"
    COMMENT "edgeclean: compressing ${name}"
    VERBATIM)
  # Whoever embeds the network verifies the bundle first. Without that, every build does so here:
  # what is taken from the folder may have been changed since it was made.
  set(verified "")
  if(ARG_FORM STREQUAL "none")
    set(verified COMMAND ${EDGECLEAN_COMMAND} verify "${bundle}" --quiet
                 COMMENT "edgeclean: verifying ${name}" VERBATIM)
  endif()
  add_custom_target(${name}_bundle ${verified} DEPENDS "${bundle}/model.onnx")
  set_target_properties(${name}_bundle PROPERTIES EDGECLEAN_BUNDLE "${bundle}")
  if(NOT ARG_FORM STREQUAL "none")
    _edgeclean_library(${name} "${folder}" "${ARG_SYMBOL}" "${ARG_ALIGN}" "${ARG_FORM}"
                       "${ARG_FILE}")
  endif()
endfunction()

# Now, and not when the network was compressed.
function(_edgeclean_check_source name symbol align form)
  if(NOT symbol MATCHES "^[A-Za-z][A-Za-z0-9_]*$")
    message(FATAL_ERROR "edgeclean_add_model(${name}): ${symbol} is no name in C; give SYMBOL, in "
      "letters, digits and _")
  endif()
  if(NOT align MATCHES "^(1|2|4|8|16|32|64|128|256|512|1024|2048|4096)$")
    message(FATAL_ERROR "edgeclean_add_model(${name}): ALIGN is ${align}; a power of two up to "
      "4096")
  endif()
  set(needed C)
  if(form STREQUAL "incbin")
    list(APPEND needed ASM)
  endif()
  get_property(enabled GLOBAL PROPERTY ENABLED_LANGUAGES)
  foreach(language ${needed})
    if(NOT language IN_LIST enabled)
      message(FATAL_ERROR "edgeclean_add_model(${name}): FORM ${form} needs the language "
        "${language}; add it to project(...), or call enable_language(${language}) before")
    endif()
  endforeach()
endfunction()

function(_edgeclean_library name folder symbol align form file)
  set(bundle "${folder}/bundle")
  set(source "${folder}/source/${symbol}")
  if(form STREQUAL "c")
    set(made "${source}.c" "${source}.h")
  else()
    # As edgeclean names it: with the file's own ending, unless that is one of the sources'.
    string(REGEX MATCH "[.][^./]+$" ending "${file}")
    string(TOLOWER "${ending}" small)
    if(small MATCHES "^([.][hcsod])?$")
      set(ending ".bin")
    endif()
    set(bytes "${source}${ending}")
    set(made "${source}.S" "${source}.h" "${bytes}")
  endif()
  add_custom_command(
    OUTPUT ${made}
    COMMAND ${EDGECLEAN_COMMAND} embed "${bundle}" -o "${folder}/source" --symbol "${symbol}"
            --align "${align}" --form "${form}" --file "${file}" --quiet
    DEPENDS "${bundle}/model.onnx"
    COMMENT "edgeclean: embedding ${name}"
    VERBATIM)
  add_library(${name} STATIC ${made})
  add_dependencies(${name} ${name}_bundle)
  target_include_directories(${name} PUBLIC "${folder}/source")
  set_target_properties(${name} PROPERTIES EDGECLEAN_BUNDLE "${bundle}" LINKER_LANGUAGE C)
  if(form STREQUAL "incbin")
    # The compiler does not see through .incbin.
    set_source_files_properties("${source}.S" PROPERTIES OBJECT_DEPENDS "${bytes}")
  endif()
endfunction()

# MAX_SIZE as --max-size.
function(_edgeclean_option key result)
  string(TOLOWER "${key}" option)
  string(REPLACE "_" "-" option "${option}")
  set(${result} "--${option}" PARENT_SCOPE)
endfunction()

# The stranger may have named a file so that CMake, Ninja, Make or a shell reads an order in it.
function(_edgeclean_plain path)
  string(ASCII 1 first)
  string(ASCII 31 last)
  string(ASCII 127 delete)
  if(path MATCHES "[][;|=:%*?<>\"'`^&#$\\${first}-${last}${delete}]" OR path MATCHES "[ )]$")
    string(REGEX REPLACE "[${first}-${last}${delete}]" "?" path "${path}")
    message(FATAL_ERROR "edgeclean_add_model: ${path} holds one of ;:=|%*?[]<>&^\"'`\\$# or a "
      "control character, or ends in a space or ): the build tools do not read that alike; "
      "rename it")
  endif()
endfunction()

function(_edgeclean_absolute path result)
  cmake_path(ABSOLUTE_PATH path BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" NORMALIZE)
  _edgeclean_plain("${path}")
  set(${result} "${path}" PARENT_SCOPE)
endfunction()
