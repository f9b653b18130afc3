// The whole list of compute operations. Called by src/model (one rank's compute lane) and by the
// sampler. What always holds:
//  * a row's result depends on that row and the weights alone: not on M, on the other rows, on
//    chunking or on the number of threads (k ascending in fixed blocks, see gemm);
//  * within one CpuLevel results are bit-identical from run to run; levels may differ in rounding;
//  * inputs of matrix products are rounded as cx.rounding says, accumulation is float32;
//  * no allocation but of a few words: scratch comes from cx.scratch, whose size the *_scratch_bytes
//  functions give.
// Every op has a slow readable oracle of the same name in namespace duet::ref (kernels/ref/).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/cpu.h"
#include "base/thread_pool.h"
#include "kernels/packed.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace duet {

/// How one rank's kernels run. Cheap to copy; owns nothing.
struct KernelContext {
  CpuLevel level = CpuLevel::kPortable;
  ThreadPool* pool = nullptr;  // null: the calling thread alone
  Arena* scratch = nullptr;
  Rounding rounding = Rounding::kNone;

  int threads() const { return pool ? pool->threads() : 1; }
  KernelContext with(Rounding r) const {
    KernelContext cx = *this;
    cx.rounding = r;
    return cx;
  }
};

// ---- matrix products (kernels/cpu/gemm*.cc) -------------------------------------------------

enum class Accumulate : bool { kNo, kYes };  // c = a·wᵀ, or c += a·wᵀ (in blocks of K, see gemm)

/// c [M, N] = round(a [M, K]) · wᵀ. M, N, K ≥ 0, any size; a and c must not overlap.
/// Order of every output element's sum, whatever M, N and the threads: K in chains of 16 (bf16 and f16
/// weights: 64) from k = 0, each of multiply-adds from zero (portable: a product and a sum); the chains of a
/// block of 512 added one after the other from zero; then the blocks, from c or zero. All in float32.
/// (bf16 × bf16 at avx512bf16: the same with the instruction's pairs for k.)
/// f8e4m3 weights: pieces of K in place of blocks, at most 256 long and cut where scales change; a piece's
/// sum, made as above from the bare weights (at avx2 in chains of 64, with inputs times 2^64 and weights
/// times 2^-120), joins c times its scale. i8 weights: exact int32 sums over all of K, then (float(sum) ·
/// row's scale) · column's scale; of 16-bit inputs so for the high part (whose scale is 255 times the row's)
/// and for the low part, and high + low; at avx2 for both in one: exact sums of 512 steps, added as floats.
void gemm(const KernelContext& cx, ConstRows a, const PackedView& w, Rows c,
          Accumulate accumulate = Accumulate::kNo);
size_t gemm_scratch_bytes(int64_t max_m, int64_t max_n, int64_t max_k, int threads);

/// The same on the calling thread only, for use inside a parallel_for body; `scratch` holds
/// gemm_scratch_bytes(m, n, k, 1) bytes of this thread's own, 64-byte aligned.
void gemm_single(CpuLevel level, Rounding rounding, ConstRows a, const PackedView& w, Rows c,
                 Accumulate accumulate, std::byte* scratch);

// ---- feed-forward (kernels/cpu/mlp.cc) ------------------------------------------------------

/// One gated MLP (dense layer, shared expert or routed expert), or one rank's slice of it along
/// the intermediate size. How gate and up share `gate_up` is the packer's business.
struct MlpWeights {
  PackedMatrix gate_up;  // [2 · intermediate (padded), hidden]
  PackedMatrix down;     // [hidden, intermediate]
  int64_t hidden = 0;
  int64_t intermediate = 0;  // 0: this rank's slice is empty, the MLP contributes nothing
};
MlpWeights pack_mlp(const WeightView& gate, const WeightView& up, const WeightView& down, PackAs as);
MlpWeights pack_mlp(const WeightView& gate, const WeightView& up, const WeightView& down, PackAs gate_up_as,
                    PackAs down_as);

/// out = down(silu(gate(x)) · up(x)), [tokens, hidden] → [tokens, hidden]; rows in chunks, so the
/// wide intermediate never exceeds the scratch. kYes adds to out.
void mlp(const KernelContext& cx, ConstRows x, const MlpWeights& w, Rows out,
         Accumulate accumulate = Accumulate::kNo);
size_t mlp_scratch_bytes(int64_t hidden, int64_t intermediate, int threads);

