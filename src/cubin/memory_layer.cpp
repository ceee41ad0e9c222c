#include "cubin/memory_layer.hpp"

#include <algorithm>

namespace varmoe::cubin {

std::vector<MemoryLayer::Record> MemoryLayer::find(const Digest& key) const {
  const std::lock_guard lock(mutex_);
  std::vector<Record> records;
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    for (const Slots::iterator& slot : found->second) records.push_back(slot->record);
  }
  return records;
}

void MemoryLayer::insert(const Digest& key, Record record, std::uint64_t max_bytes) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    for (const Slots::iterator& slot : found->second) {
      if (slot->record.binary->compiler != record.binary->compiler) continue;
      record.as_is = record.as_is || slot->record.as_is;
      drop(slot);
      break;
    }
  }
  bytes_ += record.binary->image.size();
  slots_.push_back(Slot{key, std::move(record)});
  by_key_[key].push_back(std::prev(slots_.end()));
  // The newest stays even when it alone is above the bound.
  while (max_bytes != 0 && bytes_ > max_bytes && slots_.size() > 1) drop(slots_.begin());
}

void MemoryLayer::touch(const Digest& key, const KernelBinary* binary) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  for (const Slots::iterator& slot : found->second) {
    if (slot->record.binary.get() == binary) slots_.splice(slots_.end(), slots_, slot);
  }
}

void MemoryLayer::erase(const Digest& key) {
  const std::lock_guard lock(mutex_);
  while (true) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return;
    drop(found->second.front());
  }
}

void MemoryLayer::clear() {
  const std::lock_guard lock(mutex_);
  by_key_.clear();
  slots_.clear();
  bytes_ = 0;
}

std::uint64_t MemoryLayer::entries() const {
  const std::lock_guard lock(mutex_);
  return slots_.size();
}

std::uint64_t MemoryLayer::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void MemoryLayer::drop(Slots::iterator slot) {
  const auto found = by_key_.find(slot->key);
  std::erase(found->second, slot);
  if (found->second.empty()) by_key_.erase(found);
  bytes_ -= slot->record.binary->image.size();
  slots_.erase(slot);
}

}  // namespace varmoe::cubin
