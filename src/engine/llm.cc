// duet::Llm over Engine: nothing but the border where duet::Error becomes duet::LlmError.
#include "duet/llm.h"

#include <new>
#include <utility>

#include "base/error.h"
#include "engine/engine.h"

namespace duet {

struct Llm::Impl {
  std::unique_ptr<Engine> engine;
};

namespace {

template <typename Body>
auto guarded(Body&& body) {
  try {
    return body();
  } catch (const Error& e) {
    throw LlmError(to_string(e.kind()), e.what());
  } catch (const std::bad_alloc&) {
    throw LlmError(to_string(ErrorKind::kResourceExhausted), "out of memory");
  }
}

}  // namespace

Llm::Llm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Llm::~Llm() = default;

std::unique_ptr<Llm> Llm::load(const LlmOptions& options, const std::function<void(double)>& progress) {
  return guarded([&]() -> std::unique_ptr<Llm> {
    auto impl = std::make_unique<Impl>();
    impl->engine = Engine::start(options, progress);
    if (!impl->engine) return nullptr;
    return std::unique_ptr<Llm>(new Llm(std::move(impl)));
  });
}

std::vector<RequestOutput> Llm::generate(const std::vector<Prompt>& prompts,
                                         const std::vector<SamplingParams>& params,
                                         const std::function<void(const Progress&)>& progress) {
  return guarded([&] { return impl_->engine->generate(prompts, params, progress); });
}

void Llm::logits(const std::vector<Prompt>& prompts, const LogitsOptions& options,
                 const std::function<void(size_t, int64_t, int64_t, const float*)>& sink) {
  guarded([&] { impl_->engine->logits(prompts, options, sink); });
}

std::vector<int32_t> Llm::tokenize(const Prompt& prompt, std::string* text) const {
  return guarded([&] { return impl_->engine->tokenize(prompt, text); });
}

int64_t Llm::vocab_size() const {
  return impl_->engine->info().config.vocab_size;
}
int64_t Llm::max_model_len() const {
  return impl_->engine->info().max_model_len;
}

LlmStats Llm::stats() {
  return guarded([&] { return impl_->engine->stats(); });
}

void Llm::reset_stats() {
  guarded([&] { impl_->engine->reset_stats(); });
}

void Llm::write_trace(const std::string& path) {
  guarded([&] { impl_->engine->ranks().write_trace(path); });
}

void Llm::set_dbo(const std::string& dbo) {
  guarded([&] { impl_->engine->set_dbo(dbo); });
}

void Llm::set_micro_batches(int micro_batches) {
  guarded([&] { impl_->engine->set_micro_batches(micro_batches); });
}

}  // namespace duet