/// Rows of a batch by expert (CSR): expert e (local index) has entries [offsets[e], offsets[e+1])
/// of `rows` and `weights`, rows ascending. Owned by the caller; see group_by_expert.
struct ExpertGroups {
  std::span<const int32_t> offsets;  // [experts + 1]
  std::span<const int32_t> rows;
  std::span<const float> weights;
};

/// Sorts `ids` / `gate_weights` [tokens, top_k] into groups for experts [first, first + experts);
/// other ids (also -1) are skipped. offsets: experts + 1 entries; rows, weights: ≤ tokens · top_k.
ExpertGroups group_by_expert(const int32_t* ids, const float* gate_weights, int64_t tokens, int top_k,
                             int32_t first, int32_t experts, int32_t* offsets, int32_t* rows, float* weights);

/// For e ascending, for each entry: out[row] = fma(weight, mlp_e(x[row]), out[row]). Adds to out.
void experts(const KernelContext& cx, ConstRows x, std::span<const MlpWeights> experts,
             const ExpertGroups& groups, Rows out);
size_t experts_scratch_bytes(int64_t hidden, int64_t intermediate, int threads);

// ---- attention (kernels/cpu/mla*.cc, gqa.cc) ------------------------------------------------

/// Sizes of one rank's share of multi-head latent attention (DeepSeek-V2 paper, §2.1).
struct MlaShape {
  int heads = 0;       // local
  int nope = 0;        // qk_nope_head_dim
  int rope = 0;        // qk_rope_head_dim
  int v = 0;           // v_head_dim
  int lora = 0;        // kv_lora_rank
  float scale = 1.0f;  // softmax scale, YaRN's mscale² included
};

/// The paged cache of one layer, f32, bf16 or f16; of MLA also i8. MLA: [blocks, block_size, lora + rope], a
/// row holds the normed latent, then the rotated k_rope (i8: as kernels/latent8.h has it). Grouped-query
/// attention: [blocks, kv_heads, block_size, 2 · head_dim], a row holds a key, then its value. Slot s is row
/// s % block_size of block s / block_size.
struct PagedCache {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int block_size = 0;
};

/// kv_b_proj [heads · (nope + v), lora] (rows of a head: nope, then v) in the shapes both forms need.
struct MlaWeights {
  PackedMatrix kv_b;               // expanded form
  std::vector<PackedMatrix> w_uk;  // absorbed form, per head [lora, nope]
  std::vector<PackedMatrix> w_uv;  // absorbed form, per head [v, lora]
};
/// Bytes of a row of that cache.
int64_t latent_row_bytes(const MlaShape& shape, DType dtype);
/// `dtype` i8 quantises each of the shapes by its own output columns; its inputs have 16 bits.
MlaWeights pack_mla(const MlaShape& shape, const WeightView& kv_b, DType dtype);

/// Prompt tokens are always expanded, generated tokens always absorbed (exactness contract).
enum class AttentionForm : uint8_t { kExpanded, kAbsorbed };

/// Consecutive rows of one sequence: row i sits at position start_position + i and attends to
/// positions [0, start_position + i], all of which are in the cache.
struct AttentionSpan {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t start_position = 0;
  AttentionForm form = AttentionForm::kExpanded;
  const int32_t* block_table = nullptr;  // position p lies in slot block_table[p / bs] · bs + p % bs
  bool cut = false;                      // other micro-batches of the step hold rows of this sequence
};

/// latent [rows, lora] (normed), k_rope [rows, rope] (rotated) → cache rows slots[i], rounded to
/// the cache's dtype and, where cx.rounding asks for it, to that type first.
void write_latent(const KernelContext& cx, const MlaShape& shape, ConstRows latent, ConstRows k_rope,
                  std::span<const int64_t> slots, const PagedCache& cache);

/// Keys and values that the expanded form has made of a layer's cache, kept for the other blocks of rows and
/// the other micro-batches of a sequence: whole tiles only, which nothing writes to any more. Holds one layer
/// at a time; what finds no room is expanded where it is used. Never changes a result.
class ExpandedTiles {
 public:
  /// Keeps nothing.
  ExpandedTiles() = default;
  /// Room for `positions` tokens of the local heads, for products with that rounding.
  ExpandedTiles(const MlaShape& shape, Rounding rounding, int64_t positions);
  static int64_t bytes(const MlaShape& shape, Rounding rounding, int64_t positions);
  /// Blocks of the cache may hold other tokens from now on.
  void clear();

