#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/digest.hpp"
#include "base/kernel_artifact.hpp"

namespace varmoe::cubin {

/// Kernels of this process in memory, least recently used first out. Thread-safe.
class MemoryLayer {
 public:
  struct Record {
    std::shared_ptr<const KernelBinary> binary;
    /// From a read-only layer: good for everyone, whatever NVRTC is at hand.
    bool as_is = false;
  };

  /// Everything kept under a key: one record a compiler version, newest use last.
  std::vector<Record> find(const Digest& key) const;
  /// Replaces the record of the same compiler version; an as_is record stays as_is. `max_bytes` 0: no bound.
  void insert(const Digest& key, Record record, std::uint64_t max_bytes);
  void touch(const Digest& key, const KernelBinary* binary);
  void erase(const Digest& key);
  void clear();
  std::uint64_t entries() const;
  std::uint64_t bytes() const;

 private:
  struct Slot {
    Digest key;
    Record record;
  };
  using Slots = std::list<Slot>;
  void drop(Slots::iterator slot);

  mutable std::mutex mutex_;
  Slots slots_;  // least recently used first
  std::map<Digest, std::vector<Slots::iterator>> by_key_;
  std::uint64_t bytes_ = 0;
};

}  // namespace varmoe::cubin
