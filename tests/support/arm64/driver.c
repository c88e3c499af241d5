/* Serve ringattn's C kernel over pipes, so that a process of another architecture under qemu can be tested.
 *
 * Greeting: names of the ISAs, one line each, and an empty line. Then, until stdin ends: a request (int32 function, 0 forward or 1
 * backward; int32 ISA), ra_problem as the caller has it in memory (64-bit little-endian on both sides), and 14 arrays in the order
 * of its pointers, each as int64 bytes (-1: NULL) and content. The answer is an int32 return code and the arrays that were written. */
#include <stdio.h>
#include <stdlib.h>
#include "ringattn.h"

int ringattn_isa_count(void);
const char *ringattn_isa_name(int);
int ringattn_forward(const ra_problem *, int);
int ringattn_backward(const ra_problem *, int);

enum { ARRAYS = 14 };

static void take(void *to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) exit(0);
}

int main(void) {
    for (int i = 0; i < ringattn_isa_count(); i++) puts(ringattn_isa_name(i));
    puts("");
    fflush(stdout);
    for (;;) {
        int32_t order[2];
        ra_problem p;
        int64_t sizes[ARRAYS];
        void *arrays[ARRAYS];
        take(order, sizeof order);
        take(&p, sizeof p);
        for (int i = 0; i < ARRAYS; i++) {
            take(&sizes[i], sizeof sizes[i]);
            arrays[i] = NULL;
            if (sizes[i] >= 0) {
                arrays[i] = malloc((size_t)sizes[i] + 1); /* the exact size: what is written beyond it breaks the heap */
                take(arrays[i], (size_t)sizes[i]);
            }
        }
        p.q_pos = arrays[0], p.k_pos = arrays[1], p.q_seg = arrays[2], p.k_seg = arrays[3];
        p.q = arrays[4], p.k = arrays[5], p.v = arrays[6], p.dout = arrays[7];
        p.o = arrays[8], p.lse = arrays[9], p.delta = arrays[10];
        p.dq = arrays[11], p.dk = arrays[12], p.dv = arrays[13];
        int32_t rc = order[0] ? ringattn_backward(&p, order[1]) : ringattn_forward(&p, order[1]);
        fwrite(&rc, sizeof rc, 1, stdout);
        for (int i = order[0] ? 11 : 8; i < (order[0] ? 14 : 10); i++) fwrite(arrays[i], 1, (size_t)sizes[i], stdout);
        fflush(stdout);
        for (int i = 0; i < ARRAYS; i++) free(arrays[i]);
    }
}
