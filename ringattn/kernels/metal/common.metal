// What the three kernels share: staging of tiles, products of 8 x 8 fragments, masks. C++14, as MSL is.
//
// Names. A threadgroup owns OWN rows (queries in forward and dQ, keys in dK and dV) and streams tiles of STREAMED rows of the other
// side through threadgroup memory. GROUPS groups of rows, each of BLOCKS fragments of 8 rows; the head dimension D is cut into
// PARTS, one SIMD group each: OWN = 8 * BLOCKS * GROUPS, threads = 32 * GROUPS * PARTS. A tile's row takes LD floats: 4 more than D, so
// that rows begin in different banks.
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>

#define UNROLL _Pragma("clang loop unroll(full)")

typedef simdgroup_matrix<float, 8, 8> Fragment;

// Four neighbours, aligned as one: a single load or store of an instruction.
template <typename T>
struct Four {
  T x[4];
};
template <typename T>
struct Two {
  T x[2];
};

// A lane holds elements (row, col) and (row, col + 1) of a fragment.
inline int fragment_row(uint lane) {
  return (lane / 4 & 4) + lane / 2 % 4;
}
inline int fragment_col(uint lane) {
  return (lane / 4 & 2) * 2 + lane % 2 * 2;
}

// Reduces over the lanes that hold a fragment's row.
inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, 1));
  return max(x, simd_shuffle_xor(x, 8));
}
inline float row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}

// Copies rows first .. first + ROWS of source [length, D] to a tile, as fp32; rows at or past `length` become 0.
template <int ROWS, int D, int LD, int THREADS, typename T>
inline void stage(threadgroup float* tile, const device T* source, int first, int length, int thread_index) {
  for (int i = thread_index; i < ROWS * (D / 4); i += THREADS) {
    const int row = i / (D / 4), col = i % (D / 4) * 4;
    Four<float> to = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (first + row < length) {
      const Four<T> from = *(const device Four<T>*)(source + (first + row) * D + col);
      UNROLL for (int e = 0; e < 4; e++) to.x[e] = float(from.x[e]);
    }
    *(threadgroup Four<float>*)(tile + row * LD + col) = to;
  }
}

// Loads this lane's share of N fragments, times a factor, from its row of device memory; 0 if there is no such row.
template <int N, typename T>
inline void load_row(thread Fragment* to, const device T* row, bool exists, float factor) {
  UNROLL for (int d = 0; d < N; d++) {
    Two<T> from = {{T(), T()}};
    if (exists) from = *(const device Two<T>*)(row + d * 8);
    UNROLL for (int e = 0; e < 2; e++) to[d].thread_elements()[e] = float(from.x[e]) * factor;
  }
}

