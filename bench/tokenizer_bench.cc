// Time to encode 1 MiB of many kinds of text, each first by a tokenizer that was just loaded (an empty word
// cache) and then once more, with the ratio to English: whoever writes the text, none may cost more than a
// few times as much. CPU time, so that neighbours on a busy machine cost little. usage: tokenizer_bench
// [--tokenizer DIR] [--english FILE…] [--only NAME]; English is by default what Debian installs of licences
// and Perl's manuals.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "text/tokenizer.h"

namespace duet {
namespace {

namespace fs = std::filesystem;
constexpr size_t kBytes = 1 << 20;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string installed_english() {
  std::vector<fs::path> files;
  for (const char* folder : {"/usr/share/common-licenses", "/usr/share/perl"}) {
    std::error_code error;
    for (fs::recursive_directory_iterator it(folder, error), end; it != end; it.increment(error)) {
      if (it->is_symlink() || !it->is_regular_file()) continue;
      if (std::string_view(folder).ends_with("licenses") || it->path().extension() == ".pod") {
        files.push_back(it->path());
      }
    }
  }
  std::sort(files.begin(), files.end());
  std::string text;
  for (const fs::path& file : files) text += read(file);
  return text;
}

struct Input {
  std::string name, text;
};

std::string repeated(std::string_view unit) {
  std::string text;
  while (text.size() + unit.size() <= kBytes) text += unit;
  return text;
}

std::string drawn(std::string_view alphabet) {
  std::mt19937 random(1);
  std::string text;
  while (text.size() < kBytes) text += alphabet[random() % alphabet.size()];
  return text;
}

std::vector<Input> inputs(std::string english) {
  const size_t distinct = std::min(english.size(), kBytes);
  while (english.size() < kBytes) english += english;
  english.resize(kBytes);
  std::string letters;
  for (char c : english) {
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') letters += c;
  }
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::string lower = "abcdefghijklmnopqrstuvwxyz";
  return {{fmt::format("English ({:.2f} MB distinct)", static_cast<double>(distinct) * 1e-6), english},
          {"English without spaces", letters},
          {"a", repeated("a")},
          {"spaces", repeated(" ")},
          {"newlines", repeated("\n")},
          {"one emoji", repeated("😀")},
          {"one Chinese character", repeated("中")},
          {"random bytes", drawn(all)},
          {"0xFF bytes", repeated("\xFF")},
          {"random letters, one word", drawn(lower)},
          {"random abcde, one word", drawn("abcde")},
          {"random ab, one word", drawn("ab")},
          {"random etaoinshrdlu, one word", drawn("etaoinshrdlu")},
          {"random punctuation", drawn("!-=_*#./\\()[]{}<>;:,\"'")},
          {"random digits", drawn("0123456789")}};
}

void run(const fs::path& directory, const std::vector<Input>& all, const std::string& only) {
  fmt::print("{}\n{:<32} {:>10} {:>10} {:>8} {:>10} {:>9}\n", directory.string(), "1 MiB of", "first ms",
             "again ms", "MB/s", "tokens", "× English");
  double english = 0;
  for (const Input& input : all) {
    if (!only.empty() && input.name.find(only) == std::string::npos) continue;
    const auto tokenizer = Tokenizer::load(directory);
    const int64_t begin = thread_cpu_ns();
    const size_t tokens = tokenizer->encode(input.text).size();
    const double first = static_cast<double>(thread_cpu_ns() - begin) * 1e-9;
    const int64_t again_begin = thread_cpu_ns();
    if (tokenizer->encode(input.text).size() != tokens) {
      throw Error(ErrorKind::kInvalidArgument, input.name + ": encoding it twice gave two results");
    }
    const double again = static_cast<double>(thread_cpu_ns() - again_begin) * 1e-9;
    if (english == 0) english = first;
    fmt::print("{:<32} {:>10.1f} {:>10.1f} {:>8.1f} {:>10} {:>9.2f}\n", input.name, first * 1e3, again * 1e3,
               static_cast<double>(input.text.size()) / first * 1e-6, tokens, first / english);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  std::filesystem::path directory = "tests/fixtures/deepseek_v3_tokenizer";
  std::string english, only;
  const std::vector<std::string> args(argv + 1, argv + argc);
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--tokenizer" && i + 1 < args.size()) {
      directory = args[++i];
    } else if (args[i] == "--only" && i + 1 < args.size()) {
      only = args[++i];
    } else if (args[i] == "--english") {
      while (i + 1 < args.size() && !args[i + 1].starts_with("--")) english += duet::read(args[++i]);
    } else {
      fmt::print(stderr, "usage: tokenizer_bench [--tokenizer DIR] [--english FILE...] [--only NAME]\n");
      return 2;
    }
  }
  try {
    if (english.empty()) english = duet::installed_english();
    if (english.empty())
      throw duet::Error(duet::ErrorKind::kNotFound, "no English found: give --english FILE");
    duet::run(directory, duet::inputs(english), only);
  } catch (const std::exception& e) {
    fmt::print(stderr, "tokenizer_bench: {}\n", e.what());
    return 1;
  }
}
