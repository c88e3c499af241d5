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
const auto q_rules = q_mask + q_set * q_mask_shape[1] * 3, k_rules = k_mask + k_set * k_mask_shape[1] * 2;
const auto q_tile_ranges = q_ranges + q_set * q_ranges_shape[1] * 6;
const Four<int> own_range = keys_at(k_ranges + (k_set * k_ranges_shape[1] + tile) * 4);
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
  const int q_tile = i % q_tiles, start = q_tile * STREAMED;
  const Queries range = queries_at(q_tile_ranges + q_tile * 6);
  if (hidden(range, own_range)) continue;
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
  if (CAPPED) cap_scores<N>(s, scales[2], 1.0f);

  if (!all_visible(range, own_range)) {
    Key row[BLOCKS];
    UNROLL for (int r = 0; r < BLOCKS; r++) row[r] = key_at(k_rules, min(own + r * 8, k_len - 1));
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const Query query = query_at(q_rules, min(start + j * 8 + fcol + e, q_len - 1));
        UNROLL for (int r = 0; r < BLOCKS; r++) {
          if (!visible(query, row[r])) s[r * COLS + j].thread_elements()[e] = -INFINITY;
        }
      }
    }
  }

  UNROLL for (int j = 0; j < COLS; j++) {
    const Two<float> lse2 = *(const threadgroup Two<float>*)(Ls + j * 8 + fcol), col_delta = *(const threadgroup Two<float>*)(Ds + j * 8 + fcol);
    UNROLL for (int r = 0; r < BLOCKS; r++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const float score = s[r * COLS + j].thread_elements()[e], p = exp2((CAPPED ? score * scales[2] : score) - lse2.x[e]);
        s[r * COLS + j].thread_elements()[e] = p;
        s[N + r * COLS + j].thread_elements()[e] = p * (s[N + r * COLS + j].thread_elements()[e] - col_delta.x[e]);
        if (CAPPED) s[N + r * COLS + j].thread_elements()[e] *= cap_slope(score);
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
