// duet quantize: a checkpoint written anew in another format.
#include <fmt/format.h>

#include <ostream>

#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "load/quantize.h"

namespace duet {

int verb_quantize(const Flags& flags, const CliContext& context) {
  const std::string out = flags.positional(1), scheme = flags.text("scheme");
  ProgressView view(context);
  const QuantizeResult result = quantize_checkpoint(
      flags.positional(0), out, scheme == "w8a8" ? QuantScheme::kW8A8 : QuantScheme::kBf16,
      [&](double fraction) { view.measuring("writing", fraction); });
  view.clear();
  const auto size = [](uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); };
  context.out << fmt::format("{}: {} tensors in {} file{}, {} of them int8; {} became {}\n", out,
                             result.tensors, result.files, result.files == 1 ? "" : "s", result.quantised,
                             size(result.bytes_before), size(result.bytes_after));
  return kExitOk;
}

}  // namespace duet
