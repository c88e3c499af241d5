// Forward: o [B, Hq, Tq, D], normalised within this block, and lse [B, Hq, Tq], natural, of queries q [B, Hq, Tq, D] over keys k and
// values v [B, Hkv, Tk, D]. Online softmax (Dao 2023) in base 2. Grid: tiles of queries, Hq, B.
// q_mask [1 or B, >= Tq, 3]: first and last visible position, segment. k_mask [1 or B, >= Tk, 2]: position, segment. q_ranges, k_ranges
// [1 or B, >= tiles, 6 or 4]: see common.metal. scales: of the scores, the same times log2(e), softcap times log2(e).
constexpr int LD = D + 4, DEPTH = D / PARTS / 8, COLS = STREAMED / 8, ROWS = 8 * BLOCKS, OWN = ROWS * GROUPS;
constexpr int THREADS = 32 * GROUPS * PARTS;
threadgroup float Ks[STREAMED * LD];
threadgroup float Vs[STREAMED * LD];
threadgroup float sums[PARTS > 1 ? PARTS * OWN * STREAMED : 1];

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

Fragment queries[BLOCKS * DEPTH], out[BLOCKS * DEPTH];
float top[BLOCKS], total[BLOCKS];
UNROLL for (int r = 0; r < BLOCKS; r++) {
  load_row<DEPTH>(queries + r * DEPTH, q + (q_row + r * 8) * D + part * (D / PARTS) + fcol, own + r * 8 < q_len, scales[1]);
  top[r] = -INFINITY;
  total[r] = 0.0f;
}
clear<BLOCKS * DEPTH>(out);

for (int i = 0; i < k_tiles; i++) {
  const int start = i * STREAMED;
  const Four<int> range = keys_at(k_tile_ranges + i * 4);
  if (hidden(own_range, range)) continue;

  threadgroup_barrier(mem_flags::mem_threadgroup);
  stage<STREAMED, D, LD, THREADS>(Ks, keys, start, k_len, thread_index);
  stage<STREAMED, D, LD, THREADS>(Vs, values, start, k_len, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Fragment s[BLOCKS * COLS];
  clear<BLOCKS * COLS>(s);
  multiply_transposed<BLOCKS, DEPTH, COLS, LD>(s, queries, Ks + part * (D / PARTS));
  add_parts<BLOCKS * COLS, GROUPS, PARTS>(s, sums, group, part);
  if (CAPPED) cap_scores<BLOCKS * COLS>(s, scales[2], scales[2]);

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
    float highest = top[r];
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) highest = max(highest, s[r * COLS + j].thread_elements()[e]);
    }
    const float new_top = row_max(highest);
    const float base = new_top == -INFINITY ? 0.0f : new_top;  // rows that see no key yet: -inf - base stays -inf
    const float shrink = exp2(top[r] - base);
    float sum = 0.0f;
    UNROLL for (int j = 0; j < COLS; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const float p = exp2(s[r * COLS + j].thread_elements()[e] - base);
        s[r * COLS + j].thread_elements()[e] = p;
        sum += p;
      }
    }
    total[r] = total[r] * shrink + sum;  // of this lane's columns; the row's lanes are added at the end
    top[r] = new_top;
    UNROLL for (int d = 0; d < DEPTH; d++) {
      UNROLL for (int e = 0; e < 2; e++) out[r * DEPTH + d].thread_elements()[e] *= shrink;
    }
  }
  multiply<BLOCKS, DEPTH, COLS, LD>(out, s, Vs + part * (D / PARTS));
}

UNROLL for (int r = 0; r < BLOCKS; r++) {
  const float sum = row_sum(total[r]);
  if (own + r * 8 < q_len) {
    const float norm = sum == 0.0f ? 0.0f : 1.0f / sum;
    UNROLL for (int d = 0; d < DEPTH; d++) {
      Two<float> pair;
      UNROLL for (int e = 0; e < 2; e++) pair.x[e] = out[r * DEPTH + d].thread_elements()[e] * norm;
      *(device Two<float>*)(o + (q_row + r * 8) * D + part * (D / PARTS) + d * 8 + fcol) = pair;
    }
    if (part == 0 && fcol == 0) {
      lse[q_row + r * 8] = sum == 0.0f ? -INFINITY : (top[r] + log2(sum)) * 0.69314718f;
    }
  }
}
