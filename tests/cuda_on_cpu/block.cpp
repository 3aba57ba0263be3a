// See block.h. Not built with sanitizers itself, for speed, but for a process that AddressSanitizer watches.
#include "block.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

uint3 threadIdx{}, blockIdx{};
dim3 blockDim, gridDim;

namespace fastenh {
// What kernels call extern __shared__ char memory[]; with a margin for those that look beyond.
char memory[cuda_on_cpu::most_memory + (16 << 10)] __attribute__((aligned(16)));
}  // namespace fastenh

// Leaves one stack, keeping at `from` where it was, and goes on with another. The registers are those that x86-64
// functions keep for their callers. (swapcontext would do it too, but clears AddressSanitizer's notes of whole stacks.)
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
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
namespace {

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
    at = top - 7;                                              // six registers
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (!memory) return;
    __asan_unpoison_memory_region(stack, size);
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

// The block that runs.
void (*kernel)(void*);
void* arguments;
bool reversed;                // the last thread first
std::vector<Thread> threads;  // by threadIdx.x
size_t started, at_barrier;   // how many
unsigned waiting_lanes[32];   // of each warp, at functions of the warp
std::deque<Thread*> ready;    // threads that waited and may go on
Thread* running;
std::string error;

// ---- fibers ----

Fiber host, *fiber = &host, *before;  // the host's; the one that runs; the one that ran before
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

void arrive() {
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &stack, &size);
  if (before == &host) host.stack = stack, host.stack_size = size;
}

void switch_to(Fiber* to) {
  before = fiber, fiber = to;
  __sanitizer_start_switch_fiber(&before->fake_stack, to->stack, to->stack_size);
  cuda_on_cpu_switch(&before->at, to->at);
  arrive();
}

void start_threads();

Fiber* idle_fiber() {
  if (idle.empty()) return fibers.emplace_back(std::make_unique<Fiber>(&start_threads)).get();
  Fiber* found = idle.back();
  idle.pop_back();
  return found;
}

// Goes on with a thread that waits no longer, else with those that have not begun, else the host sees what is left.
void give_way() {
  Fiber* to = &host;
  if (!ready.empty()) {
    to = ready.front()->fiber;
  } else if (started < threads.size()) {
    to = idle_fiber();
  }
  if (to != fiber) switch_to(to);
}

void run(Thread& thread) {
  running = &thread;
  threadIdx.x = thread.id;
}

// What a fiber does: one thread after the other. (One that waits keeps its fiber, and the next start on another.)
void start_threads() {
  arrive();
  for (;;) {
    while (started < threads.size()) {
      const size_t i = started++;
      Thread& thread = threads[reversed ? threads.size() - 1 - i : i];
      thread.fiber = fiber;
      run(thread);
      kernel(arguments);
      thread.ended = true;
    }
    idle.push_back(fiber);
    give_way();
  }
}

void wait() {
  Thread& self = *running;
  give_way();
  ready.pop_front();  // that was this thread
  run(self);
}

// Lets threads go on: first + i for 0 <= i < count, where `mask` has bit i modulo 32.
void release(Thread* first, size_t count, unsigned mask) {
  for (size_t k = 0; k < count; ++k) {
    const size_t i = reversed ? count - 1 - k : k;
    if (!(mask >> i % 32 & 1)) continue;
    first[i].waits = nullptr;
    ready.push_back(&first[i]);
  }
}

[[noreturn]] void fail(const Thread& thread, const std::string& what) {
  error = "thread " + std::to_string(thread.id) + " " + what;
  switch_to(&host);
  std::abort();  // no one comes back
}

std::string state_of(const Thread& thread) {
  if (thread.ended) return "ended";
  if (!thread.waits) return "can go on";
  char mask[16];
  std::snprintf(mask, sizeof mask, "(0x%08x)", thread.mask);
  return std::string("wait at ") + thread.waits + (thread.mask ? mask : "");
}

// What went wrong, and what became of each thread.
std::string report() {
  std::string text = error + " (block " + std::to_string(blockIdx.x) + ")";
  for (size_t i = 0, next; i < threads.size(); i = next) {
    const std::string state = state_of(threads[i]);
    for (next = i + 1; next < threads.size() && state_of(threads[next]) == state;) ++next;
    text += "\n  threads " + std::to_string(i) + " to " + std::to_string(next - 1) + ": " + state;
  }
  return text;
}

}  // namespace

// ---- what threads wait for ----

void barrier() {
  running->waits = "__syncthreads", running->mask = 0;
  if (++at_barrier == threads.size()) {
    at_barrier = 0;
    release(threads.data(), threads.size(), ~0u);
  }
  wait();
}

uint64_t meet(const char* function, unsigned mask, uint64_t value, unsigned source) {
  Thread& self = *running;
  const unsigned lane = self.id % 32;
  Thread* warp = &self - lane;
  self.waits = function, self.mask = mask, self.value = value, self.source = source;
  if (!(mask >> lane & 1)) fail(self, "is not in its own mask");
  unsigned& there = waiting_lanes[self.id / 32];
  there |= 1u << lane;
  const auto for_lanes = [&](auto body) {
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) body(warp[i], i);
  };
  bool all = (there & mask) == mask;
  if (all)
    for_lanes([&](Thread& t, unsigned) { all = all && t.mask == mask && !std::strcmp(t.waits, function); });
  if (all) {
    uint64_t bits = 0;
    for_lanes([&](Thread& t, unsigned i) { bits |= (t.value & 1) << i; });
    for_lanes([&](Thread& t, unsigned) {
      if (t.source == of_each) {
        t.result = bits;
      } else if (mask >> t.source & 1) {
        t.result = warp[t.source].value;
      } else {
        fail(t, "wants the value of lane " + std::to_string(t.source) + ", which takes no part");
      }
    });
    there &= ~mask;
    release(warp, 32, mask);
  }
  wait();
  return self.result;
}

// ---- launches ----

std::string launch(unsigned blocks, unsigned count, unsigned bytes, bool last_first, void (*function)(void*),
                   void* with) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  __asan_unpoison_memory_region(fastenh::memory, bytes);
  __asan_poison_memory_region(fastenh::memory + bytes, sizeof fastenh::memory - bytes);
  kernel = function, arguments = with;
  gridDim = {blocks}, blockDim = {count};
  for (unsigned i = 0; i < blocks; ++i) {
    blockIdx.x = last_first ? blocks - 1 - i : i;
    reversed = last_first != (i % 2 == 1);
    std::memset(fastenh::memory, 0xff, bytes);
    threads.assign(count, {});
    for (unsigned id = 0; id < count; ++id) threads[id].id = id;
    started = at_barrier = 0;
    std::memset(waiting_lanes, 0, sizeof waiting_lanes);
    switch_to(idle_fiber());
    for (const Thread& thread : threads)
      if (error.empty() && !thread.ended) error = "deadlock";
    if (error.empty()) continue;
    const std::string text = report();
    ready.clear(), idle.clear(), fibers.clear(), error.clear();
    return text;
  }
  return "";
}

}  // namespace cuda_on_cpu
