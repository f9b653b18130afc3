#include "load/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "load/json.h"

namespace duet {

namespace {
namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr uint64_t kMaxIndexBytes = uint64_t{1} << 30;

using WeightMap = std::map<std::string, std::string>;  // tensor → file name

// A shard is a file beside the index: an index must not reach for "../../secret".
void check_shard_name(const std::string& index_path, const std::string& shard) {
  if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos ||
      shard.find('\0') != std::string::npos || !shard.ends_with(".safetensors")) {
    throw Error(
        ErrorKind::kCorrupt,
        fmt::format("{}: weight_map names the file {}; expected a *.safetensors file name without a path",
                    index_path, show_name(shard)));
  }
}

WeightMap read_index(const std::string& path) {
  const nlohmann::json root = parse_json(read_text_file(path, kMaxIndexBytes), path, JsonKeys::kUnique);
  const JsonFields fields(root, path, "");
  const nlohmann::json* map = fields.find("weight_map");
  if (!map || !map->is_object() || map->empty())
    fields.fail("weight_map", "an object: tensor name to file name");
  WeightMap weights;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("{}: weight_map holds {} for tensor {}; expected a file name", path,
                              describe(file), show_name(tensor)));
    }
    check_shard_name(path, file.get_ref<const std::string&>());
    weights.emplace(tensor, file.get<std::string>());
  }
  return weights;
}

std::vector<std::string> list_safetensors(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors")) names.push_back(std::move(name));
  }
  if (error) throw Error(ErrorKind::kNotFound, dir + ": cannot be listed: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// "model-00002-of-00003.safetensors" → {2, 3}.
std::optional<std::pair<int, int>> shard_number(std::string_view name) {
  constexpr std::string_view kPrefix = "model-";
  constexpr std::string_view kMiddle = "-of-";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* const end = name.data() + name.size();
  int number = 0;
  int total = 0;
  const auto [after, error] = std::from_chars(name.data() + kPrefix.size(), end, number);
  if (error != std::errc{} ||
      !std::string_view(after, static_cast<size_t>(end - after)).starts_with(kMiddle)) {
    return std::nullopt;
  }
  const auto [rest, error2] = std::from_chars(after + kMiddle.size(), end, total);
  if (error2 != std::errc{} || std::string_view(rest, static_cast<size_t>(end - rest)) != ".safetensors") {
    return std::nullopt;
  }
  return std::pair{number, total};
}

// Without an index: the set model-1-of-N … model-N-of-N must be whole, or a tensor would be
// reported as missing when in truth a download was cut short.
std::vector<std::string> numbered_shards(const std::string& dir, const std::vector<std::string>& all) {
  std::vector<std::string> shards;
  std::set<int> numbers;
  int total = 0;
  for (const std::string& name : all) {
    const auto number = shard_number(name);
    if (!number) continue;
    if (total != 0 && number->second != total) {
      throw Error(ErrorKind::kCorrupt, fmt::format("{}: {} and {} belong to different sets of shards", dir,
                                                   show_name(shards.front()), show_name(name)));
    }
    total = number->second;
    numbers.insert(number->first);
    shards.push_back(name);
  }
  for (int i = 1; i <= total; ++i) {
    if (!numbers.contains(i)) {
      throw Error(ErrorKind::kNotFound, fmt::format("{}: shard {} of {} is missing", dir, i, total));
    }
  }
  return shards;
}

std::vector<std::string> files_without_index(const std::string& dir) {
  std::vector<std::string> all = list_safetensors(dir);
  std::vector<std::string> shards = numbered_shards(dir, all);
  if (!shards.empty()) return shards;
  if (all.size() == 1) return all;
  throw Error(
      ErrorKind::kNotFound,
      fmt::format("{}: {}; expected {} or {} with its shards (--load-format dummy needs no weights)", dir,
                  all.empty() ? "no *.safetensors file" : "several *.safetensors files and no index",
                  kSingleName, kIndexName));
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& model_dir) {
  std::error_code ignored;
  const fs::path dir(model_dir);
  if (!fs::is_directory(dir, ignored)) throw Error(ErrorKind::kNotFound, model_dir + ": no such directory");
  Checkpoint checkpoint;
  checkpoint.dir_ = model_dir;

  const std::string index_path = (dir / kIndexName).string();
  const bool has_single = fs::exists(dir / kSingleName, ignored);
  WeightMap weight_map;
  std::set<std::string> names;
  if (fs::exists(index_path, ignored)) {
    weight_map = read_index(index_path);
    for (const auto& [tensor, file] : weight_map) names.insert(file);
    if (has_single && !names.contains(kSingleName)) {
      // Both a single file and foreign shards: Hugging Face reads the single file.
      log_warning("{}: read {} and not the shards of {}", model_dir, kSingleName, kIndexName);
      weight_map.clear();
      names = {kSingleName};
    }
  } else if (has_single) {
    names = {kSingleName};
  } else {
    const std::vector<std::string> found = files_without_index(model_dir);
    names.insert(found.begin(), found.end());
  }
  for (const std::string& name : names) {
    const std::string path = (dir / name).string();
    if (!weight_map.empty() && !fs::exists(path, ignored)) {
      throw Error(ErrorKind::kNotFound, fmt::format("{}: shard is missing (named by {})", path, kIndexName));
    }
    checkpoint.files_.push_back(SafetensorsFile::open(path));
  }
  checkpoint.collect();
  for (const auto& [tensor, file] : weight_map) {
    const TensorInfo* info = checkpoint.find(tensor);
    const std::string path = (dir / file).string();
    if (!info || info->file != path) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("{}: has no tensor {}, which {} places there{}", path, show_name(tensor),
                              kIndexName, info ? " (it is in " + info->file + ")" : ""));
    }
  }
  return checkpoint;
}

void Checkpoint::collect() {
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsEntry& e : file.header().tensors) {
      tensors_.push_back(
          {e.name, e.dtype_name, e.dtype, e.shape, file.data(e), e.end - e.begin, file.path()});
    }
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  index_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const auto [it, inserted] = index_.emplace(tensors_[i].name, i);
    if (!inserted) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tensor {} is in two files: {} and {}", show_name(tensors_[i].name),
                              tensors_[it->second].file, tensors_[i].file));
    }
  }
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const TensorInfo& Checkpoint::require(const std::string& name,
                                      std::span<const int64_t> expected_shape) const {
  const TensorInfo* info = find(name);
  if (!info) {
    throw Error(ErrorKind::kNotFound,
                fmt::format("{}: tensor {} is missing; expected it with shape {} in {}", dir_,
                            show_name(name), shape_to_string(expected_shape),
                            files_.size() == 1 ? files_.front().path()
                                               : fmt::format("one of {} files", files_.size())));
  }
  if (!std::equal(info->shape.begin(), info->shape.end(), expected_shape.begin(), expected_shape.end())) {
    throw Error(ErrorKind::kCorrupt,
                fmt::format("{}: tensor {} has shape {}; config.json asks for {}", info->file,
                            show_name(name), shape_to_string(info->shape), shape_to_string(expected_shape)));
  }
  return *info;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const TensorInfo& info : tensors_) total += info.bytes;
  return total;
}

}  // namespace duet
