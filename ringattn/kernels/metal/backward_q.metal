// dQ [B, Hq, Tq, D] over one block: FlashAttention-2 (Dao 2023) with queries as own rows. P = exp(S - lse), dS = P * (dP - delta),
// dQ = scale * dS K, with lse and delta [B, Hq, Tq] of all blocks; a query with lse = -inf saw no key anywhere. Other inputs: forward.metal.
constexpr int LD = D + 4, DEPTH = D / PARTS / 8, COLS = STREAMED / 8, ROWS = 8 * BLOCKS, OWN = ROWS * GROUPS, N = BLOCKS * COLS;
constexpr int THREADS = 32 * GROUPS * PARTS;
threadgroup float Ks[STREAMED * LD];
threadgroup float Vs[STREAMED * LD];
threadgroup float sums[PARTS > 1 ? 2 * PARTS * OWN * STREAMED : 1];

const int lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const int group = simd % GROUPS, part = simd / GROUPS, thread_index = simd * 32 + lane;
const int frow = fragment_row(lane), fcol = fragment_col(lane);
const int tile = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y, batch = threadgroup_position_in_grid.z;
const int heads = q_shape[1], q_len = q_shape[2], kv_heads = k_shape[1], k_len = k_shape[2];
const int own = tile * OWN + group * ROWS + frow;  // this lane's query of the first fragment
const int k_tiles = (k_len + STREAMED - 1) / STREAMED;
const int q_set = q_mask_shape[0] > 1 ? batch : 0, k_set = k_mask_shape[0] > 1 ? batch : 0;
const auto q_rules = q_mask + q_set * q_mask_shape[1] * 3, k_rules = k_mask + k_set * k_mask_shape[1] * 2;
const auto k_tile_ranges = k_ranges + k_set * k_ranges_shape[1] * 4;
const Queries own_range = queries_at(q_ranges + (q_set * q_ranges_shape[1] + tile) * 6);
const auto keys = k + ulong(batch * kv_heads + head / (heads / kv_heads)) * k_len * D;
const auto values = v + ulong(batch * kv_heads + head / (heads / kv_heads)) * k_len * D;
const ulong q_row = ulong(batch * heads + head) * q_len + own;

Fragment queries[BLOCKS * DEPTH], d_out[BLOCKS * DEPTH], sum[BLOCKS * DEPTH];
float lse2[BLOCKS], row_delta[BLOCKS];  // in base 2
UNROLL for (int r = 0; r < BLOCKS; r++) {
  const bool exists = own + r * 8 < q_len;
  const ulong at = (q_row + r * 8) * D + part * (D / PARTS) + fcol;
  load_row<DEPTH>(queries + r * DEPTH, q + at, exists, scales[1]);
  load_row<DEPTH>(d_out + r * DEPTH, dout + at, exists, 1.0f);
  lse2[r] = base2(exists ? lse[q_row + r * 8] : -INFINITY);
  row_delta[r] = exists ? delta[q_row + r * 8] : 0.0f;
}
clear<BLOCKS * DEPTH>(sum);

for (int i = 0; i < k_tiles; i++) {
  const int start = i * STREAMED;
  const Four<int> range = keys_at(k_tile_ranges + i * 4);
  if (hidden(own_range, range)) continue;

  threadgroup_barrier(mem_flags::mem_threadgroup);
  stage<STREAMED, D, LD, THREADS>(Ks, keys, start, k_len, thread_index);
  stage<STREAMED, D, LD, THREADS>(Vs, values, start, k_len, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Fragment s[2 * N];  // scores, then dP
  clear<2 * N>(s);
  multiply_transposed<BLOCKS, DEPTH, COLS, LD>(s, queries, Ks + part * (D / PARTS));
  multiply_transposed<BLOCKS, DEPTH, COLS, LD>(s + N, d_out, Vs + part * (D / PARTS));
  add_parts<2 * N, GROUPS, PARTS>(s, sums, group, part);
  if (CAPPED) cap_scores<N>(s, scales[2], 1.0f);

  if (start + STREAMED > k_len || !all_visible(own_range, range)) {
    Query row[BLOCKS];
    UNROLL for (int r = 0; r < BLOCKS; r++) row[r] = query_at(q_rules, min(own + r * 8, q_len - 1));
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int col = start + j * 8 + fcol + e;
        const Key key = key_at(k_rules, min(col, k_len - 1));
        UNROLL for (int r = 0; r < BLOCKS; r++) {
          if (col >= k_len || !visible(row[r], key)) s[r * COLS + j].thread_elements()[e] = -INFINITY;
        }
      }
    }
  }

  UNROLL for (int r = 0; r < BLOCKS; r++) {
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const float score = s[r * COLS + j].thread_elements()[e], p = exp2((CAPPED ? score * scales[2] : score) - lse2[r]);
        s[r * COLS + j].thread_elements()[e] = p * (s[N + r * COLS + j].thread_elements()[e] - row_delta[r]);
        if (CAPPED) s[r * COLS + j].thread_elements()[e] *= cap_slope(score);
      }
    }
  }
  multiply<BLOCKS, DEPTH, COLS, LD>(sum, s, Ks + part * (D / PARTS));
}

UNROLL for (int r = 0; r < BLOCKS; r++) {
  if (own + r * 8 < q_len) {
    UNROLL for (int d = 0; d < DEPTH; d++) {
      Two<float> pair;
      UNROLL for (int e = 0; e < 2; e++) pair.x[e] = sum[r * DEPTH + d].thread_elements()[e] * scales[0];
      *(device Two<float>*)(dq + (q_row + r * 8) * D + part * (D / PARTS) + d * 8 + fcol) = pair;
    }
  }
}
