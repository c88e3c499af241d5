/* For tests: the template as AVX-512 compiles it (vectors of 16, tiles of 6 x 64), lowered to plain x86 or Arm vectors,
 * so that its logic runs on machines without AVX-512. It is never selected by default, so it is compiled at O1, in a
 * tenth of the time. */
#if !defined(__clang__)
#pragma GCC optimize("O1")
#endif
#define RA_ISA ra_lowered16
#define RA_ISA_NAME "lowered16"
#define VL 16
#define NV 4
#include "isa.inc"
