// Runs one MSL kernel on a CPU: the part of Metal's standard library that the kernels use, on fibers and checked memory.
// Finds what memory.h and fibers.h describe, and wrong results. Does not find what only Apple's compiler refuses, nor speed.
#pragma once
#include "fibers.h"
#include "memory.h"

namespace shim {

struct Float {  // float, counted
  float value;
  Float() = default;
  Float(float v) : value(v) {}
  Float(double v) : value((float)v) {}
  explicit Float(int v) : value((float)v) { counts.convert++; }
  template <typename T, typename = decltype(T::shim_wide)> explicit Float(const T &v) : value(v.widened()) { counts.convert++; }
  explicit operator int() const { counts.convert++; return (int)value; }
};
static inline Float counted(float v) { counts.arithmetic++; return Float(v); }
static inline Float operator+(Float a, Float b) { return counted(a.value + b.value); }
static inline Float operator-(Float a, Float b) { return counted(a.value - b.value); }
static inline Float operator*(Float a, Float b) { return counted(a.value * b.value); }
static inline Float operator/(Float a, Float b) { counts.divide++; return Float(a.value / b.value); }
static inline Float operator-(Float a) { return Float(-a.value); }
static inline Float &operator+=(Float &a, Float b) { return a = a + b; }
static inline Float &operator-=(Float &a, Float b) { return a = a - b; }
static inline Float &operator*=(Float &a, Float b) { return a = a * b; }
static inline bool operator==(Float a, Float b) { counts.arithmetic++; return a.value == b.value; }
static inline bool operator!=(Float a, Float b) { counts.arithmetic++; return a.value != b.value; }
static inline bool operator<(Float a, Float b) { counts.arithmetic++; return a.value < b.value; }
static inline bool operator>(Float a, Float b) { counts.arithmetic++; return a.value > b.value; }
static inline bool operator<=(Float a, Float b) { counts.arithmetic++; return a.value <= b.value; }
static inline bool operator>=(Float a, Float b) { counts.arithmetic++; return a.value >= b.value; }

static float of_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }

}  // namespace shim

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long ulong;
struct bfloat {
  enum { shim_wide };
  uint16_t bits;
  float widened() const { return shim::of_bits((uint32_t)bits << 16); }
};
struct half {
  enum { shim_wide };
  uint16_t bits;
  float widened() const {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return bits >> 15 ? -size : size;
  }
};
typedef bfloat bfloat16_t;
typedef half float16_t;
struct uint2 { uint x, y; };
struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong a = 0, ulong b = 0) : x(a), y(b) {} };

namespace metal {

using shim::Float;
using ::ulong2;

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
static void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  shim::counts.barrier++;
  if (shim::meet(shim::group_meeting, 0, shim::thread_count, "threadgroup_barrier", line) && flags == mem_flags::mem_threadgroup)
    shim::group_epoch++;
}
static void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  int simd = shim::now / shim::LANES;
  if (shim::meet(shim::simd_meetings[simd], simd * shim::LANES, shim::LANES, "simdgroup_barrier", line) && flags == mem_flags::mem_threadgroup)
    shim::simd_epoch[simd]++;
}

template <typename T> static void shuffled_xor(shim::Slot *slots, int mask) {
  shim::Slot before[shim::LANES];
  memcpy(before, slots, sizeof before);
  for (int i = 0; i < shim::LANES; i++) memcpy(slots[i].bytes, before[(i ^ mask) % shim::LANES].bytes, sizeof(T));
}
template <typename T> T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
  shim::counts.shuffle++;
  return shim::exchange<T, T>(value, "simd_shuffle_xor", line, shuffled_xor<T>, mask);
}

static inline Float max(Float a, Float b) { return shim::counted(fmaxf(a.value, b.value)); }  // the number, if one is NaN, as in MSL
static inline Float min(Float a, Float b) { return shim::counted(fminf(a.value, b.value)); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline Float fma(Float a, Float b, Float c) { return shim::counted(fmaf(a.value, b.value, c.value)); }
static inline Float exp2(Float a) { shim::counts.exp2++; return Float(exp2f(a.value)); }
namespace precise {  // counted as what it takes at least
static inline Float tanh(Float a) { shim::counts.exp2++; shim::counts.divide++; return Float(tanhf(a.value)); }
}
static inline Float log2(Float a) { shim::counts.log2++; return Float(log2f(a.value)); }

// 8 x 8 values over 32 lanes, two adjacent ones a lane: the layout that MLX's steel kernels rely on (get_coord in attn/mma.h).
static inline int row_of(int lane) { return (lane / 4 & 4) + lane / 2 % 4; }
static inline int col_of(int lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <typename T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8 x 8 matrices only");
  T e[2];
  simdgroup_matrix() { e[0] = e[1] = T(NAN); }
  explicit simdgroup_matrix(T diagonal) {
    int lane = shim::now % shim::LANES;
    for (int i = 0; i < 2; i++) e[i] = row_of(lane) == col_of(lane) + i ? diagonal : T(0.0f);
  }
  T (&thread_elements())[2] { return e; }
  const T (&thread_elements() const)[2] { return e; }
};
typedef simdgroup_matrix<Float, 8, 8> simdgroup_float8x8;
template <typename T, int R, int C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.e[0] = m.e[1] = value;
  return m;
}

