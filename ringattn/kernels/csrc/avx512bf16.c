/* x86 with AVX-512 and its bf16 dot products: as avx512.c, with bf16 inputs multiplied without conversion. */
typedef int ra_avx512bf16_not_empty;
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#endif
#include <immintrin.h>
#define RA_ISA ra_avx512bf16
#define RA_ISA_NAME "avx512bf16"
#define RA_FALLBACK ra_avx512
#define PAIRS
#define VL 16
#define NV 4
#define VMAX(a, b) _mm512_max_ps((__m512)(a), (__m512)(b))
#define DOT(sum, a, b) _mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a), (__m512bh)(b))
#define NARROW(x) _mm512_cvtneps_pbh((__m512)(x))
#define FMA_CHAINS 20
#define OPAQUE(x) __asm__("" : "+v"(x))
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
