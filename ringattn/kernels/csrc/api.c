/* The plain C ABI that native.py calls: ISA table, tile spans and classes, threads, and the FMA peak. */
#define _GNU_SOURCE
#include "ringattn.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define PACKED_BYTES ((size_t)16 << 20) /* forward: packed K and V held at once, at least one kv head's */
#define MAX_THREADS 256

/* Best first; those after the portable one are for tests only. */
static const ra_isa *const ISAS[] = {
#if defined(__x86_64__)
    &ra_avx512bf16, &ra_avx512, &ra_avx2,
#endif
#if defined(__aarch64__)
    &ra_neon,
#endif
    &ra_portable, &ra_lowered16bf16, &ra_lowered16,
};
enum { N_ISAS = sizeof ISAS / sizeof *ISAS };

EXPORT int ringattn_abi(void) { return RA_ABI; }
EXPORT int ringattn_isa_count(void) { return N_ISAS; }
EXPORT const char *ringattn_isa_name(int isa) { return ISAS[isa]->name; }

/* Return whether this CPU can run the ISA. */
EXPORT int ringattn_isa_runs(int isa) {
#if defined(__x86_64__)
    if (ISAS[isa] == &ra_avx512bf16 && !__builtin_cpu_supports("avx512bf16")) return 0;
    if (ISAS[isa] == &ra_avx512bf16 || ISAS[isa] == &ra_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (ISAS[isa] == &ra_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

/* Waiting threads yield their core, as there may be more threads than cores. */
void ra_wait_all(ra_barrier *barrier) {
    int generation = atomic_load(&barrier->generation);
    if (atomic_fetch_add(&barrier->arrived, 1) == barrier->count - 1) {
        atomic_store(&barrier->arrived, 0);
        atomic_store(&barrier->generation, generation + 1);
        return;
    }
    for (int spins = 0; atomic_load(&barrier->generation) == generation; spins++)
        if (spins > 1000) sched_yield();
}

ra_tile_class ra_classify(const ra_problem *p, const ra_span *q, const ra_span *k) {
    int64_t gap_min = (int64_t)q->pos_min - k->pos_max, gap_max = (int64_t)q->pos_max - k->pos_min;
    int full = 1;
    if (p->causal) {
        if (gap_max < 0) return RA_SKIP;
        full &= gap_min >= 0;
    }
    if (p->window) {
        if (gap_min >= p->window || (!p->causal && gap_max <= -p->window)) return RA_SKIP;
        full &= gap_max < p->window && (p->causal || gap_min > -p->window);
    }
    if (p->q_seg) {
        if (q->seg_min > k->seg_max || q->seg_max < k->seg_min) return RA_SKIP;
        full &= q->seg_min == q->seg_max && k->seg_min == k->seg_max && q->seg_min == k->seg_min;
    }
    return full ? RA_FULL : RA_MIXED;
}

static ra_tiling tiling(const int32_t *pos, int n, int step) {
    int leap = 1;
    while (leap < n && llabs((long long)pos[leap] - pos[leap - 1]) <= step) leap++;
    int before = (leap + step - 1) / step;
    return (ra_tiling){n, step, leap, before, before + (n - leap + step - 1) / step};
}

static ra_span *spans(int batches, const int32_t *pos, const int32_t *seg, int64_t seg_stride, const ra_tiling *by) {
    ra_span *all = malloc(sizeof(ra_span) * (size_t)batches * by->count + 1);
    if (!all) return NULL;
    for (int b = 0; b < batches; b++)
        for (int t = 0; t < by->count; t++) {
            const int32_t *s = seg ? seg + b * seg_stride : NULL;
            int first = ra_first(by, t), end = first + ra_width(by, t);
            ra_span x = {pos[first], pos[first], s ? s[first] : 0, s ? s[first] : 0};
            for (int i = first + 1; i < end; i++) {
                x.pos_min = pos[i] < x.pos_min ? pos[i] : x.pos_min;
                x.pos_max = pos[i] > x.pos_max ? pos[i] : x.pos_max;
                if (s) {
                    x.seg_min = s[i] < x.seg_min ? s[i] : x.seg_min;
                    x.seg_max = s[i] > x.seg_max ? s[i] : x.seg_max;
                }
            }
            all[b * by->count + t] = x;
        }
    return all;
}

typedef struct {
    void (*work)(ra_job *, int);
    ra_job *job;
    int thread;
    const atomic_int *go; /* 0: wait; -1: too few threads, return; 1: start */
} ra_member;

static void *member_main(void *arg) {
    ra_member *m = arg;
    int go;
    while ((go = atomic_load(m->go)) == 0) sched_yield();
    if (go > 0) m->work(m->job, m->thread);
    return NULL;
}

/* Run work on up to `threads` threads, including this one. Threads are created at each call (tens of microseconds), so
 * that a fork between calls is harmless. */
static void run_team(void (*work)(ra_job *, int), ra_job *job, int threads) {
    pthread_t ids[MAX_THREADS];
    ra_member members[MAX_THREADS];
    atomic_int go = 0;
    int started = 1;
    for (; started < threads; started++) {
        members[started] = (ra_member){work, job, started, &go};
        if (pthread_create(&ids[started], NULL, member_main, &members[started])) break;
    }
    job->barrier.count = started;
    atomic_store(&go, 1);
    work(job, 0);
    for (int i = 1; i < started; i++) pthread_join(ids[i], NULL);
}

static int run(const ra_problem *p, int isa_index, int is_backward) {
    if (isa_index < 0 || isa_index >= N_ISAS || !ringattn_isa_runs(isa_index)) return RA_BAD_ISA;
    const ra_isa *isa = ISAS[isa_index];
    if (isa->fallback && (p->dtype != RA_BF16 || (is_backward && p->do_dtype != RA_BF16))) isa = isa->fallback;
    int threads = p->threads < 1 ? 1 : p->threads > MAX_THREADS ? MAX_THREADS : p->threads;
    int q_rows = is_backward ? isa->q_rows_bwd : isa->q_rows_fwd;
    int k_cols = is_backward ? isa->k_cols_bwd : isa->k_cols_fwd(p->D);
    ra_tiling q = tiling(p->q_pos, p->Tq, q_rows), k = tiling(p->k_pos, p->Tk, k_cols);
    int kv_heads = p->B * p->Hkv;
    size_t turns = (size_t)p->B * p->Hq * q.count, head_bytes = 4 * isa->packed_floats(p->D) * k.count;
    size_t wave = head_bytes && head_bytes < PACKED_BYTES ? PACKED_BYTES / head_bytes : 1;
    ra_job job = {
        .p = p,
        .q = q,
        .k = k,
        .q_spans = spans(p->B, p->q_pos, p->q_seg, p->q_seg_stride, &q),
        .k_spans = spans(p->B, p->k_pos, p->k_seg, p->k_seg_stride, &k),
        .wave = wave < (size_t)kv_heads ? (int)wave : kv_heads,
        /* Rounded to an odd number of pages, so that threads' scratch does not collide in the caches. */
        .scratch_bytes = ((is_backward ? isa->scratch_bwd : isa->scratch_fwd)(p->D) + 4095) / 4096 * 4096 | 4096,
    };
    int rc = RA_NO_MEMORY;
    void *packed = NULL, *scratch = NULL;
    if (!job.q_spans || !job.k_spans) goto done;
    if (posix_memalign(&scratch, 4096, job.scratch_bytes * threads)) goto done;
    memset(scratch, 0, job.scratch_bytes * threads);
    if (is_backward) {
        if (!(job.turn = malloc(sizeof(atomic_int) * turns + 1))) goto done;
        for (size_t i = 0; i < turns; i++) atomic_init(&job.turn[i], -1);
    } else if (posix_memalign(&packed, 4096, head_bytes * job.wave + 1)) {
        goto done;
    }
    job.scratch = scratch;
    job.packed = packed;
    run_team(is_backward ? isa->backward : isa->forward, &job, threads);
    rc = RA_OK;
done:
    free(job.q_spans);
    free(job.k_spans);
    free(job.turn);
    free(scratch);
    free(packed);
    return rc;
}

EXPORT int ringattn_forward(const ra_problem *p, int isa) { return run(p, isa, 0); }
EXPORT int ringattn_backward(const ra_problem *p, int isa) { return run(p, isa, 1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    const ra_isa *isa;
    double seconds, flops;
} ra_peak;

static void *peak_main(void *arg) {
    ra_peak *peak = arg;
    for (double start = now(); now() - start < peak->seconds;) peak->flops += peak->isa->fma(20000);
    return NULL;
}

/* Return the FLOP/s of independent fused multiply-adds on `threads` threads. */
EXPORT double ringattn_fma_peak(double seconds, int threads, int isa) {
    pthread_t ids[MAX_THREADS];
    ra_peak peaks[MAX_THREADS];
    int started = 0;
    if (isa < 0 || isa >= N_ISAS || !ringattn_isa_runs(isa)) return 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    double start = now(), flops = 0;
    for (; started < threads; started++) {
        peaks[started] = (ra_peak){ISAS[isa], seconds, 0};
        if (pthread_create(&ids[started], NULL, peak_main, &peaks[started])) break;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(ids[i], NULL);
        flops += peaks[i].flops;
    }
    return flops / (now() - start);
}
