/* x86 with AVX2 and FMA: 16 registers of 8 floats, register tiles of 6 x 16. */
typedef int ra_avx2_not_empty;
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>
#define RA_ISA ra_avx2
#define RA_ISA_NAME "avx2"
#define VL 8
#define NV 2
#define VMAX(a, b) _mm256_max_ps((__m256)(a), (__m256)(b))
#define OPAQUE(x) __asm__("" : "+x"(x))
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
