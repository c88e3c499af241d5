/* For tests: the template as AVX-512's bf16 dot products compile it, lowered to plain vectors; see lowered16.c. */
#if !defined(__clang__)
#pragma GCC optimize("O1")
#endif
#define RA_ISA ra_lowered16bf16
#define RA_ISA_NAME "lowered16bf16"
#define RA_FALLBACK ra_lowered16
#define PAIRS
#define VL 16
#define NV 4
#include "isa.inc"
