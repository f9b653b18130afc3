// duet inspect: facts about a model, for people or machines.
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/inspect.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/verbs.h"

namespace duet {

int verb_inspect(const Flags& flags, const CliContext& context) {
  const nlohmann::ordered_json facts = inspect_json(llm_options(flags));
  if (flags.given("json")) {
    OutputFile file(flags.text("json"), context.out);
    file.stream() << json_text(facts, 2) << '\n';
    file.commit();
    if (flags.text("json") == "-") return kExitOk;
  }
  context.out << inspect_text(facts);
  return kExitOk;
}

}  // namespace duet