static void multiplied(shim::Slot *slots, int) {
  float a[8][8], b[8][8], c[8][8];
  for (int lane = 0; lane < shim::LANES; lane++) {
    float six[6];
    memcpy(six, slots[lane].bytes, sizeof six);
    for (int i = 0; i < 2; i++) {
      int row = row_of(lane), col = col_of(lane) + i;
      a[row][col] = six[i], b[row][col] = six[2 + i], c[row][col] = six[4 + i];
    }
  }
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < 8; k++)
      for (int j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < shim::LANES; lane++) memcpy(slots[lane].bytes, &c[row_of(lane)][col_of(lane)], 8);
  shim::counts.multiply_accumulate++;
}
typedef simdgroup_float8x8 Matrix;
struct TwoFloats { float e[2]; };
struct SixFloats { float e[6]; };
static inline void simdgroup_multiply_accumulate(Matrix &d, const Matrix &a, const Matrix &b, const Matrix &c, int line = __builtin_LINE()) {
  SixFloats in = {{a.e[0].value, a.e[1].value, b.e[0].value, b.e[1].value, c.e[0].value, c.e[1].value}};
  TwoFloats out = shim::exchange<SixFloats, TwoFloats>(in, "simdgroup_multiply_accumulate", line, multiplied, 0);
  d.e[0] = out.e[0], d.e[1] = out.e[1];
}

static inline void together(const char *what, int line) {  // a SIMD group's threads come to a load or store together
  int simd = shim::now / shim::LANES;
  shim::meet(shim::simd_meetings[simd], simd * shim::LANES, shim::LANES, what, line);
}
template <typename Space, typename T>
void load_matrix(Matrix &d, shim::Pointer<Space, const T> from, ulong stride, ulong2 origin, bool transpose, int line) {
  together("simdgroup_load", line);
  int lane = shim::now % shim::LANES, row = row_of(lane), col = col_of(lane);
  if (transpose) {
    for (int i = 0; i < 2; i++) d.e[i] = from[(long)((origin.y + col + i) * stride + origin.x + row)];
    return;
  }
  struct Pair { T x[2]; };  // adjacent: one instruction
  Pair pair = *(shim::Pointer<Space, const Pair>)(from + (long)((origin.y + row) * stride + origin.x + col));
  for (int i = 0; i < 2; i++) d.e[i] = pair.x[i];
}
template <typename Space>
void simdgroup_load(Matrix &d, shim::Pointer<Space, const Float> from, ulong stride = 8, ulong2 origin = ulong2(0, 0), bool transpose = false, int line = __builtin_LINE()) {
  load_matrix(d, from, stride, origin, transpose, line);
}
template <typename Space>
void simdgroup_load(Matrix &d, shim::Pointer<Space, Float> from, ulong stride = 8, ulong2 origin = ulong2(0, 0), bool transpose = false, int line = __builtin_LINE()) {
  load_matrix(d, (shim::Pointer<Space, const Float>)from, stride, origin, transpose, line);
}
template <typename Space>
void simdgroup_store(const Matrix &d, shim::Pointer<Space, Float> to, ulong stride = 8, int line = __builtin_LINE()) {
  together("simdgroup_store", line);
  int lane = shim::now % shim::LANES;
  struct Pair { Float x[2]; };
  *(shim::Pointer<Space, Pair>)(to + (long)(row_of(lane) * stride + col_of(lane))) = Pair{{d.e[0], d.e[1]}};
}

}  // namespace metal
using namespace metal;

namespace shim {

static void (*kernel)();
static void enter() {
  kernel();
  fibers[now].done = true;
  run_another();
}

static void run_group() {
  group_epoch++;
  memset(simd_epoch, 0, sizeof simd_epoch);
  memset(simd_meetings, 0, sizeof simd_meetings);
  memset(&group_meeting, 0, sizeof group_meeting);
  for (int i = 0; i < shared_count; i++) Shared<char, 1>::clear(shared[i]);
  for (runnable_count = 0; runnable_count < thread_count; runnable_count++) {
    Fiber &fiber = fibers[runnable_count];
    if (fiber.stack == nullptr) fiber.stack = (char *)malloc(STACK_BYTES);
    fiber.done = false;
    prepare(fiber, enter);
    runnable[runnable_count] = runnable_count;
  }
  now = take_random();
  switch_to(home, fibers[now]);
  if (stopped) return;
  for (int i = 0; i < thread_count; i++) {
    if (fibers[i].done) continue;
    Meeting &simd = simd_meetings[i / LANES], &meeting = simd.arrived ? simd : group_meeting;
    now = i;
    finding("some threads never come to a collective", meeting.what, meeting.line);
    stopped = true;
    return;
  }
}

// Runs all threadgroups in random order. Returns the number of findings' bytes in `report`.
static int launch(void (*body)(), const unsigned *groups, unsigned threads, uint64_t seed) {
  kernel = body;
  random_state = seed * 2654435761u + 88172645463325252ull;
  report_length = 0;
  report[0] = 0;
  stopped = false;
  long bytes = counts.threadgroup_bytes;  // static arrays register once
  memset(&counts, 0, sizeof counts);
  counts.threadgroup_bytes = bytes;
  thread_count = (int)threads;
  if (threads > MAX_THREADS || threads % LANES) {
    finding("threads of a threadgroup: no multiple of 32 up to 1024", "grid", threads);
    return report_length;
  }
  long all = (long)groups[0] * groups[1] * groups[2];
  long *order = (long *)malloc(sizeof(long) * (size_t)all);
  for (long i = 0; i < all; i++) {
    long j = (long)draw((unsigned)(i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  for (long i = 0; i < all && !stopped; i++) {
    group_x = (unsigned)(order[i] % groups[0]);
    group_y = (unsigned)(order[i] / groups[0] % groups[1]);
    group_z = (unsigned)(order[i] / groups[0] / groups[1]);
    run_group();
  }
  free(order);
  return report_length;
}

}  // namespace shim
#define float shim::Float
#define thread