template <int N>
inline void clear(thread Fragment* x) {
  UNROLL for (int i = 0; i < N; i++) x[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// c [BLOCKS][COLS] += a [BLOCKS][DEPTH] * tile^T: the tile's rows are c's columns.
template <int BLOCKS, int DEPTH, int COLS, int LD>
inline void multiply_transposed(thread Fragment* c, thread const Fragment* a, const threadgroup float* tile) {
  UNROLL for (int d = 0; d < DEPTH; d++) {
    UNROLL for (int j = 0; j < COLS; j++) {
      Fragment b;
      simdgroup_load(b, tile + j * 8 * LD + d * 8, LD, ulong2(0, 0), true);
      UNROLL for (int r = 0; r < BLOCKS; r++) {
        simdgroup_multiply_accumulate(c[r * COLS + j], a[r * DEPTH + d], b, c[r * COLS + j]);
      }
    }
  }
}

// c [BLOCKS][DEPTH] += p [BLOCKS][COLS] * tile: the tile's rows are p's columns.
template <int BLOCKS, int DEPTH, int COLS, int LD>
inline void multiply(thread Fragment* c, thread const Fragment* p, const threadgroup float* tile) {
  UNROLL for (int j = 0; j < COLS; j++) {
    UNROLL for (int d = 0; d < DEPTH; d++) {
      Fragment b;
      simdgroup_load(b, tile + j * 8 * LD + d * 8, LD);
      UNROLL for (int r = 0; r < BLOCKS; r++) {
        simdgroup_multiply_accumulate(c[r * DEPTH + d], p[r * COLS + j], b, c[r * DEPTH + d]);
      }
    }
  }
}

// Adds the N fragments that the PARTS of the head dimension computed of the same scores, in one order, so that all have the same bits.
// Every thread calls it; the next write to `sums` comes after another barrier.
template <int N, int GROUPS, int PARTS>
inline void add_parts(thread Fragment* x, threadgroup float* sums, int group, int part) {
  if (PARTS == 1) return;
  UNROLL for (int i = 0; i < N; i++) simdgroup_store(x[i], sums + ((part * GROUPS + group) * N + i) * 64, 8);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  clear<N>(x);
  UNROLL for (int other = 0; other < PARTS; other++) {
    UNROLL for (int i = 0; i < N; i++) {
      Fragment theirs;
      simdgroup_load(theirs, sums + ((other * GROUPS + group) * N + i) * 64, 8);
      UNROLL for (int e = 0; e < 2; e++) x[i].thread_elements()[e] += theirs.thread_elements()[e];
    }
  }
}

// Natural log-sum-exp to base 2; +inf, which makes probabilities 0, for a row that saw no key (-inf).
inline float base2(float lse) {
  return lse == -INFINITY ? INFINITY : lse * 1.44269504f;
}

// A softcap c makes scores s into c * tanh(s / c), before the mask. CAPPED kernels are compiled apart. `cap` is in base 2, as scores are.
template <int N>
inline void cap_scores(thread Fragment* s, float cap, float factor) {
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (int e = 0; e < 2; e++) s[i].thread_elements()[e] = factor * precise::tanh(s[i].thread_elements()[e] / cap);
  }
}
// Derivative of a capped score at the score before, from its tanh; 0 for a hidden key's -inf.
inline float cap_slope(float tanh) {
  return tanh == -INFINITY ? 0.0f : 1.0f - tanh * tanh;
}

// A query sees a key iff first <= position <= last and the segments are equal: causal masks, windows and both are such intervals.
// Of a tile, the ranges of its queries' rules and of its keys' positions and segments decide whether it is read and masked.
struct Queries {
  Four<int> sees;     // first min, first max, last min, last max
  Two<int> segments;  // min, max
};
inline Queries queries_at(const device int* ranges) {
  return {*(const device Four<int>*)(ranges), *(const device Two<int>*)(ranges + 4)};
}
inline Four<int> keys_at(const device int* ranges) {  // position min, position max, segment min, segment max
  return *(const device Four<int>*)(ranges);
}
inline bool hidden(Queries q, Four<int> k) {
  return k.x[1] < q.sees.x[0] || k.x[0] > q.sees.x[3] || k.x[3] < q.segments.x[0] || k.x[2] > q.segments.x[1];
}
inline bool all_visible(Queries q, Four<int> k) {
  const bool one_segment = q.segments.x[0] == q.segments.x[1] && k.x[2] == q.segments.x[0] && k.x[3] == q.segments.x[0];
  return k.x[0] >= q.sees.x[1] && k.x[1] <= q.sees.x[2] && one_segment;
}

struct Query {
  int first, last, segment;
};
struct Key {
  int position, segment;
};
inline Query query_at(const device int* mask, int row) {
  return {mask[row * 3], mask[row * 3 + 1], mask[row * 3 + 2]};
}
inline Key key_at(const device int* mask, int row) {
  return {mask[row * 2], mask[row * 2 + 1]};
}
inline bool visible(Query q, Key k) {
  return q.first <= k.position && k.position <= q.last && q.segment == k.segment;
}
