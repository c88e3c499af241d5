/* Shared declarations of the native block-attention kernel: the plain C ABI, and the table of functions of each ISA.
 *
 * q, o, dq: [B, Hq, Tq, D]; k, v, dk, dv: [B, Hkv, Tk, D]; lse, delta: [B, Hq, Tq]; all C-contiguous. */
#ifndef RINGATTN_H
#define RINGATTN_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { RA_ABI = 2 }; /* version of ra_problem; native.py compares it */
enum { RA_F32 = 0, RA_BF16 = 1, RA_F16 = 2 };
enum { RA_OK = 0, RA_NO_MEMORY = 1, RA_BAD_ISA = 2 };

typedef struct {
    int32_t B, Hq, Hkv, Tq, Tk, D;
    int32_t dtype, do_dtype; /* of q, k, v; of dO */
    int32_t causal, threads;
    int64_t window; /* 0: none */
    float scale;
    float softcap; /* 0: none; else scores s become softcap * tanh(s / softcap) before the mask */
    const int32_t *q_pos, *k_pos;                /* [Tq], [Tk] */
    const int32_t *q_seg, *k_seg;                /* NULL: none */
    int64_t q_seg_stride, k_seg_stride;          /* from one batch to the next; 0: shared by all */
    const void *q, *k, *v, *dout;                /* dout: backward only */
    float *o, *lse;                              /* forward writes both; backward reads lse */
    const float *delta;                          /* backward: rowsum(dO * O) */
    float *dq, *dk, *dv;                         /* backward writes; the caller zeroes dq */
} ra_problem;

/* Ranges of a tile's rows (queries) or columns (keys), which decide the mask of a whole tile. */
typedef struct {
    int32_t pos_min, pos_max, seg_min, seg_max;
} ra_span;

typedef enum { RA_SKIP, RA_MIXED, RA_FULL } ra_tile_class;

typedef struct {
    atomic_int arrived, generation;
    int count;
} ra_barrier;

/* Division of n rows or columns into tiles of `step`. Where positions leap (at `leap`, zigzag's second chunk) a new
 * tile begins: a tile over both chunks would be neither all visible nor all hidden. */
typedef struct {
    int n, step, leap, before, count; /* tiles before the leap; all tiles */
} ra_tiling;

static inline int ra_first(const ra_tiling *t, int tile) {
    return tile < t->before ? tile * t->step : t->leap + (tile - t->before) * t->step;
}

static inline int ra_width(const ra_tiling *t, int tile) {
    int first = ra_first(t, tile), end = tile < t->before ? t->leap : t->n;
    return end - first < t->step ? end - first : t->step;
}

/* One call's shared state. Threads claim tasks from `next` in order; results do not depend on which thread claims
 * which task. */
typedef struct {
    const ra_problem *p;
    ra_tiling q, k;
    ra_span *q_spans, *k_spans; /* [B, tiles] */
    int wave;         /* forward: kv heads packed at once */
    float *packed;    /* forward: their K and V tiles */
    atomic_int *turn; /* backward: [B * Hq, q.count] last key tile added to this dq tile, or -1 */
    char *scratch;    /* [threads, scratch_bytes] */
    size_t scratch_bytes;
    ra_barrier barrier;
    atomic_long next[3];
} ra_job;

typedef struct ra_isa {
    const char *name;
    const struct ra_isa *fallback;          /* NULL, or the ISA for inputs that are not all bf16, which this one does not take */
    int q_rows_fwd, q_rows_bwd;             /* rows of a query tile */
    int (*k_cols_fwd)(int D);               /* columns of a key tile */
    int k_cols_bwd;
    size_t (*packed_floats)(int D);         /* of one key tile, forward */
    size_t (*scratch_fwd)(int D);           /* bytes a thread */
    size_t (*scratch_bwd)(int D);
    void (*forward)(ra_job *job, int thread);
    void (*backward)(ra_job *job, int thread);
    double (*fma)(long rounds);             /* runs `rounds` of FMAs, returns their number of FLOPs */
} ra_isa;

extern const ra_isa ra_portable, ra_avx2, ra_avx512, ra_neon, ra_lowered16, ra_avx512bf16, ra_lowered16bf16;

void ra_wait_all(ra_barrier *barrier);
ra_tile_class ra_classify(const ra_problem *p, const ra_span *q, const ra_span *k);

#endif
