// Only for clang -fsyntax-only: Metal's address spaces as clang knows them, and the signatures of what the kernels use, as strict as
// in the Metal Shading Language Specification. Nothing runs. An array in `constant` memory is const here, so that a write is refused.
#pragma once
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define INFINITY __builtin_inff()

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long ulong;
typedef int int32_t;
typedef long int64_t;
struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong, ulong); };
struct bfloat { unsigned short bits; bfloat() = default; operator float() const; };
struct half { unsigned short bits; half() = default; operator float() const; };
typedef bfloat bfloat16_t;
typedef half float16_t;

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <class T> T simd_shuffle_xor(T, ushort);
float max(float, float);
int max(int, int);
float min(float, float);
int min(int, int);
float fma(float, float, float);
float exp2(float);
float log2(float);
namespace precise {
float tanh(float);
}

template <class T, int R, int C> struct simdgroup_matrix {
  simdgroup_matrix();
  explicit simdgroup_matrix(T);
  T (&thread_elements())[2];
  const T (&thread_elements() const)[2];
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
template <class T, int R, int C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
template <class T, int R, int C>
void simdgroup_load(simdgroup_matrix<T, R, C> &, const threadgroup T *, ulong = C, ulong2 = ulong2(0, 0), bool = false);
template <class T, int R, int C>
void simdgroup_load(simdgroup_matrix<T, R, C> &, const device T *, ulong = C, ulong2 = ulong2(0, 0), bool = false);
template <class T, int R, int C>
void simdgroup_store(simdgroup_matrix<T, R, C>, threadgroup T *, ulong = C, ulong2 = ulong2(0, 0), bool = false);
template <class T, int R, int C>
void simdgroup_store(simdgroup_matrix<T, R, C>, device T *, ulong = C, ulong2 = ulong2(0, 0), bool = false);
template <class T, int R, int K, int C>
void simdgroup_multiply_accumulate(
    simdgroup_matrix<T, R, C> &, const simdgroup_matrix<T, R, K> &, const simdgroup_matrix<T, K, C> &, const simdgroup_matrix<T, R, C> &);
}  // namespace metal
// A struct read from or written to memory of another space: MSL copies it, plain C++ can't. See for_clang.
template <class Struct, class T> Struct msl_loaded(const device T *);
template <class Struct, class T> Struct msl_loaded(const threadgroup T *);
template <class Struct, class T> Struct &msl_stored(device T *);
template <class Struct, class T> Struct &msl_stored(threadgroup T *);
template <class Struct, class T> Struct &msl_stored(const device T *) = delete;
template <class Struct, class T> Struct &msl_stored(const threadgroup T *) = delete;
using namespace metal;
