#include "load/quantize.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/json_text.h"
#include "base/log.h"
#include "load/checkpoint.h"
#include "load/config.h"
#include "load/json.h"
#include "load/safetensors.h"
#include "load/weights.h"

namespace duet {

namespace {
namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kRows = 256;  // read, converted and written at a time
constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;

enum class Becomes : uint8_t { kCopy, kInt8, kBf16 };

struct Tensor {
  const TensorInfo* info;
  Becomes becomes;
};

struct Shard {
  std::vector<Tensor> tensors;
  std::vector<SafetensorsDecl> decls;  // a kInt8 tensor has two, weight and scale
  uint64_t bytes = 0;
};

bool is_companion(const std::string& name) {
  for (const char* suffix : {".weight_scale_inv", ".weight_scale", ".weight_offset", ".weight_zero_point"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

Becomes choose(const TensorInfo& info, QuantScheme scheme) {
  const bool eight = info.dtype == DType::kF8E4M3 || info.dtype == DType::kI8;
  const bool matrix = info.shape.size() == 2;
  if (scheme == QuantScheme::kW8A8) {
    if (matrix && is_projection(info.name) && !info.name.ends_with(".kv_b_proj.weight"))
      return Becomes::kInt8;
    return eight ? Becomes::kBf16 : Becomes::kCopy;
  }
  // The router's bias decides between close experts: published checkpoints keep it in float32.
  const bool bias = info.name.ends_with("e_score_correction_bias");
  return eight || (!bias && info.dtype != DType::kBf16) ? Becomes::kBf16 : Becomes::kCopy;
}

void check_readable(const TensorInfo& info) {
  const bool known = info.dtype == DType::kF32 || info.dtype == DType::kBf16 || info.dtype == DType::kF16 ||
                     info.dtype == DType::kF8E4M3 || info.dtype == DType::kI8;
  if (!known) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: tensor {} has dtype {}; supported are F32, BF16, F16, F8_E4M3 and I8",
                            info.file, show_name(info.name), info.dtype_name));
  }
}

std::vector<Shard> plan_shards(const std::vector<Tensor>& tensors, uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  for (const Tensor& t : tensors) {
    std::vector<SafetensorsDecl> decls;
    const DType dtype = t.becomes == Becomes::kInt8   ? DType::kI8
                        : t.becomes == Becomes::kBf16 ? DType::kBf16
                                                      : *t.info->dtype;
    decls.push_back({t.info->name, dtype, t.info->shape});
    if (t.becomes == Becomes::kInt8)
      decls.push_back({t.info->name + "_scale", DType::kF32, {t.info->shape[0], 1}});
    uint64_t bytes = 0;
    for (const SafetensorsDecl& d : decls) {
      uint64_t size = dtype_bytes(d.dtype);
      for (const int64_t n : d.shape) size *= static_cast<uint64_t>(n);
      bytes += size;
    }
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > max_bytes) shards.emplace_back();
    Shard& shard = shards.back();
    shard.tensors.push_back(t);
    shard.decls.insert(shard.decls.end(), decls.begin(), decls.end());
    shard.bytes += bytes;
  }
  return shards;
}

/// Row `r` of a loaded matrix as float32, scales multiplied in.
void widen_row(const WeightView& v, int64_t r, float* out) {
  const auto size = static_cast<int64_t>(dtype_bytes(v.dtype));
  convert_to_f32(static_cast<const std::byte*>(v.data) + r * v.row_stride * size, v.dtype, out,
                 static_cast<size_t>(v.cols));
  if (!v.scales.data) return;
  for (int64_t k = 0; k < v.cols; ++k) out[k] *= v.scales.at(r, k);
}

class Writer {
 public:
  Writer(const WeightSource& source, const std::function<void(uint64_t)>& wrote)
      : source_(source), wrote_(wrote) {}

