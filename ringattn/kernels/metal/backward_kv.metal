// dK and dV [B, Hkv, Tk, D] over one block: FlashAttention-2 (Dao 2023) with keys as own rows. The queries of all heads that share a
// kv head are streamed, so that nothing is added up by atomics: dV = P^T dO, dK = scale * dS^T Q. Inputs: backward_q.metal.
constexpr int LD = D + 4, DEPTH = D / PARTS / 8, COLS = STREAMED / 8, ROWS = 8 * BLOCKS, OWN = ROWS * GROUPS, N = BLOCKS * COLS;
constexpr int THREADS = 32 * GROUPS * PARTS;
threadgroup float Qs[STREAMED * LD];
threadgroup float Os[STREAMED * LD];  // dO
threadgroup float Ls[STREAMED];       // lse in base 2
threadgroup float Ds[STREAMED];       // delta
threadgroup float sums[PARTS > 1 ? 2 * PARTS * OWN * STREAMED : 1];

const int lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const int group = simd % GROUPS, part = simd / GROUPS, thread_index = simd * 32 + lane;
const int frow = fragment_row(lane), fcol = fragment_col(lane);
const int tile = threadgroup_position_in_grid.x, kv_head = threadgroup_position_in_grid.y, batch = threadgroup_position_in_grid.z;
const int heads = q_shape[1], q_len = q_shape[2], kv_heads = k_shape[1], k_len = k_shape[2];
const int own = tile * OWN + group * ROWS + frow;  // this lane's key of the first fragment
const int q_tiles = (q_len + STREAMED - 1) / STREAMED, shared = heads / kv_heads;
const int q_set = q_mask_shape[0] > 1 ? batch : 0, k_set = k_mask_shape[0] > 1 ? batch : 0;
const int q_first = q_set * q_mask_shape[1], k_first = k_set * k_mask_shape[1];
const int q_range_at = q_set * q_ranges_shape[1] * 6, k_range_at = (k_set * k_ranges_shape[1] + tile) * 4;
const int pos_min = k_ranges[k_range_at], pos_max = k_ranges[k_range_at + 1];
const int k_seg_min = k_ranges[k_range_at + 2], k_seg_max = k_ranges[k_range_at + 3];
const ulong k_row = ulong(batch * kv_heads + kv_head) * k_len + own;

Fragment keys[BLOCKS * DEPTH], values[BLOCKS * DEPTH], k_sum[BLOCKS * DEPTH], v_sum[BLOCKS * DEPTH];
UNROLL for (int r = 0; r < BLOCKS; r++) {
  const bool exists = own + r * 8 < k_len;
  const ulong at = (k_row + r * 8) * D + part * (D / PARTS) + fcol;
  load_row<DEPTH>(keys + r * DEPTH, k + at, exists, scales[1]);
  load_row<DEPTH>(values + r * DEPTH, v + at, exists, 1.0f);
}
clear<BLOCKS * DEPTH>(k_sum);
clear<BLOCKS * DEPTH>(v_sum);

for (int i = 0; i < q_tiles * shared; i++) {
  const int q_tile = i % q_tiles, start = q_tile * STREAMED, range = q_range_at + q_tile * 6;
  const int first_min = q_ranges[range], first_max = q_ranges[range + 1], last_min = q_ranges[range + 2];
  const int last_max = q_ranges[range + 3], q_seg_min = q_ranges[range + 4], q_seg_max = q_ranges[range + 5];
  if (hidden(first_min, last_max, q_seg_min, q_seg_max, pos_min, pos_max, k_seg_min, k_seg_max)) continue;
  const ulong first_row = ulong(batch * heads + kv_head * shared + i / q_tiles) * q_len;

  threadgroup_barrier(mem_flags::mem_threadgroup);
  stage<STREAMED, D, LD, THREADS>(Qs, q + first_row * D, start, q_len, thread_index);
  stage<STREAMED, D, LD, THREADS>(Os, dout + first_row * D, start, q_len, thread_index);
  if (thread_index < STREAMED) {
    const bool exists = start + thread_index < q_len;  // no such query: P = exp2(0 - inf) = 0
    Ls[thread_index] = base2(exists ? lse[first_row + start + thread_index] : -INFINITY);
    Ds[thread_index] = exists ? delta[first_row + start + thread_index] : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Fragment s[2 * N];  // transposed: keys are rows, queries columns; scores, then dP
  clear<2 * N>(s);
  multiply_transposed<BLOCKS, DEPTH, COLS, LD>(s, keys, Qs + part * (D / PARTS));
  multiply_transposed<BLOCKS, DEPTH, COLS, LD>(s + N, values, Os + part * (D / PARTS));
  add_parts<2 * N, GROUPS, PARTS>(s, sums, group, part);

  if (!all_visible(first_max, last_min, q_seg_min, q_seg_max, pos_min, pos_max, k_seg_min, k_seg_max)) {
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int col = start + j * 8 + fcol + e, query = (q_first + (col < q_len ? col : 0)) * 3;
        UNROLL for (int r = 0; r < BLOCKS; r++) {
          const int row = own + r * 8, key = (k_first + (row < k_len ? row : 0)) * 2;
          const bool seen = visible(q_mask[query], q_mask[query + 1], q_mask[query + 2], k_mask[key], k_mask[key + 1]);
          if (!seen) s[r * COLS + j].thread_elements()[e] = -INFINITY;
        }
      }
    }
  }

  UNROLL for (int j = 0; j < COLS; j++) {
    const Two<float> lse2 = *(const threadgroup Two<float>*)(Ls + j * 8 + fcol), col_delta = *(const threadgroup Two<float>*)(Ds + j * 8 + fcol);
    UNROLL for (int r = 0; r < BLOCKS; r++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const float p = exp2(s[r * COLS + j].thread_elements()[e] - lse2.x[e]);
        s[r * COLS + j].thread_elements()[e] = p;
        s[N + r * COLS + j].thread_elements()[e] = p * (s[N + r * COLS + j].thread_elements()[e] - col_delta.x[e]);
      }
    }
  }
  multiply<BLOCKS, DEPTH, COLS, LD>(v_sum, s, Os + part * (D / PARTS));
  multiply<BLOCKS, DEPTH, COLS, LD>(k_sum, s + N, Qs + part * (D / PARTS));
}

UNROLL for (int r = 0; r < BLOCKS; r++) {
  if (own + r * 8 < k_len) {
    UNROLL for (int d = 0; d < DEPTH; d++) {
      Two<float> k_pair, v_pair;
      UNROLL for (int e = 0; e < 2; e++) {
        k_pair.x[e] = k_sum[r * DEPTH + d].thread_elements()[e] * scales[0];
        v_pair.x[e] = v_sum[r * DEPTH + d].thread_elements()[e];
      }
      const ulong at = (k_row + r * 8) * D + part * (D / PARTS) + d * 8 + fcol;
      *(device Two<float>*)(dk + at) = k_pair;
      *(device Two<float>*)(dv + at) = v_pair;
    }
  }
}
