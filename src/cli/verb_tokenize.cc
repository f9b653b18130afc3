// duet tokenize: a file of texts and chats to token ids.
#include <fmt/format.h>

#include <fstream>
#include <string>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/output_file.h"
#include "cli/tokenize.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"

namespace duet {

int verb_tokenize(const Flags& flags, const CliContext& context) {
  const std::string path = flags.text("input");
  if (path.empty()) throw UsageError("--input FILE.jsonl is missing");
  if (!flags.given("output")) throw UsageError("--output FILE.jsonl is missing (\"-\" is standard output)");
  std::ifstream input(path, std::ios::binary);
  if (!input) throw Error(ErrorKind::kNotFound, fmt::format("cannot read {}", path));
  TokenizeOptions options;
  options.tokenizer = flags.given("tokenizer") ? flags.text("tokenizer") : flags.positional();
  options.chat_template = flags.text("chat-template");
  options.add_special_tokens = flags.boolean("add-special-tokens");
  options.control_tokens_in_content = !flags.boolean("no-control-tokens-in-content");
  LineTokenizer tokenizer(options);
  OutputFile output(flags.text("output"), context.out);
  std::string line;
  for (int64_t number = 1; std::getline(input, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    output.stream() << tokenizer.line(line, fmt::format("{}:{}", path, number)) << '\n';
  }
  if (input.bad()) throw Error(ErrorKind::kCorrupt, fmt::format("cannot read {} to its end", path));
  output.commit();
  return kExitOk;
}

}  // namespace duet