  void write(SafetensorsWriter& file, size_t index, const Tensor& t) {
    const TensorInfo& info = *t.info;
    if (t.becomes == Becomes::kCopy) {
      const int64_t count = static_cast<int64_t>(info.bytes / dtype_bytes(*info.dtype));
      file.write(index, 0, info.data, count);
      wrote_(info.bytes);
    } else if (info.shape.size() == 2) {
      write_matrix(file, index, t);
    } else {
      int64_t count = 1;
      for (const int64_t n : info.shape) count *= n;
      if (info.dtype == DType::kF8E4M3 || info.dtype == DType::kI8) {
        throw Error(ErrorKind::kUnsupported,
                    fmt::format("{}: tensor {} is {} of shape {}; expected a matrix", info.file,
                                show_name(info.name), info.dtype_name, shape_to_string(info.shape)));
      }
      const std::vector<float> wide = source_.vector_f32(info.name, count);
      std::vector<bf16_t> narrow(wide.size());
      f32_to_bf16(wide.data(), narrow.data(), wide.size());
      file.write(index, 0, narrow.data(), count);
      wrote_(info.bytes);
    }
  }

 private:
  void write_matrix(SafetensorsWriter& file, size_t index, const Tensor& t) {
    const int64_t rows = t.info->shape[0], cols = t.info->shape[1];
    std::vector<float> wide(static_cast<size_t>(cols));
    std::vector<int8_t> bytes(wide.size());
    std::vector<bf16_t> narrow(wide.size());
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t count = std::min(kRows, rows - first);
      const LoadedMatrix m = source_.matrix(t.info->name, rows, cols, {first, first + count}, {0, cols});
      for (int64_t r = 0; r < count; ++r) {
        widen_row(m.view, r, wide.data());
        if (t.becomes == Becomes::kBf16) {
          f32_to_bf16(wide.data(), narrow.data(), wide.size());
          file.write(index, (first + r) * cols, narrow.data(), cols);
          continue;
        }
        const float scale = quantise_row_i8(wide.data(), wide.size(), bytes.data());
        if (!std::isfinite(scale)) {
          throw Error(ErrorKind::kCorrupt, fmt::format("{}: tensor {} holds NaN or infinity in row {}",
                                                       t.info->file, show_name(t.info->name), first + r));
        }
        file.write(index, (first + r) * cols, bytes.data(), cols);
        file.write(index + 1, first + r, &scale, 1);
      }
      wrote_(static_cast<uint64_t>(count * cols) * dtype_bytes(*t.info->dtype));
    }
  }

  const WeightSource& source_;
  const std::function<void(uint64_t)>& wrote_;
};

ordered_json int8_scheme(const char* strategy, bool dynamic) {
  return {{"num_bits", 8},         {"type", "int"},
          {"symmetric", true},     {"strategy", strategy},
          {"dynamic", dynamic},    {"observer", dynamic ? ordered_json(nullptr) : "minmax"},
          {"group_size", nullptr}, {"block_structure", nullptr},
          {"actorder", nullptr},   {"observer_kwargs", ordered_json::object()}};
}

/// config.json of the new directory: everything as it was but the quantisation.
std::string new_config(const std::string& path, const ModelConfig& config, QuantScheme scheme) {
  ordered_json root = read_ordered_json(read_text_file(path, kMaxConfigBytes));
  root.erase("quantization_config");
  if (scheme == QuantScheme::kBf16) {
    root[root.contains("dtype") ? "dtype" : "torch_dtype"] = "bfloat16";
    return json_text(root, 2) + "\n";
  }
  ordered_json ignore = ordered_json::array({"lm_head"});
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (config.latent_attention()) ignore.push_back(fmt::format("model.layers.{}.self_attn.kv_b_proj", l));
    if (config.is_moe_layer(l))
      ignore.push_back(fmt::format("model.layers.{}.{}gate", l, config.expert_names().block));
  }
  root["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                 {"format", "int-quantized"},
                                 {"quantization_status", "compressed"},
                                 {"ignore", ignore},
                                 {"config_groups",
                                  {{"group_0",
                                    {{"targets", {"Linear"}},
                                     {"weights", int8_scheme("channel", false)},
                                     {"input_activations", int8_scheme("token", true)},
                                     {"output_activations", nullptr}}}}},
                                 {"kv_cache_scheme", nullptr},
                                 {"global_compression_ratio", nullptr}};
  return json_text(root, 2) + "\n";
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) throw Error(ErrorKind::kResourceExhausted, path.string() + ": cannot be written");
}

