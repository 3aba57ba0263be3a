// A block of GPU threads on one CPU thread. Each runs on a fiber, as far as it gets, and gives way only where it has to
// wait for others: at a barrier, or for its warp at a shuffle, ballot or match. (Threads that never wait share one
// fiber and cost no switch.) Waiting for what cannot come any more is an error, and so is a shuffle from a lane that
// takes no part. Shared memory is all NaN before each block, and with AddressSanitizer it ends where it should.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size)
#define ASAN_UNPOISON_MEMORY_REGION(start, size)
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

namespace fastenh {
inline char memory[227 << 10] __attribute__((aligned(16)));  // what kernels call extern __shared__ char memory[]
}

// Leaves one stack, keeping at `from` where it was, and goes on with another. The registers are those that x86-64
// functions keep for their callers. (swapcontext would do it too, but clears AddressSanitizer's notes of whole stacks.)
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
    .weak cuda_on_cpu_switch
    .hidden cuda_on_cpu_switch
cuda_on_cpu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

namespace cuda_on_cpu {

struct Fiber {
  static constexpr size_t size = 256 << 10, guard = 64 << 10;
  char* memory = nullptr;  // the guard, then the stack; none for the fiber that the host calls from
  void* at = nullptr;      // where on its stack it left
  const void* stack = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's

  Fiber() = default;
  explicit Fiber(void (*start)()) {
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapped = mmap(nullptr, guard + size, PROT_READ | PROT_WRITE, kind, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, guard, PROT_NONE)) throw std::bad_alloc();
    memory = static_cast<char*>(mapped);
    stack = memory + guard, stack_size = size;
    void** top = reinterpret_cast<void**>(memory + guard + size) - 1;
    *top = nullptr, top[-1] = reinterpret_cast<void*>(start);  // where `start` returns to (never), and `start` for ret
    at = top - 7;  // six registers
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (!memory) return;
    ASAN_UNPOISON_MEMORY_REGION(stack, size);
    munmap(memory, guard + size);
  }
};

struct Thread {
  unsigned id = 0;  // threadIdx.x
  Fiber* fiber = nullptr;
  const char* waits = nullptr;  // for others to call this function too
  bool ended = false;
  unsigned mask = 0, source = 0;  // at a function of the warp: who takes part, and whose value this lane wants
  uint64_t value = 0, result = 0;
};

struct Block {
  std::function<void()> kernel;
  bool reversed = false;        // the last thread first
  std::vector<Thread> threads;  // by threadIdx.x
  size_t started = 0, at_barrier = 0;
  std::deque<Thread*> ready;  // threads that waited and may go on
  Thread* running = nullptr;
  Fiber host, *fiber = &host, *before = nullptr;  // the host's; the one that runs; the one that ran before
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::string error;
};
inline Block block;

// ---- fibers ----

inline void arrive() {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(block.fiber->fake_stack, &stack, &size);
  if (block.before == &block.host) block.host.stack = stack, block.host.stack_size = size;
#endif
}

inline void switch_to(Fiber* to) {
  block.before = block.fiber, block.fiber = to;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&block.before->fake_stack, to->stack, to->stack_size);
#endif
  cuda_on_cpu_switch(&block.before->at, to->at);
  arrive();
}

inline void start_threads();

inline Fiber* idle_fiber() {
  if (block.idle.empty()) return block.fibers.emplace_back(std::make_unique<Fiber>(&start_threads)).get();
  Fiber* fiber = block.idle.back();
  block.idle.pop_back();
  return fiber;
}

// Goes on with a thread that waits no longer, else with those that have not begun, else the host sees what is left.
inline void give_way() {
  Fiber* to = &block.host;
  if (!block.ready.empty()) {
    to = block.ready.front()->fiber;
  } else if (block.started < block.threads.size()) {
    to = idle_fiber();
  }
  if (to != block.fiber) switch_to(to);
}

inline void run(Thread& thread) {
  block.running = &thread;
  threadIdx.x = thread.id;
}

// What a fiber does: one thread after the other. (One that waits keeps its fiber, and the next start on another.)
inline void start_threads() {
  arrive();
  for (;;) {
    while (block.started < block.threads.size()) {
      const size_t i = block.started++;
      Thread& thread = block.threads[block.reversed ? block.threads.size() - 1 - i : i];
      thread.fiber = block.fiber;
      run(thread);
      block.kernel();
      thread.ended = true;
    }
    block.idle.push_back(block.fiber);
    give_way();
  }
}

inline void wait() {
  Thread& self = *block.running;
  give_way();
  block.ready.pop_front();  // that was this thread
  run(self);
}

