// What every file has that is compiled once per instruction set: CMakeLists.txt sets FASTLSTM_ISA and
// FASTLSTM_ISA_NAME.
#pragma once
#include "threading.h"
#include "workspace.h"

#define FASTLSTM_JOIN2(a, b) a##b
#define FASTLSTM_JOIN(a, b) FASTLSTM_JOIN2(a, b)
// The name of this set's table of kernels: kernels_avx2 for the prefix kernels_
#define FASTLSTM_TABLE(prefix) FASTLSTM_JOIN(prefix, FASTLSTM_ISA)

namespace FASTLSTM_ISA {

constexpr auto kName = FASTLSTM_ISA_NAME;

// Gives back the scratch memory that up to `threads` threads keep.
inline void empty_workspaces(int threads) {
  parallel_for(threads, threads, [](int64_t) { Workspace::clear(); });
}

}  // namespace FASTLSTM_ISA
