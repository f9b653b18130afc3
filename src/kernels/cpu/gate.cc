// Expert choice, in the arithmetic of Hugging Face's DeepseekV2MoEGate and DeepseekV3TopkRouter:
// scores in f32; experts of groups that were not chosen take part with a choice value of 0, not
// -infinity (so a V3 expert with a negative biased score can lose against one of them).
#include <cmath>

#include "kernels/cpu/row_split.h"

namespace duet {

namespace {

constexpr int kMaxStackExperts = 512;

/// The `count` best of values[0, n), best first, ties to the lower index; NaN counts as lowest.
void best_of(const float* values, int n, int count, int32_t* best) {
  const auto key = [&](int i) { return std::isnan(values[i]) ? -INFINITY : values[i]; };
  int have = 0;
  for (int i = 0; i < n; ++i) {
    const float v = key(i);
    if (have == count && !(v > key(best[count - 1]))) continue;
    int at = have < count ? have++ : count - 1;
    for (; at > 0 && v > key(best[at - 1]); --at) best[at] = best[at - 1];
    best[at] = i;
  }
}

void scores_of(const RowKernels& kernels, const float* logits, const GateParams& p, float* scores) {
  const int n = p.experts;
  if (p.score == GateScore::kSoftmax) {
    kernels.exp(logits, kernels.max(logits, n), n, scores);
    double sum = 0.0;
    for (int i = 0; i < n; ++i) sum += static_cast<double>(scores[i]);
    const auto total = static_cast<float>(sum);
    for (int i = 0; i < n; ++i) scores[i] = scores[i] / total;
    return;
  }
  for (int i = 0; i < n; ++i) scores[i] = -logits[i];
  kernels.exp(scores, 0.0f, n, scores);
  for (int i = 0; i < n; ++i) scores[i] = 1.0f / (1.0f + scores[i]);
}

/// Sets the choice value of experts outside the best groups to 0.
void mask_groups(const GateParams& p, float* choice, float* group_score, int32_t* order) {
  const int size = p.experts / p.groups;
  for (int g = 0; g < p.groups; ++g) {
    int32_t two[2] = {0, 0};
    const float* group = choice + g * size;
    if (p.method == GateMethod::kNoAuxTc) {
      best_of(group, size, std::min(2, size), two);
      group_score[g] = size > 1 ? group[two[0]] + group[two[1]] : group[two[0]];
    } else {
      best_of(group, size, 1, two);
      group_score[g] = group[two[0]];
    }
  }
  best_of(group_score, p.groups, p.top_groups, order);
  std::sort(order, order + p.top_groups);
  for (int g = 0, next = 0; g < p.groups; ++g) {
    if (next < p.top_groups && order[next] == g) {
      ++next;
    } else {
      std::fill_n(choice + g * size, size, 0.0f);
    }
  }
}

struct GateScratch {
  float* scores;   // [experts]
  float* choice;   // [experts]
  float* group;    // [groups]
  int32_t* order;  // [groups]
};

void gate_row(const RowKernels& kernels, const float* logits, const GateParams& p,
              std::span<const float> bias, const GateScratch& t, int32_t* ids, float* weights) {
  scores_of(kernels, logits, p, t.scores);
  const float* choice = t.scores;
  if (p.method != GateMethod::kGreedy) {
    for (int i = 0; i < p.experts; ++i) {
      t.choice[i] = bias.empty() ? t.scores[i] : t.scores[i] + bias[static_cast<size_t>(i)];
    }
    mask_groups(p, t.choice, t.group, t.order);
    choice = t.choice;
  }
  best_of(choice, p.experts, p.top_k, ids);
  std::sort(ids, ids + p.top_k);
  // V2 takes the weight after masking (0 for an expert of a masked group), V3 the plain score.
  const float* from = p.method == GateMethod::kGroupMax ? choice : t.scores;
  float sum = 0.0f;
  for (int j = 0; j < p.top_k; ++j) {
    weights[j] = from[ids[j]];
    sum += weights[j];
  }
  const float denominator = sum + 1e-20f;
  for (int j = 0; j < p.top_k; ++j) {
    const float w = p.normalize ? weights[j] / denominator : weights[j];
    weights[j] = w * p.scaling;
  }
}

}  // namespace

void gate_top_k(const KernelContext& cx, ConstRows logits, const GateParams& params,
                std::span<const float> bias, int32_t* ids, float* weights) {
  DUET_CHECK(logits.cols == params.experts && params.top_k >= 0 && params.top_k <= params.experts);
  DUET_CHECK(params.method == GateMethod::kGreedy ||
             (params.groups >= 1 && params.experts % params.groups == 0 && params.top_groups >= 1 &&
              params.top_groups <= params.groups));
  DUET_CHECK(bias.empty() ||
             (params.method == GateMethod::kNoAuxTc && static_cast<int64_t>(bias.size()) == params.experts));
  const RowKernels& kernels = row_kernels(cx.level);
  const auto row = [&](int64_t r, const GateScratch& t) {
    gate_row(kernels, logits.row(r), params, bias, t, ids + r * params.top_k, weights + r * params.top_k);
  };
  // No published model has more than 512 experts; one that has pays an allocation per row.
  for_rows(cx, logits.rows, params.experts * int64_t{8}, [&](int64_t r) {
    if (params.experts <= kMaxStackExperts) {
      float scores[kMaxStackExperts], choice[kMaxStackExperts], group[kMaxStackExperts];
      int32_t order[kMaxStackExperts];
      row(r, {scores, choice, group, order});
    } else {
      const auto n = static_cast<size_t>(params.experts);
      std::vector<float> floats(3 * n);
      std::vector<int32_t> order(n);
      row(r, {floats.data(), floats.data() + n, floats.data() + 2 * n, order.data()});
    }
  });
}

}  // namespace duet
