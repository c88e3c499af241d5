/* 64-bit Arm: 32 registers of 4 floats, register tiles of 6 x 16. */
typedef int ra_neon_not_empty;
#if defined(__aarch64__)
#define RA_ISA ra_neon
#define RA_ISA_NAME "neon"
#define VL 4
#define NV 4
#define FMA_CHAINS 20
#include "isa.inc"
#endif
