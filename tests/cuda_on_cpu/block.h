// A block of GPU threads on one CPU thread. Each runs on a fiber, as far as it gets, and gives way only where it has to
// wait for others: at a barrier, or for its warp at a shuffle or ballot. (Threads that never wait share one
// fiber and cost no switch.) Waiting for what cannot come any more is an error, and so is a shuffle from a lane that
// takes no part. Shared memory is all NaN before each block, and ends for AddressSanitizer where it should.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned most_memory = 227 << 10;  // bytes that a block may share

// Runs kernel(arguments) in every thread, block by block, the last block first where `last_first`. The threads of the
// first block that runs begin in the same order, those of the next in the other, and so on. Says what went wrong, "" if
// nothing did.
std::string launch(unsigned blocks, unsigned threads, unsigned bytes, bool last_first, void (*kernel)(void*),
                   void* arguments);

// Waits for all threads of the block.
void barrier();

// Waits for the lanes of `mask` to call the same function with the same mask, and gives the value of one of them, or
// `of_each` of them a bit.
constexpr unsigned of_each = 32;
uint64_t meet(const char* function, unsigned mask, uint64_t value, unsigned source);

template <class T>
T shuffle(const char* function, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(function, mask, bits, unsigned(source));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu
