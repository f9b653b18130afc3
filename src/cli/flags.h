// Flags as given: command line and DUET_* variables read against the one table, every value checked.
// Each verb asks for them by name. The command line wins over the environment, which wins over the
// table's default.
// Always holds: a value that a getter returns has the flag's type and lies in its range.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/cli.h"
#include "cli/flag_table.h"

namespace duet {

class Flags {
 public:
  /// Throws UsageError: unknown flags (with the nearest name), flags of another verb, refused ones,
  /// values of the wrong type, a missing or an extra positional. `args` starts after the verb.
  static Flags parse(const VerbSpec& verb, const std::vector<std::string>& args, const Environment& env);

  const VerbSpec& verb() const { return *verb_; }
  /// What stands without a flag, in the order of VerbSpec::positional.
  const std::string& positional(size_t index = 0) const { return positionals_.at(index); }
  /// Flags that were accepted and mean nothing here, a line for each.
  const std::vector<std::string>& notes() const { return notes_; }
  bool wants_help() const { return wants_help_; }

  enum class Source : uint8_t { kDefault, kEnvironment, kCommandLine };
  /// kDefault also for a flag that this verb does not take.
  Source source(std::string_view name) const;
  bool given(std::string_view name) const { return source(name) != Source::kDefault; }
  /// "--max-tokens" or "DUET_MAX_TOKENS": how the value was given, for messages.
  std::string shown(std::string_view name) const;

  std::string text(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  bool boolean(std::string_view name) const;
  /// Every occurrence, in order.
  const std::vector<std::string>& list(std::string_view name) const;

 private:
  struct Value {
    std::vector<std::string> values;
    Source source = Source::kDefault;
    std::string shown;
  };
  void read_command_line(const std::vector<std::string>& args);
  void read_environment(const Environment& env);
  void check_values() const;
  const Value* find(std::string_view name) const;

  const VerbSpec* verb_ = nullptr;
  std::vector<std::string> positionals_;
  bool wants_help_ = false;
  std::vector<std::string> notes_;
  std::map<std::string, Value, std::less<>> values_;
};

/// "1", "true", "on", "yes" / "0", "false", "off", "no", "" (any case); throws UsageError naming `shown`.
bool parse_switch(const std::string& text, const std::string& shown);
/// "0,5,7"; throws UsageError naming `shown`.
std::vector<int32_t> parse_token_ids(const std::string& text, const std::string& shown);

}  // namespace duet
