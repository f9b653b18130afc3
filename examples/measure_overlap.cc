// Measures what dual-batch overlap hides: one prefill step of a model with dummy weights on two
// ranks, over a link shaped so that communication takes a given share of the step, with overlap off
// and on in turns. The words are those of docs/overlap.md: hidden fraction
//   h = (T_sequential − T_overlapped) / min(ΣT_compute, ΣT_comm).
// usage: measure_overlap CONFIG.json [--tokens 2048] [--share 0.4] [--repeats 5] [--path
// all-reduce|all-to-all]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "duet/llm.h"

namespace {

struct Options {
  std::string config;
  int tokens = 2048;
  double share = 0.4;
  int repeats = 5;
  std::vector<std::string> paths{"all-reduce", "all-to-all"};
  std::string trace_prefix;
};

constexpr int kSequences = 8;

struct Sample {
  double step_ms, compute_ms, comm_ms, exposed_ms;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Case {
 public:
  Case(const Options& o, const std::string& path, double bytes_per_second) : o_(o) {
    duet::LlmOptions options;
    options.model = o.config;
    options.load_format = "dummy";
    options.skip_tokenizer_init = true;
    options.tensor_parallel_size = 2;
    options.threads = 1;
    options.expert_path = path;
    options.dbo = "on";
    options.micro_batches = 3;
    options.dbo_prefill_token_threshold = 2;
    options.max_num_batched_tokens = o.tokens;
    options.max_num_seqs = kSequences;
    options.trace = !o.trace_prefix.empty();
    options.link_latency = "50us";
    options.link_bandwidth = std::to_string(static_cast<long long>(bytes_per_second * 8)) + "bit";
    llm_ = duet::Llm::load(options);
  }

  // One prefill step. micro_batches 1: overlap off.
  Sample run(int micro_batches) {
    llm_->set_dbo(micro_batches > 1 ? "on" : "off");
    if (micro_batches > 1) llm_->set_micro_batches(micro_batches);
    std::vector<duet::Prompt> prompts(kSequences);
    for (int i = 0; i < o_.tokens; ++i) {
      prompts[static_cast<size_t>(i % kSequences)].token_ids.push_back((i * 7919 + 13) %
                                                                       static_cast<int>(llm_->vocab_size()));
    }
    duet::SamplingParams params;
    params.max_tokens = 1;
    params.temperature = 0.0;
    llm_->reset_stats();
    llm_->generate(prompts, {params});
    const duet::LlmStats s = llm_->stats();
    if (s.steps != 1 || s.steps_overlapped != (micro_batches > 1 ? 1 : 0)) {
      std::fprintf(stderr, "measure_overlap: expected one step, got %lld\n", static_cast<long long>(s.steps));
      std::exit(1);
    }
    return {s.step_ms, s.compute_ms, s.comm_ms, s.exposed_ms};
  }

  void write_trace(const std::string& path) { llm_->write_trace(path); }

 private:
  const Options& o_;
  std::unique_ptr<duet::Llm> llm_;
};

// Bytes per second at which communication takes `share` of the lanes' busy time. The link's time is
// inversely proportional to its rate, apart from the copying, so two trials are enough.
double find_rate(const Options& o, const std::string& path) {
  double rate = 250e6;
  for (int trial = 0; trial < 2; ++trial) {
    Case probe(o, path, rate);
    probe.run(1);  // warm-up
    const Sample s = probe.run(1);
    rate *= s.comm_ms * (1.0 - o.share) / (s.compute_ms * o.share);
  }
  return rate;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) {
        std::fprintf(stderr, "measure_overlap: %s needs a value\n", flag.c_str());
        std::exit(2);
      }
      return argv[++i];
    };
    if (flag == "--tokens")
      o.tokens = std::atoi(value().c_str());
    else if (flag == "--share")
      o.share = std::atof(value().c_str());
    else if (flag == "--repeats")
      o.repeats = std::atoi(value().c_str());
    else if (flag == "--path")
      o.paths = {value()};
    else if (flag == "--trace-prefix")
      o.trace_prefix = value();
    else if (flag.rfind("--", 0) == 0 || !o.config.empty()) {
      std::fprintf(stderr, "measure_overlap: %s is unknown; see the head of examples/measure_overlap.cc\n",
                   flag.c_str());
      std::exit(2);
    } else
      o.config = flag;
  }
  if (o.config.empty() || o.tokens < kSequences || o.share <= 0 || o.share >= 1 || o.repeats < 1) {
    std::fprintf(stderr,
                 "usage: measure_overlap CONFIG.json [--tokens N] [--share S] [--repeats N] [--path P] "
                 "[--trace-prefix P]\n");
    std::exit(2);
  }
  return o;
}

void measure(const Options& o, const std::string& path) {
  const double rate = find_rate(o, path);
  Case bench(o, path, rate);
  bench.run(1);
  bench.run(2);
  std::vector<std::vector<Sample>> samples(4);
  for (int r = 0; r < o.repeats; ++r) {
    for (int m : {1, 2, 3}) samples[static_cast<size_t>(m)].push_back(bench.run(m));
  }
  const auto field = [&](int m, double Sample::*member) {
    std::vector<double> values;
    for (const Sample& s : samples[static_cast<size_t>(m)]) values.push_back(s.*member);
    return median(values);
  };
  const double compute = field(1, &Sample::compute_ms), comm = field(1, &Sample::comm_ms),
               off = field(1, &Sample::step_ms);
  for (int m : {1, 2, 3}) {
    const double step = field(m, &Sample::step_ms);
    // Pair by pair, so that a drift of the machine's speed falls out.
    std::vector<double> hidden;
    for (size_t r = 0; r < samples[1].size(); ++r) {
      hidden.push_back((samples[1][r].step_ms - samples[static_cast<size_t>(m)][r].step_ms) /
                       std::min(samples[1][r].compute_ms, samples[1][r].comm_ms));
    }
    std::printf("%-10s  %-8s  %8.1f  %9.1f  %8.1f  %6.0f %%  %10.1f  %8.3f  %8s\n", path.c_str(),
                m == 1   ? "off"
                : m == 2 ? "on, 2"
                         : "on, 3",
                step, compute, comm, 100 * comm / (compute + comm), field(m, &Sample::exposed_ms), off / step,
                m == 1 ? "-" : std::to_string(median(hidden)).substr(0, 5).c_str());
    std::fflush(stdout);
  }
  if (!o.trace_prefix.empty()) bench.write_trace(o.trace_prefix + path + ".json");
}

}  // namespace

int main(int argc, char** argv) try {
  const Options o = parse(argc, argv);
  std::printf("one prefill step of %d tokens, 2 ranks, medians of %d; ms\n", o.tokens, o.repeats);
  std::printf("%-10s  %-8s  %8s  %9s  %8s  %8s  %10s  %8s  %8s\n", "path", "overlap", "step", "compute",
              "comm", "share", "exposed", "speed-up", "hidden");
  for (const std::string& path : o.paths) measure(o, path);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "measure_overlap: %s\n", e.what());
  return 1;
}
