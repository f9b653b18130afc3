#include "cli/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cli/flag_table.h"

namespace duet {
namespace {

constexpr size_t kPageWidth = 96;  // of a help page: fits a terminal that is not maximised
constexpr size_t kColumn = 34;     // where the explanations start

std::string spelling(const FlagSpec& flag) {
  std::string text =
      flag.alias ? fmt::format("{}, --{}", flag.alias, flag.name) : fmt::format("--{}", flag.name);
  if (flag.type != FlagType::kBool) text += fmt::format(" {}", flag.value);
  return text;
}

std::string variables(const FlagSpec& flag) {
  return flag.env_alias ? fmt::format("{}, {}", flag_variable(flag), flag.env_alias) : flag_variable(flag);
}

std::string wrap(const std::string& text, size_t indent) {
  std::string out;
  size_t column = indent;
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = std::min(text.find(' ', start), text.size());
    const std::string word = text.substr(start, end - start);
    if (column > indent && column + 1 + word.size() > kPageWidth) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    start = end + 1;
  }
  return out;
}

std::string flag_entry(const FlagSpec& flag) {
  std::string text = "  " + spelling(flag);
  text +=
      text.size() + 2 > kColumn ? '\n' + std::string(kColumn, ' ') : std::string(kColumn - text.size(), ' ');
  std::string help = flag.help;
  if (*flag.fallback != '\0') help += fmt::format(" [{}]", flag.fallback);
  return text + wrap(help, kColumn) + '\n';
}

std::vector<const char*> groups() {
  std::vector<const char*> names;
  for (const FlagSpec& flag : flag_table()) {
    const bool known = std::any_of(names.begin(), names.end(),
                                   [&](const char* name) { return std::strcmp(name, flag.group) == 0; });
    if (!known) names.push_back(flag.group);
  }
  return names;
}

std::string indented(const char* lines) {
  std::string out = "  ";
  for (const char* c = lines; *c != '\0'; ++c) {
    out += *c;
    if (*c == '\n') out += "  ";
  }
  return out + '\n';
}

std::string verbs_of(const FlagSpec& flag) {
  std::vector<const char*> names;
  for (const VerbSpec& verb : verb_table()) {
    if (flag.verbs & verb.bit) names.push_back(verb.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

// A table cell: the bar would end it.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.replace(at, 1, "\\|");
  return text;
}

}  // namespace

std::string overview_help() {
  std::string text =
      "Duet runs DeepSeek-class models, Llama, Mistral and Qwen on several ranks and hides communication "
      "behind "
      "arithmetic.\n\n"
      "usage: duet VERB ... (duet VERB --help explains one)\n\n";
  for (const VerbSpec& verb : verb_table()) {
    if (!verb.hidden) text += fmt::format("  {:<14} {}\n", verb.name, verb.summary);
  }
  text +=
      "\nA first try:\n  duet generate models/kjv-8m --prompt \"In the beginning God\" --max-tokens 40 "
      "--temperature 0\n";
  return text;
}

std::string verb_help(const VerbSpec& verb) {
  std::string text = fmt::format("usage: duet {}{}{}\n\n{}\n\nExample:\n{}", verb.name,
                                 *verb.usage ? " " : "", verb.usage, verb.about, indented(verb.example));
  bool any = false;
  for (const char* group : groups()) {
    std::string entries;
    for (const FlagSpec& flag : flag_table()) {
      if ((flag.verbs & verb.bit) && std::strcmp(flag.group, group) == 0) entries += flag_entry(flag);
    }
    if (entries.empty()) continue;
    text += fmt::format("\n{}:\n{}", group, entries);
    any = true;
  }
  if (any) {
    text +=
        "\nEach flag is also a variable: --max-tokens is DUET_MAX_TOKENS, a switch is on with 1 and off with "
        "0; the\n"
        "command line wins. Underscores may stand for dashes. docs/flags.md lists all.\n";
  }
  return text;
}

std::string flags_markdown() {
  std::string text =
      "# Flags\n"
      "<!-- Made by `duet internal flags-markdown > docs/flags.md` from src/cli/flags_*.cc. A test "
      "compares. -->\n"
      "Every flag is also a variable of the environment; the command line wins over the variable, the "
      "variable over "
      "the default. A switch\n"
      "(no value below) is on with `1`, `true`, `on`, `yes` and off with `0`, `false`, `off`, `no` or "
      "nothing; on "
      "the command line `--flag=false`\n"
      "and `--no-flag` turn it off. Where a switch has two variables, or `DUET_DBO` and `DUET_ENABLE_DBO` "
      "are both "
      "set, the one that says off\n"
      "wins. `--dbo off` together with `--enable-dbo` on one command line is an error. Underscores may stand "
      "for "
      "dashes. Names and meanings\n"
      "are vLLM's where they are the same thing.\n";
  for (const char* group : groups()) {
    text += fmt::format("\n## {}\n| flag | variable | default | verbs | meaning |\n|---|---|---|---|---|\n",
                        group);
    for (const FlagSpec& flag : flag_table()) {
      if (std::strcmp(flag.group, group) != 0) continue;
      text += fmt::format("| `{}` | `{}` | {} | {} | {} |\n", cell(spelling(flag)), variables(flag),
                          cell(flag.fallback), verbs_of(flag), cell(flag.help));
    }
  }
  text += "\n## Variables without a flag\n| variable | meaning |\n|---|---|\n";
  for (const PlainVariable& variable : plain_variables()) {
    text += fmt::format("| `{}` | {} |\n", variable.name, variable.help);
  }
  text +=
      "\n## Refused by name\n"
      "`--comm-dtype int8`, `--pipeline-parallel-size` and `--data-parallel-size` above 1, and "
      "the flags of "
      "LoRA adapters,\n"
      "multimodal inputs and speculative decoding are known and refused with the reason. Every "
      "other "
      "unknown flag is an\n"
      "error that names the nearest one.\n"
      "\n## Exit codes\n"
      "0: done. 1: something failed while running (a file, the model, memory, another rank). 2: the command "
      "line or "
      "a variable is wrong.\n";
  return text;
}

}  // namespace duet