/// Tokenizer, generation config, licence …: what is neither weights nor says how they are stored.
void copy_other_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name == "config.json" || name == "quant_model_description.json" ||
                      name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if (!entry.is_regular_file() || ours) continue;
    fs::copy_file(entry.path(), to / name);
    fs::permissions(to / name, fs::perms::owner_write, fs::perm_options::add);
  }
}

/// The directory beside `out` that becomes it when all is written; goes away with its contents otherwise.
class NewDirectory {
 public:
  explicit NewDirectory(const std::string& out) : out_(fs::path(out).lexically_normal()) {
    if (!out_.has_filename()) out_ = out_.parent_path();
    std::error_code error;
    if (fs::exists(out_, error) && (!fs::is_directory(out_, error) || !fs::is_empty(out_, error))) {
      throw Error(ErrorKind::kInvalidArgument, out + ": exists and is no empty directory; name a new one");
    }
    partial_ = out_;
    partial_ += fmt::format(".partial-{}", getpid());
    fs::remove_all(partial_, error);
    fs::create_directories(partial_, error);
    if (error) throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", out, error.message()));
  }
  ~NewDirectory() {
    std::error_code ignored;
    if (!done_) fs::remove_all(partial_, ignored);
  }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  const fs::path& path() const { return partial_; }
  void commit() {
    std::error_code error;
    fs::rename(partial_, out_, error);
    if (error)
      throw Error(ErrorKind::kResourceExhausted, fmt::format("{}: {}", out_.string(), error.message()));
    done_ = true;
  }

 private:
  fs::path out_, partial_;
  bool done_ = false;
};

}  // namespace

QuantizeResult quantize_checkpoint(const std::string& model, const std::string& out, QuantScheme scheme,
                                   const std::function<void(double)>& progress, uint64_t max_file_bytes) {
  const ModelConfig config = load_config(model);
  const auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(model));
  const std::unique_ptr<WeightSource> source = checkpoint_weights(checkpoint, config.quant);
  QuantizeResult result;
  std::vector<Tensor> tensors;
  int64_t skipped = 0;
  uint64_t total = 0;
  for (const TensorInfo& info : checkpoint->tensors()) {
    result.bytes_before += info.bytes;
    if (is_companion(info.name)) continue;
    if (layer_of_tensor(info.name) >= config.num_hidden_layers) {
      ++skipped;
      continue;
    }
    check_readable(info);
    tensors.push_back({&info, choose(info, scheme)});
    result.quantised += tensors.back().becomes == Becomes::kInt8 ? 1 : 0;
    total += info.bytes;
  }
  if (skipped > 0) log_info("{} tensors of multi-token-prediction layers are left out", skipped);
  NewDirectory directory(out);
  const fs::path& to = directory.path();
  const std::vector<Shard> shards = plan_shards(tensors, max_file_bytes);
  uint64_t written = 0;
  const std::function<void(uint64_t)> wrote = [&](uint64_t bytes) {
    written += bytes;
    if (progress) progress(static_cast<double>(written) / static_cast<double>(std::max<uint64_t>(total, 1)));
  };
  Writer writer(*source, wrote);
  ordered_json index = {{"metadata", ordered_json::object()}, {"weight_map", ordered_json::object()}};
  for (size_t s = 0; s < shards.size(); ++s) {
    const std::string name = shards.size() == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    SafetensorsWriter file((to / name).string(), shards[s].decls, {{"format", "pt"}});
    size_t at = 0;
    for (const Tensor& t : shards[s].tensors) {
      writer.write(file, at, t);
      at += t.becomes == Becomes::kInt8 ? 2 : 1;
    }
    file.finish();
    for (const SafetensorsDecl& d : shards[s].decls) index["weight_map"][d.name] = name;
    result.tensors += static_cast<int64_t>(shards[s].decls.size());
    result.bytes_after += shards[s].bytes;
  }
  result.files = static_cast<int>(shards.size());
  if (shards.size() > 1) {
    index["metadata"]["total_size"] = result.bytes_after;
    write_text(to / "model.safetensors.index.json", json_text(index, 2) + "\n");
  }
  copy_other_files(model, to);
  write_text(to / "config.json", new_config((fs::path(model) / "config.json").string(), config, scheme));
  directory.commit();
  return result;
}

}  // namespace duet
