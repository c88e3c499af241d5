/* x86 with AVX-512: 32 registers of 16 floats, register tiles of 6 x 64. */
typedef int ra_avx512_not_empty;
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#include <immintrin.h>
#define RA_ISA ra_avx512
#define RA_ISA_NAME "avx512"
#define VL 16
#define NV 4
#define VMAX(a, b) _mm512_max_ps((__m512)(a), (__m512)(b))
#define FMA_CHAINS 20
#define OPAQUE(x) __asm__("" : "+v"(x))
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
