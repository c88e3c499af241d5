// Fibers: every thread of a Metal threadgroup is one; a random one of those that can run is run until it waits for others.
// Findings, counts, collectives. C++14, no standard containers: a kernel has to compile in well under a second.
#pragma once
#if defined(__x86_64__) && defined(__linux__)
#define OWN_SWITCH  // of stacks: some ten nanoseconds; ucontext's makes system calls
#else
#define _XOPEN_SOURCE 700  // macOS declares ucontext only then
#define _DARWIN_C_SOURCE
#endif
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef OWN_SWITCH
#include <ucontext.h>
#endif

namespace shim {

constexpr int LANES = 32, MAX_THREADS = 1024, STACK_BYTES = 64 << 10, THREADGROUP_LIMIT = 32768;

// ---- counts: of single lanes, except multiply_accumulate, which is of SIMD groups
struct Counts {
  long multiply_accumulate, arithmetic, exp2, log2, divide, convert, shuffle, barrier;
  long threadgroup_load, threadgroup_load_bytes, threadgroup_store, threadgroup_store_bytes;
  long device_load, device_load_bytes, device_store, device_store_bytes;
  long threadgroup_bytes;
};
static Counts counts;

// ---- findings: one line of each kind, memory and size of cause, at most REPORT bytes
constexpr int REPORT = 16384;
static char report[REPORT];
static int report_length;
static bool stopped;  // after a finding that no thread can go on from

struct Fiber {
#ifdef OWN_SWITCH
  void *at;
#else
  ucontext_t at;
#endif
  char *stack;
  bool done;
};
static Fiber fibers[MAX_THREADS], home;
static int now, thread_count, runnable[MAX_THREADS], runnable_count;
static unsigned group_x, group_y, group_z;
static uint64_t random_state;

static void finding(const char *kind, const char *name, long at) {
  char line[256];
  snprintf(line, sizeof line, "%s: %s", kind, name);
  if (strstr(report, line) != nullptr) return;
  report_length += snprintf(report + report_length, REPORT - report_length, "%s[%ld], thread %d of group (%u, %u, %u)\n", line, at, now,
                            group_x, group_y, group_z);
  if (report_length > REPORT - 512) report_length = REPORT - 512;
}

static unsigned draw(unsigned below) {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return (unsigned)((random_state >> 33) % below);
}

// ---- switching
#ifdef OWN_SWITCH
extern "C" void shim_switch(void **from, void *to);
asm(".text\n.local shim_switch\n.type shim_switch,@function\nshim_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void switch_to(Fiber &from, Fiber &to) { shim_switch(&from.at, to.at); }
static void prepare(Fiber &fiber, void (*entry)()) {
  void **top = (void **)(fiber.stack + STACK_BYTES);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = (void *)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.at = top;
}
#else
static void switch_to(Fiber &from, Fiber &to) { swapcontext(&from.at, &to.at); }
static void prepare(Fiber &fiber, void (*entry)()) {
  getcontext(&fiber.at);
  fiber.at.uc_stack.ss_sp = fiber.stack;
  fiber.at.uc_stack.ss_size = STACK_BYTES;
  fiber.at.uc_link = nullptr;
  makecontext(&fiber.at, entry, 0);
}
#endif

static int take_random() {
  int i = (int)draw((unsigned)runnable_count), fiber = runnable[i];
  runnable[i] = runnable[--runnable_count];
  return fiber;
}
static void run_another() {  // called by a fiber that waits or has ended
  Fiber &mine = fibers[now];
  if (stopped || runnable_count == 0) switch_to(mine, home);
  now = take_random();
  if (&fibers[now] != &mine) switch_to(mine, fibers[now]);
}

// ---- collectives: all threads of a group come to the same one before any goes on
struct Meeting {
  int arrived, line;
  const char *what;
};
static Meeting group_meeting, simd_meetings[MAX_THREADS / LANES];
static long intervals[MAX_THREADS / LANES];  // collectives that each SIMD group has met in

static bool meet(Meeting &meeting, int first, int count, const char *what, int line) {  // whether this thread came last
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.line = line;
  } else if (meeting.what != what || meeting.line != line) {
    finding("divergent collective", what, line);
    stopped = true;
    switch_to(fibers[now], home);
  }
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    for (int i = first; i < first + count; i += LANES) intervals[i / LANES]++;
    for (int i = first; i < first + count; i++)
      if (i != now) runnable[runnable_count++] = i;
    return true;
  }
  int mine = now;
  run_another();
  now = mine;
  return false;
}

// Each lane puts a value; the last to arrive turns all 32 into results; each lane takes its own.
static struct alignas(16) Slot {
  char bytes[32];
} slots[MAX_THREADS];
typedef void (*Combine)(Slot *, int);
template <typename In, typename Out>
Out exchange(const In &in, const char *what, int line, Combine combine, int argument) {
  static_assert(sizeof(In) <= sizeof(Slot) && sizeof(Out) <= sizeof(Slot), "a slot is too small");
  int mine = now, first = now / LANES * LANES;
  memcpy(slots[mine].bytes, &in, sizeof in);
  if (meet(simd_meetings[now / LANES], first, LANES, what, line)) combine(slots + first, argument);
  Out out;
  memcpy(&out, slots[mine].bytes, sizeof out);
  return out;
}

}  // namespace shim
