/* Any CPU: vectors of 4 floats, which the compiler lowers to the vectors of the target. */
#define RA_ISA ra_portable
#define RA_ISA_NAME "portable"
#define VL 4
#define NV 2
#include "isa.inc"
