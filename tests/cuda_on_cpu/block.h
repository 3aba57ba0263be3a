// A block of GPU threads on one CPU thread. Each runs on a fiber, as far as it gets, and gives way only where it has to
// wait for others: at a barrier, or for its warp at a shuffle, ballot or match. (Threads that never wait share one
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

// Runs kernel(arguments) in every thread, block by block, the last block first where `last_first`. In the first block
// that runs threads begin in the same order, in the next in the other, and so on. Says what went wrong, "" if nothing did.
std::string launch(unsigned blocks, unsigned threads, unsigned bytes, bool last_first, void (*kernel)(void*),
                   void* arguments);

// Waits for all threads of the block.
void barrier();

// What the lanes of a warp get when they meet.
enum class Result { nothing, value_of_source, bit_of_each, bit_of_equals };

// Waits for the lanes of `mask` to call the same function with the same mask.
uint64_t meet(const char* function, unsigned mask, Result result, uint64_t value = 0, unsigned source = 0);

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(const char* function, unsigned mask, T value, int source) {
  const uint64_t bits = meet(function, mask, Result::value_of_source, to_bits(value), unsigned(source));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu
