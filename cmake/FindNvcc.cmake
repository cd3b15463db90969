# Finds nvcc and what it can build, and sets
#   FASTLSTM_NVCC          its path, empty where the CUDA kernels are not to be built
#   FASTLSTM_NVCC_LIB      the folder of its static runtime library
#   FASTLSTM_CUDA_REASON   why the CUDA kernels are not built
#   FASTLSTM_CUDA_BUILT    the architectures to build for: 80;90;…
# from FASTLSTM_CUDA (auto, on, off) and FASTLSTM_CUDA_ARCHS (a list such as 80,90; empty: all that fastlstm knows). 90a is
# machine code for 9.0 alone, with the instructions that only 9.0 has.

set(FASTLSTM_CUDA auto CACHE STRING "Build the CUDA kernels: auto (where nvcc is found), on, off")
set(FASTLSTM_CUDA_ARCHS "" CACHE STRING "GPU architectures, such as 80,90; empty: all that fastlstm knows")
set(FASTLSTM_ALL_ARCHS 75 80 86 89 90 100 120)

# CUDACXX goes first, then the system's, then the one that PyPI's nvidia-cuda-nvcc put into a site-packages folder.
function(fastlstm_find_nvcc found)
  set(${found} "" PARENT_SCOPE)
  if(DEFINED ENV{CUDACXX} AND NOT "$ENV{CUDACXX}" STREQUAL "")
    set(${found} "$ENV{CUDACXX}" PARENT_SCOPE)
    return()
  endif()
  find_program(FASTLSTM_NVCC_ON_PATH nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(FASTLSTM_NVCC_ON_PATH)
    set(${found} "${FASTLSTM_NVCC_ON_PATH}" PARENT_SCOPE)
    return()
  endif()
  set(search "import sys, sysconfig, pathlib
folders = [sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), *sys.path]
tools = [p for f in folders if f for p in sorted(pathlib.Path(f, 'nvidia').glob('cu*/bin/nvcc'))]
print(tools[-1] if tools else '', end='')")
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${search}" OUTPUT_VARIABLE path)
  set(${found} "${path}" PARENT_SCOPE)
endfunction()

# The folder with libcudart_static.a. nvcc may be a script that calls the real one, so it is asked itself.
function(fastlstm_nvcc_lib nvcc found)
  set(${found} "" PARENT_SCOPE)
  execute_process(COMMAND ${nvcc} --dryrun -x cu -c /dev/null -o /dev/null ERROR_VARIABLE said OUTPUT_QUIET)
  string(REGEX MATCH "#\\$ TOP=([^\n]*)" line "${said}")
  string(STRIP "${CMAKE_MATCH_1}" top)
  find_file(FASTLSTM_CUDART_STATIC libcudart_static.a
    PATHS "${top}/lib" "${top}/lib64" "${top}/targets/x86_64-linux/lib" "${top}/targets/sbsa-linux/lib" NO_DEFAULT_PATH)
  if(FASTLSTM_CUDART_STATIC)
    get_filename_component(folder "${FASTLSTM_CUDART_STATIC}" DIRECTORY)
    get_filename_component(folder "${folder}" REALPATH)
    set(${found} "${folder}" PARENT_SCOPE)
  endif()
endfunction()

# The wanted architectures that this nvcc knows.
function(fastlstm_archs nvcc found)
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known)
  string(REGEX REPLACE "[ ,]+" ";" wanted "${FASTLSTM_CUDA_ARCHS}")
  if(NOT wanted)
    set(wanted ${FASTLSTM_ALL_ARCHS})
  endif()
  set(usable "")
  foreach(arch ${wanted})
    string(REGEX REPLACE "a$" "" number "${arch}")
    if(NOT number MATCHES "^[0-9]+$" OR number LESS 75 OR (arch MATCHES "a$" AND number LESS 90))
      message(FATAL_ERROR "FASTLSTM_CUDA_ARCHS has '${arch}', expected numbers from 75 on, such as 80,90; "
        "from 90 on also such as 90a")
    endif()
    if(known MATCHES "compute_${number}\n")  # a list without the a's, which came with their numbers
      list(APPEND usable ${arch})
    elseif(FASTLSTM_CUDA_ARCHS)
      message(FATAL_ERROR "FASTLSTM_CUDA_ARCHS has ${arch}, which ${nvcc} does not know; use a newer nvcc, or others")
    endif()
  endforeach()
  list(SORT usable COMPARE NATURAL)
  set(${found} "${usable}" PARENT_SCOPE)
endfunction()

# The architectures as CMAKE_CUDA_ARCHITECTURES has them: machine code for each, and PTX of the newest that has no letter.
function(fastlstm_targets archs found)
  set(plain ${archs})
  list(FILTER plain INCLUDE REGEX "^[0-9]+$")
  list(POP_BACK plain newest)
  set(targets "")
  foreach(arch ${archs})
    if(arch STREQUAL newest)
      list(APPEND targets ${arch})  # a number without -real: machine code and PTX
    else()
      list(APPEND targets ${arch}-real)
    endif()
  endforeach()
  set(${found} "${targets}" PARENT_SCOPE)
endfunction()

# Whether this nvcc accepts the C++ compiler, by compiling a kernel; if not, its words.
function(fastlstm_nvcc_fails nvcc why)
  set(probe "${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe")
  file(WRITE "${probe}.cu" "#include <cuda_runtime.h>\n__global__ void probe(float* x) { *x = __builtin_bit_cast(float, 1); }\n")
  execute_process(COMMAND ${nvcc} -std=c++17 -ccbin ${CMAKE_CXX_COMPILER} -c "${probe}.cu" -o "${probe}.o"
    RESULT_VARIABLE code ERROR_VARIABLE said OUTPUT_VARIABLE said)
  set(${why} "" PARENT_SCOPE)
  if(NOT code EQUAL 0)
    string(REGEX MATCH "[^\n]*error[^\n]*" line "${said}")
    set(${why} "${nvcc} does not work with ${CMAKE_CXX_COMPILER}: ${line}" PARENT_SCOPE)
  endif()
endfunction()

set(FASTLSTM_NVCC "")
if(FASTLSTM_CUDA STREQUAL "off")
  set(FASTLSTM_CUDA_REASON "it was built with FASTLSTM_CUDA=off")
elseif(NOT FASTLSTM_CUDA MATCHES "^(auto|on)$")
  message(FATAL_ERROR "FASTLSTM_CUDA is '${FASTLSTM_CUDA}', expected auto, on or off")
else()
  fastlstm_find_nvcc(FASTLSTM_NVCC)
  if(NOT FASTLSTM_NVCC)
    set(FASTLSTM_CUDA_REASON "no nvcc was found when it was built")
  else()
    fastlstm_nvcc_fails(${FASTLSTM_NVCC} FASTLSTM_CUDA_REASON)
    fastlstm_nvcc_lib(${FASTLSTM_NVCC} FASTLSTM_NVCC_LIB)
    if(NOT FASTLSTM_CUDA_REASON AND NOT FASTLSTM_NVCC_LIB)
      set(FASTLSTM_CUDA_REASON "${FASTLSTM_NVCC} came without libcudart_static.a")
    endif()
    if(FASTLSTM_CUDA_REASON)
      set(FASTLSTM_NVCC "")
    else()
      fastlstm_archs(${FASTLSTM_NVCC} FASTLSTM_CUDA_BUILT)
    endif()
  endif()
  if(FASTLSTM_CUDA STREQUAL "on" AND NOT FASTLSTM_NVCC)
    message(FATAL_ERROR "FASTLSTM_CUDA is on, but ${FASTLSTM_CUDA_REASON}. Install a CUDA toolkit, or: "
      "pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' "
      "'nvidia-cuda-cccl==13.0.*' 'nvidia-nvvm==13.0.*'")
  endif()
endif()
