#include "cli/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "base/error.h"
#include "cli/suggest.h"
#include "cli/usage_error.h"
#include "comm/shaped_transport.h"
#include "engine/options.h"

namespace duet {
namespace {

std::string dashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::vector<std::string> flags_of(uint32_t verb) {
  std::vector<std::string> names;
  for (const FlagSpec& flag : flag_table()) {
    if (flag.verbs & verb) names.emplace_back(flag.name);
  }
  return names;
}

// "--foo", "--foo=1", "-tp": a flag; "-", "-1", "-.5", "text": not.
bool looks_like_flag(const std::string& arg) {
  if (arg.size() < 2 || arg[0] != '-') return false;
  return arg[1] == '-' ? arg.size() > 2 : std::isalpha(static_cast<unsigned char>(arg[1])) != 0;
}

struct Word {
  std::string name;  // "tensor-parallel-size", without dashes; as typed where unknown
  std::string typed;
  std::string value;
  bool has_value = false;
  bool single_dash = false;
};

Word split_word(const std::string& arg) {
  Word word;
  const size_t equals = arg.find('=');
  word.typed = arg.substr(0, equals);
  word.has_value = equals != std::string::npos;
  if (word.has_value) word.value = arg.substr(equals + 1);
  word.single_dash = word.typed.size() < 2 || word.typed[1] != '-';
  word.name = dashes(word.typed.substr(word.single_dash ? 1 : 2));
  return word;
}

const FlagSpec* flag_by_word(const Word& word) {
  if (!word.single_dash) return find_flag(word.name);
  for (const FlagSpec& flag : flag_table()) {
    if (flag.alias && word.typed == flag.alias) return &flag;
  }
  return nullptr;
}

const RefusedFlag* refused_by_word(const Word& word) {
  if (!word.single_dash) return find_refused(word.name);
  for (const char* name :
       {"pipeline-parallel-size", "data-parallel-size", "decode-context-parallel-size", "quantization"}) {
    const RefusedFlag* refused = find_refused(name);
    if (refused && refused->alias && word.typed == refused->alias) return refused;
  }
  return nullptr;
}

std::string verbs_that_take(const FlagSpec& flag) {
  std::vector<std::string> names;
  for (const VerbSpec& verb : verb_table()) {
    if (!verb.hidden && (flag.verbs & verb.bit)) names.emplace_back(verb.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

[[noreturn]] void refuse_unknown(const VerbSpec& verb, const Word& word) {
  const std::vector<std::string> names = flags_of(verb.bit);
  // "--trace" of vLLM-like names that merely start alike stay unknown: no abbreviations, they break
  // scripts when a flag is added.
  throw UsageError(fmt::format("unknown flag {}{}{}", word.typed, did_you_mean(word.name, names, "--"),
                               names.empty() ? "" : fmt::format(" (duet {} --help lists all)", verb.name)));
}

/// The command line with every flag in its main spelling and its value, if any, as a word of its
/// own: what CLI11 then parses. Unknown and refused flags end here, by name.
/// The names of what stands without a flag: "MODEL", "OUT".
std::vector<std::string> places_of(const VerbSpec& verb) {
  std::vector<std::string> names;
  std::istringstream words(verb.positional);
  for (std::string word; words >> word;) names.push_back(word);
  return names;
}

// Verbs that vLLM has too: its own way to name the model is theirs, and so are its flags.
constexpr uint32_t kVllmVerbs = kServe | kBenchThroughput | kBenchLatency;

class Canonical {
 public:
  Canonical(const VerbSpec& verb, const std::vector<std::string>& args) : verb_(verb), args_(args) { run(); }
  std::vector<std::string> words;
  std::vector<std::string> notes;
  bool help = false;

 private:
  void run() {
    for (at_ = 0; at_ < args_.size(); ++at_) {
      const std::string& arg = args_[at_];
      if (arg == "--") {
        words.insert(words.end(), args_.begin() + static_cast<std::ptrdiff_t>(at_), args_.end());
        positionals_ += args_.size() - at_ - 1;
        return;
      }
      if (!looks_like_flag(arg)) {
        words.push_back(arg);
        ++positionals_;
        continue;
      }
      const Word word = split_word(arg);
      if (word.typed == "--help" || word.typed == "-h") {
        help = true;
        continue;
      }
      add(word);
    }
  }

  void add(Word word) {
    if ((verb_.bit & kVllmVerbs) != 0 && word.typed == "--model") {  // vLLM's other way to name the model
      words.push_back(word.has_value ? word.value : next(word.typed));
      ++positionals_;
      return;
    }
    const FlagSpec* flag = flag_by_word(word);
    if (!flag && (verb_.bit & (kVllmVerbs | kBenchServe)) != 0 && ignore(word)) return;
    if (!flag && word.name.starts_with("no-")) {
      const FlagSpec* positive = find_flag(std::string_view(word.name).substr(3));
      if (positive && positive->type == FlagType::kBool && !word.has_value) {
        flag = positive;
        word.value = "false";
        word.has_value = true;
      }
    }
    if (!flag) {
      refuse(word);
      return;
    }
    if (!(flag->verbs & verb_.bit)) {
      throw UsageError(
          fmt::format("{} is a flag of {}, not of {}", word.typed, verbs_that_take(*flag), verb_.name));
    }
    if (flag->type == FlagType::kBool) {
      words.push_back(word.has_value
                          ? fmt::format("--{}={}", flag->name, parse_switch(word.value, word.typed))
                          : fmt::format("--{}", flag->name));
      return;
    }
    push(*flag, word.has_value ? word.value : next(word.typed));
    if (!flag->greedy || word.has_value) return;
    // The last word is left for the positional where that is still missing: `--prompt A B MODEL`.
    const size_t places = places_of(verb_).size();
    const size_t needed = places > positionals_ ? places - positionals_ : 0;
    while (at_ + 1 < args_.size() && !looks_like_flag(args_[at_ + 1]) && args_[at_ + 1] != "--") {
      if (at_ + 1 + needed >= args_.size()) return;
      push(*flag, args_[++at_]);
    }
  }

  // Flags of vLLM's server that mean nothing here.
  bool ignore(const Word& word) {
    if (word.single_dash) return false;
    const IgnoredFlag* ignored = find_ignored(word.name);
    if (!ignored && word.name.starts_with("no-"))
      ignored = find_ignored(std::string_view(word.name).substr(3));
    if (!ignored) return false;
    if (ignored->takes_value && !word.has_value) next(word.typed);
    notes.push_back(fmt::format("{} has no effect: {}", word.typed, ignored->why));
    return true;
  }

  void refuse(const Word& word) {
    const RefusedFlag* refused = refused_by_word(word);
    if (!refused) refuse_unknown(verb_, word);
    if (refused->one_is_fine) {
      const std::string value = word.has_value ? word.value : next(word.typed);
      if (value == "1") return;
      throw UsageError(fmt::format("{} {} is refused: {}", word.typed, value, refused->why));
    }
    throw UsageError(fmt::format("{} is refused: {}", word.typed, refused->why));
  }

  void push(const FlagSpec& flag, const std::string& value) {
    words.push_back(fmt::format("--{}", flag.name));
    words.push_back(value);
  }

  const std::string& next(const std::string& typed) {
    if (at_ + 1 >= args_.size() || args_[at_ + 1].starts_with("--")) {
      const FlagSpec* flag = flag_by_word(split_word(typed));
      throw UsageError(
          fmt::format("{} needs a value{}", typed, flag ? fmt::format(" ({})", flag->value) : ""));
    }
    return args_[++at_];
  }

  const VerbSpec& verb_;
  const std::vector<std::string>& args_;
  size_t at_ = 0;
  size_t positionals_ = 0;
};

double parse_number(const std::string& text, const std::string& shown, const char* what) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value)) {
    throw UsageError(fmt::format("{} is \"{}\"; expected {}", shown, text, what));
  }
  return value;
}

void check_range(const FlagSpec& flag, double value, const std::string& shown, const std::string& text) {
  if (value >= flag.low && value <= flag.high) return;
  throw UsageError(flag.high >= 2147483647.0 && value < flag.low
                       ? fmt::format("{} is {}; expected {} or more", shown, text, flag.low)
                       : fmt::format("{} is {}; expected {} to {}", shown, text, flag.low, flag.high));
}

void check_choice(const FlagSpec& flag, const std::string& text, const std::string& shown) {
  const std::vector<std::string> choices = flag_choices(flag);
  if (std::find(choices.begin(), choices.end(), text) != choices.end()) return;
  if (const char* why = refused_value(flag.name, text)) {
    throw UsageError(fmt::format("{} {} is refused: {}", shown, text, why));
  }
  throw UsageError(fmt::format("{} is \"{}\"; expected {}{}", shown, text, fmt::join(choices, ", "),
                               did_you_mean(text, choices)));
}

void check_value(const FlagSpec& flag, const std::string& text, const std::string& shown) {
  try {
    switch (flag.type) {
      case FlagType::kBool: parse_switch(text, shown); return;
      case FlagType::kText: return;
      case FlagType::kInt: {
        const double value = parse_number(text, shown, "a whole number");
        if (value != std::floor(value)) {
          throw UsageError(fmt::format("{} is {}; expected a whole number", shown, text));
        }
        check_range(flag, value, shown, text);
        return;
      }
      case FlagType::kNumber: check_range(flag, parse_number(text, shown, "a number"), shown, text); return;
      case FlagType::kChoice: check_choice(flag, text, shown); return;
      case FlagType::kBytes: parse_bytes(text, shown.c_str()); return;
      case FlagType::kBandwidth: parse_bandwidth(text); return;
      case FlagType::kDuration: parse_duration(text); return;
      case FlagType::kIdList: parse_token_ids(text, shown); return;
    }
  } catch (const Error& error) {
    const std::string_view what = error.what();
    throw UsageError(what.starts_with(shown) ? std::string(what) : fmt::format("{}: {}", shown, what));
  }
}

// Spellings that mean a choice: vLLM's and ours for the same dtype.
std::string canonical_choice(const FlagSpec& flag, const std::string& text) {
  const std::string_view name = flag.name;
  if (name == "dtype" && text == "float") return "float32";
  if (name == "dtype" && text == "float16") return "half";
  if (name == "comm-dtype" && text == "bfloat16") return "bf16";
  if (name == "comm-dtype" && text == "float32") return "f32";
  if (name == "distributed-executor-backend" && text == "mp") return "threads";
  return text;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  size_t start = 0;
  while (start <= text.size()) {
    const size_t end = std::min(text.find('\n', start), text.size());
    if (end > start) lines.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return lines;
}

}  // namespace

Flags Flags::parse(const VerbSpec& verb, const std::vector<std::string>& args, const Environment& env) {
  Flags flags;
  flags.verb_ = &verb;
  flags.read_command_line(args);
  if (flags.wants_help_) return flags;
  flags.read_environment(env);
  for (auto& [name, value] : flags.values_) {
    const FlagSpec& flag = *find_flag(name);
    if (flag.type == FlagType::kChoice) {
      for (std::string& text : value.values) text = canonical_choice(flag, text);
    }
  }
  flags.check_values();
  return flags;
}

void Flags::read_command_line(const std::vector<std::string>& args) {
  Canonical canonical(*verb_, args);
  if (canonical.help) {
    wants_help_ = true;
    return;
  }
  notes_ = canonical.notes;
  CLI::App app;
  app.set_help_flag();
  std::vector<std::pair<const FlagSpec*, CLI::Option*>> options;
  for (const FlagSpec& flag : flag_table()) {
    if (!(flag.verbs & verb_->bit)) continue;
    const std::string name = fmt::format("--{}", flag.name);
    CLI::Option* option = flag.type == FlagType::kBool
                              ? app.add_flag(name)
                              : app.add_option(name, [](const CLI::results_t&) { return true; });
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    options.emplace_back(&flag, option);
  }
  std::vector<std::string> extra;
  CLI::Option* positional = app.add_option("positional", [](const CLI::results_t&) { return true; });
  app.allow_extras();
  std::reverse(canonical.words.begin(), canonical.words.end());
  try {
    app.parse(canonical.words);
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  extra = app.remaining();
  std::vector<std::string> places = positional->results();
  places.insert(places.end(), extra.begin(), extra.end());
  const std::vector<std::string> names = places_of(*verb_);
  const size_t expected = names.size();
  if (places.size() < expected) {
    throw UsageError(
        fmt::format("{} is missing; usage: duet {} {}", names[places.size()], verb_->name, verb_->usage));
  }
  if (places.size() > expected) {
    throw UsageError(
        fmt::format("unexpected \"{}\"; usage: duet {} {}", places[expected], verb_->name, verb_->usage));
  }
  positionals_ = std::move(places);
  for (const auto& [flag, option] : options) {
    if (option->count() == 0) continue;
    Value value{option->results(), Source::kCommandLine, fmt::format("--{}", flag->name)};
    if (!flag->repeated) value.values = {value.values.back()};
    values_[flag->name] = std::move(value);
  }
}

void Flags::read_environment(const Environment& env) {
  for (const FlagSpec& flag : flag_table()) {
    if (!(flag.verbs & verb_->bit) || given(flag.name)) continue;
    Value value{{}, Source::kEnvironment, ""};
    std::vector<std::string> variables{flag_variable(flag)};
    if (flag.env_alias) variables.emplace_back(flag.env_alias);
    for (const std::string& variable : variables) {
      const auto found = env.find(variable);
      if (found == env.end()) continue;
      if (flag.type == FlagType::kBool) {
        // Several names of one switch: the one that says off wins, so each of them can turn it off.
        const bool on = parse_switch(found->second, variable);
        if (!value.values.empty() && on) continue;
        value.values = {on ? "true" : "false"};
      } else if (found->second.empty()) {
        continue;  // an empty variable is an unset one
      } else if (flag.repeated && flag.type == FlagType::kText) {
        value.values = split_lines(found->second);
      } else {
        value.values = {found->second};
      }
      value.shown = variable;
    }
    if (!value.values.empty()) values_[flag.name] = std::move(value);
  }
}

void Flags::check_values() const {
  for (const auto& [name, value] : values_) {
    for (const std::string& text : value.values) check_value(*find_flag(name), text, value.shown);
  }
}

const Flags::Value* Flags::find(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

Flags::Source Flags::source(std::string_view name) const {
  const Value* value = find(name);
  return value ? value->source : Source::kDefault;
}

std::string Flags::shown(std::string_view name) const {
  const Value* value = find(name);
  return value ? value->shown : fmt::format("--{}", name);
}

std::string Flags::text(std::string_view name) const {
  const Value* value = find(name);
  const FlagSpec* flag = find_flag(name);
  DUET_CHECK(flag != nullptr);
  return value ? value->values.back() : flag->fallback;
}

int64_t Flags::integer(std::string_view name) const {
  const std::string value = text(name);
  return value.empty() ? 0 : static_cast<int64_t>(parse_number(value, shown(name), "a whole number"));
}

double Flags::number(std::string_view name) const {
  const std::string value = text(name);
  return value.empty() ? 0 : parse_number(value, shown(name), "a number");
}

bool Flags::boolean(std::string_view name) const {
  const Value* value = find(name);
  return value && parse_switch(value->values.back(), value->shown);
}

const std::vector<std::string>& Flags::list(std::string_view name) const {
  static const std::vector<std::string> kNone;
  const Value* value = find(name);
  return value ? value->values : kNone;
}

}  // namespace duet
