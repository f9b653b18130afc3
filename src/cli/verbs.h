// One function per verb, called by run_cli with checked flags. Each returns an exit code or throws
// UsageError (exit code 2) or any other exception (1).
#pragma once

namespace duet {

class Flags;
struct CliContext;

int verb_generate(const Flags& flags, const CliContext& context);
int verb_serve(const Flags& flags, const CliContext& context);
int verb_logits(const Flags& flags, const CliContext& context);
int verb_tokenize(const Flags& flags, const CliContext& context);
int verb_trace_summary(const Flags& flags, const CliContext& context);
int verb_trace_chart(const Flags& flags, const CliContext& context);
int verb_inspect(const Flags& flags, const CliContext& context);
int verb_doctor(const Flags& flags, const CliContext& context);
int verb_bench_overlap(const Flags& flags, const CliContext& context);
int verb_bench_kernels(const Flags& flags, const CliContext& context);
int verb_bench_engine(const Flags& flags, const CliContext& context);
int verb_bench_serve(const Flags& flags, const CliContext& context);
int verb_bench_throughput(const Flags& flags, const CliContext& context);
int verb_bench_latency(const Flags& flags, const CliContext& context);
int verb_eval_perplexity(const Flags& flags, const CliContext& context);
int verb_quantize(const Flags& flags, const CliContext& context);
int verb_version(const Flags& flags, const CliContext& context);
/// Hidden: one of two processes that doctor starts under mpirun.
int internal_mpi_bandwidth(const CliContext& context);

}  // namespace duet