// Lets threads go on: first + i for 0 <= i < count, where `mask` has bit i modulo 32.
inline void release(size_t first, size_t count, unsigned mask) {
  for (size_t k = 0; k < count; ++k) {
    const size_t i = block.reversed ? count - 1 - k : k;
    if (!(mask >> i % 32 & 1)) continue;
    block.threads[first + i].waits = nullptr;
    block.ready.push_back(&block.threads[first + i]);
  }
}

[[noreturn]] inline void fail(const std::string& error) {
  block.error = error;
  switch_to(&block.host);
  std::abort();  // no one comes back
}

inline std::string state_of(const Thread& thread) {
  if (thread.ended) return "ended";
  if (!thread.waits) return "can go on";
  char mask[16];
  std::snprintf(mask, sizeof mask, "(0x%08x)", thread.mask);
  return std::string("wait at ") + thread.waits + (thread.mask ? mask : "");
}

// ---- what threads wait for ----

inline void barrier() {
  block.running->waits = "__syncthreads", block.running->mask = 0;
  if (++block.at_barrier == block.threads.size()) {
    block.at_barrier = 0;
    release(0, block.threads.size(), ~0u);
  }
  wait();
}

// Waits for the lanes of `mask` to call the same function with the same mask; the last works out what each of them gets.
inline uint64_t meet(const char* function, unsigned mask, uint64_t value, unsigned source,
                     uint64_t (*result)(const Thread* warp, unsigned lane)) {
  Thread& self = *block.running;
  const unsigned first = self.id / 32 * 32;
  Thread* warp = &block.threads[first];
  self.waits = function, self.mask = mask, self.value = value, self.source = source;
  if (!(mask >> self.id % 32 & 1)) fail("thread " + std::to_string(self.id) + " is not in its own mask");
  const auto there = [&](unsigned lane) {
    return first + lane < block.threads.size() && warp[lane].waits && !std::strcmp(warp[lane].waits, function) &&
           warp[lane].mask == mask;
  };
  bool all = true;
  for (unsigned lane = 0; lane < 32; ++lane) all = all && (!(mask >> lane & 1) || there(lane));
  if (all) {
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) warp[lane].result = result(warp, lane);
    release(first, 32, mask);
  }
  wait();
  return self.result;
}

inline uint64_t none(const Thread*, unsigned) { return 0; }

inline uint64_t of_source(const Thread* warp, unsigned lane) {
  const unsigned source = warp[lane].source;
  if (!(warp[lane].mask >> source & 1))
    fail("thread " + std::to_string(warp[lane].id) + " wants the value of lane " + std::to_string(source) +
         ", which takes no part");
  return warp[source].value;
}

inline uint64_t of_all(const Thread* warp, unsigned lane) {
  uint64_t bits = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (warp[lane].mask >> i & 1) bits |= warp[i].value << i;
  return bits;
}

inline uint64_t of_equals(const Thread* warp, unsigned lane) {
  uint64_t bits = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (warp[lane].mask >> i & 1) bits |= uint64_t(warp[i].value == warp[lane].value) << i;
  return bits;
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(const char* function, unsigned mask, T value, unsigned source) {
  const uint64_t bits = meet(function, mask, to_bits(value), source, of_source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---- launches ----

// Runs a kernel block by block; says what went wrong, "" if nothing did.
inline std::string launch(unsigned blocks, unsigned threads, size_t bytes, bool reversed, std::function<void()> kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  ASAN_UNPOISON_MEMORY_REGION(fastenh::memory, bytes);
  ASAN_POISON_MEMORY_REGION(fastenh::memory + bytes, sizeof fastenh::memory - bytes);
  block.kernel = std::move(kernel), block.reversed = reversed;
  gridDim = {blocks}, blockDim = {threads};
  for (unsigned i = 0; i < blocks; ++i) {
    blockIdx.x = reversed ? blocks - 1 - i : i;
    std::memset(fastenh::memory, 0xff, bytes);
    block.threads.assign(threads, {});
    for (unsigned id = 0; id < threads; ++id) block.threads[id].id = id;
    block.started = block.at_barrier = 0;
    switch_to(idle_fiber());
    for (unsigned id = 0; id < threads && block.error.empty(); ++id)
      if (!block.threads[id].ended) block.error = "deadlock";
    if (block.error.empty()) continue;
    std::string error = block.error + " (block " + std::to_string(blockIdx.x) + ")";
    for (unsigned id = 0, next; id < threads; id = next) {
      const std::string state = state_of(block.threads[id]);
      for (next = id + 1; next < threads && state_of(block.threads[next]) == state;) ++next;
      error += "\n  threads " + std::to_string(id) + " to " + std::to_string(next - 1) + ": " + state;
    }
    block.ready.clear(), block.idle.clear(), block.fibers.clear(), block.error.clear();
    return error;
  }
  return "";
}

}  // namespace cuda_on_cpu
