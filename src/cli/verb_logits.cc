// duet logits: every logit of every prompt, streamed into a safetensors file, so that any path
// through the engine can be compared with any other.
#include <fmt/format.h>

#include <memory>
#include <ostream>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/report.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "duet/llm.h"
#include "load/safetensors.h"

namespace duet {
namespace {

LogitsOptions logits_options(const Flags& flags) {
  LogitsOptions options;
  options.chunk = flags.integer("chunk");
  options.decode = flags.boolean("decode");
  if (options.decode && options.chunk > 0) {
    throw UsageError(fmt::format("{} and {} contradict each other; give one", flags.shown("chunk"),
                                 flags.shown("decode")));
  }
  return options;
}

/// Prompts as the token ids that they will run as; fails before anything is computed.
std::vector<Prompt> to_token_ids(const Llm& llm, std::vector<Prompt> prompts) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (!prompts[i].token_ids.empty()) continue;
    Prompt ids;
    ids.token_ids = llm.tokenize(prompts[i]);
    if (ids.token_ids.empty()) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("prompt {} has no tokens", i));
    }
    prompts[i] = std::move(ids);
  }
  return prompts;
}

}  // namespace

int verb_logits(const Flags& flags, const CliContext& context) {
  LlmOptions options = llm_options(flags);
  options.skip_tokenizer_init = is_mpi_worker();  // text is rank 0's business
  options.all_logits = true;
  const LogitsOptions how = logits_options(flags);
  if (options.split_at > 0 && options.dbo != "on") {
    // Who asks for a split wants it; who says off gets the whole batch, as the baseline to compare with.
    if (flags.given("dbo") || flags.given("enable-dbo")) {
      if (!is_mpi_worker())
        context.err << "duet logits: " << flags.shown("split-at") << " has no effect while dbo is off\n";
      options.split_at = 0;
    } else {
      options.dbo = "on";
    }
  }
  std::vector<Prompt> prompts;
  const std::string path = flags.text("output");
  if (!is_mpi_worker()) {
    if (path.empty()) throw UsageError("--output FILE.safetensors is missing");
    if (path == "-") throw UsageError("--output -: logits go to a file, FILE.safetensors");
    prompts = prompts_from_flags(flags, false);
    options.skip_tokenizer_init = only_token_ids(prompts);
  }
  ProgressView view(context);
  const std::unique_ptr<Llm> llm = Llm::load(options, [&](double fraction) { view.loading(fraction); });
  if (!llm) return kExitOk;
  view.clear();
  prompts = to_token_ids(*llm, std::move(prompts));
  const int64_t vocab = llm->vocab_size();
  std::vector<SafetensorsDecl> tensors;
  for (size_t i = 0; i < prompts.size(); ++i) {
    tensors.push_back({fmt::format("logits.{}", i),
                       DType::kF32,
                       {static_cast<int64_t>(prompts[i].token_ids.size()), vocab}});
  }
  SafetensorsWriter writer(path, std::move(tensors), {{"duet", DUET_VERSION}});
  llm->logits(prompts, how, [&](size_t prompt, int64_t first_row, int64_t rows, const float* logits) {
    writer.write(prompt, first_row * vocab, logits, rows * vocab);
  });
  writer.finish();
  context.err << report_text(llm->stats(), options.tensor_parallel_size);
  return kExitOk;
}

}  // namespace duet
