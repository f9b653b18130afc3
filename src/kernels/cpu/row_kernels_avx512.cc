#include "kernels/cpu/row_kernels.h"

#if defined(__x86_64__)
#include "kernels/cpu/row_integers_body.h"
#include "kernels/cpu/row_kernels_body.h"

namespace duet {

const RowKernels kRowKernelsAvx512 = {
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
    .round_f16 = round_f16_row,
    .f16_to_f32 = f16_to_f32_row,
    .pack_columns = pack_columns_block,
    .pack_rows_f32 = pack_rows_f32_block,
    .pack_rows_bf16 = pack_rows_bf16_block,
    .multiply_i16 = multiply_i16,
    .to_i16 = to_i16,
    .i8_to_i16 = i8_to_i16,
    .i8_to_f32 = i8_to_f32,
    .pack_rows_i8 = pack_rows_i8,
};

}  // namespace duet
#endif
