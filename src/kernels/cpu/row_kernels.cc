#include "kernels/cpu/row_kernels.h"

#include "kernels/cpu/row_integers_body.h"
#include "kernels/cpu/row_kernels_body.h"
#include "tensor/dtype.h"

namespace duet {

namespace {

void round_f16_portable(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = to_f32(to_f16(x[i]));
}

void f16_to_f32_portable(const uint16_t* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_f32(f16_t{x[i]});
}

}  // namespace

const RowKernels kRowKernelsPortable = {
    .rms_norm = rms_norm_row,
    .rope = rope_row,
    .rope_halves = rope_halves_row,
    .add = add_row,
    .scale = scale_row,
    .blend = blend_row,
    .exp = exp_row,
    .max = max_row,
    .softmax = softmax_tile,
    .multiply_rows = multiply_rows,
    .round_f16 = round_f16_portable,
    .f16_to_f32 = f16_to_f32_portable,
    .pack_columns = pack_columns_block,
    .pack_rows_f32 = pack_rows_f32_block,
    .pack_rows_bf16 = pack_rows_bf16_block,
    .multiply_i16 = multiply_i16,
    .to_i16 = to_i16,
    .i8_to_i16 = i8_to_i16,
    .i8_to_f32 = i8_to_f32,
    .pack_rows_i8 = pack_rows_i8,
};

const RowKernels& row_kernels(CpuLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case CpuLevel::kPortable: return kRowKernelsPortable;
    case CpuLevel::kAvx2: return kRowKernelsAvx2;
    case CpuLevel::kAvx512:
    case CpuLevel::kAvx512Bf16:
    case CpuLevel::kAmx: return kRowKernelsAvx512;  // no bf16 arithmetic in a row
  }
#else
  (void)level;
#endif
  return kRowKernelsPortable;
}

RowScale row_scale(float largest, int most) {
  if (largest < 1e-30f) return {0.0f, 0.0f};  // not so for NaN
  const float scale = largest / static_cast<float>(most);
  return {scale, 1.0f / scale};
}

}  // namespace duet