 private:
  friend class TileRoom;  // mla_expanded.cc
  struct Sequence {
    const int32_t* block_table;
    std::vector<int32_t> slots;  // of its tiles, from position 0 on
  };
  int64_t slot_bytes_ = 0, slots_ = 0, used_ = 0;
  const void* layer_ = nullptr;  // PagedCache::data of what is kept
  std::vector<Sequence> sequences_;
  AlignedBuffer data_;           // [slots, heads, slot_bytes / heads]
  std::vector<uint8_t> spoilt_;  // [slots, heads]: holds values that are not finite
};

/// q [rows, heads · (nope + rope)] (rotated), out [rows, heads · v]. Reads K and V from the cache
/// only, in tiles at absolute positions (multiples of the tile size), running softmax in f32. `tiles` serves
/// calls on one thread, with one shape and rounding.
void mla_attention(const KernelContext& cx, const MlaShape& shape, const MlaWeights& w, ConstRows q,
                   const PagedCache& cache, std::span<const AttentionSpan> spans, Rows out,
                   ExpandedTiles* tiles = nullptr);
size_t mla_scratch_bytes(const MlaShape& shape, int threads);

/// Sizes of one rank's share of grouped-query attention (arXiv 2305.13245): query heads
/// [i · group, (i + 1) · group) read kv head i.
struct GqaShape {
  int heads = 0;     // local
  int kv_heads = 0;  // local, divides heads
  int head_dim = 0;
  float scale = 1.0f;  // softmax scale

  int group() const { return heads / kv_heads; }
};

/// k, v [rows, kv_heads · head_dim] (keys rotated) → cache slots[i], rounded as write_latent does.
void write_kv(const KernelContext& cx, const GqaShape& shape, ConstRows k, ConstRows v,
              std::span<const int64_t> slots, const PagedCache& cache);

/// q [rows, heads · head_dim] (rotated), out [rows, heads · head_dim]. Reads K and V from the cache only.
/// Both forms are computed alike: a row's result depends on its query, its position and the cache alone.
void gqa_attention(const KernelContext& cx, const GqaShape& shape, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out);
size_t gqa_scratch_bytes(const GqaShape& shape, int threads);

// ---- norms, RoPE, gate, small things (kernels/cpu/norm*.cc, rope*.cc, gate.cc, …) ------------

/// out = x · rsqrt(mean(x²) + eps) · weight, per row; out may be x.
void rms_norm(const KernelContext& cx, ConstRows x, std::span<const float> weight, float eps, Rows out);

/// cos and sin [positions, rope / 2] (attention scaling folded in).
struct RopeTable {
  std::vector<float> cos, sin;
  int64_t positions = 0;
  int half = 0;
};
/// Rotates, in place, pairs (2j, 2j+1) of x[row][h · head_stride + offset …] for h < heads.
void rope_interleaved(const KernelContext& cx, Rows x, int heads, int64_t head_stride, int64_t offset,
                      std::span<const int32_t> positions, const RopeTable& table);

/// The same for pairs (j, j + half): the two halves of a head turn against each other.
void rope_halves(const KernelContext& cx, Rows x, int heads, int64_t head_stride, int64_t offset,
                 std::span<const int32_t> positions, const RopeTable& table);

enum class GateScore : uint8_t { kSoftmax, kSigmoid };
/// kGreedy: top-k of the scores. kGroupMax: groups ranked by their best score (V2
/// group_limited_greedy). kNoAuxTc: scores + bias, groups ranked by the sum of their best two (V3).
enum class GateMethod : uint8_t { kGreedy, kGroupMax, kNoAuxTc };
struct GateParams {
  GateScore score = GateScore::kSoftmax;
  GateMethod method = GateMethod::kGreedy;
  int experts = 0, top_k = 0, groups = 1, top_groups = 1;
  bool normalize = false;  // norm_topk_prob
  float scaling = 1.0f;    // routed_scaling_factor
};
/// logits [tokens, experts] → ids, weights [tokens, top_k], ids ascending in each row. Ties go to the
/// lower index. `bias` (kNoAuxTc) steers the choice, never the weight.
void gate_top_k(const KernelContext& cx, ConstRows logits, const GateParams& params,
                std::span<const float> bias, int32_t* ids, float* weights);

/// out += x, elementwise [rows, cols].
void add_rows(const KernelContext& cx, ConstRows x, Rows out);

/// Every row of out += bias [cols].
void add_bias(const KernelContext& cx, std::span<const float> bias, Rows out);

/// Index of the largest value, the lowest index on ties; NaN never wins. -1 when empty.
int64_t argmax(const KernelContext& cx, std::span<const float> values);
/// out[i] = values[i] − log Σ exp(values); float64 sum. out may be values.
void log_softmax(const KernelContext& cx, std::span<const float> values, std::span<float> out);

}  // namespace duet
