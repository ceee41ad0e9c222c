#pragma once

#include <set>
#include <string>
#include <vector>

#include "kernels/families.hpp"
#include "varmoe/error.hpp"

/// What disassembled kernels are made of.
namespace kernels_test {

/// Compiles and disassembles.
varmoe::Result<std::string> machine_code(const Kernel& kernel, const std::string& arch);

/// Opcodes without modifiers: "HMMA", "LDGSTS", …; whole tokens at the place of the opcode, in nvdisasm's and
/// cuobjdump's form.
std::set<std::string> opcodes(const std::string& sass);

/// Opcodes with modifiers of the loops that multiply: around each HGMMA the shortest stretch from a branch's
/// target to the branch. Targets are labels to nvdisasm, addresses to cuobjdump.
std::set<std::string> main_loop(const std::string& sass);

/// A fence of all of the GPU's memory.
bool is_device_fence(const std::string& opcode);

/// What of `needed` is absent, local memory, and on Hopper what a main loop must not have; empty: nothing.
std::string code_problem(const Kernel& kernel, const std::string& sass,
                         const std::vector<std::string>& needed);

/// The same of fc1 and fc2, which also multicast in clusters alone.
std::string product_problem(const Kernel& kernel, const std::string& sass);

}  // namespace kernels_test
