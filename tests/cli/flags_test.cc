// Flags, their variables and aliases, refusals, and the pages made from the table.
#include "cli/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include <cstdlib>
#include <set>

#include "cli/flag_table.h"
#include "cli/options.h"
#include "cli/suggest.h"
#include "cli/usage_error.h"
#include "run_cli.h"

namespace duet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Flags parse(const std::vector<std::string>& args, const Environment& env = {},
            const char* verb = "generate") {
  return Flags::parse(*find_verb(verb), args, env);
}

std::string usage_error(const std::vector<std::string>& args, const Environment& env = {},
                        const char* verb = "generate") {
  try {
    const Flags flags = parse(args, env, verb);
    llm_options(flags);
    sampling_params(flags);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(FlagTable, NamesAndVariablesAreUniqueAndEveryFlagHasAVerb) {
  std::set<std::string> names;
  for (const FlagSpec& flag : flag_table()) {
    EXPECT_TRUE(names.insert(flag.name).second) << flag.name;
    EXPECT_TRUE(names.insert(flag_variable(flag)).second) << flag.name;
    if (flag.env_alias) {
      EXPECT_TRUE(names.insert(flag.env_alias).second);
    }
    EXPECT_NE(flag.verbs, 0u) << flag.name;
    EXPECT_FALSE(find_refused(flag.name)) << flag.name;
    EXPECT_GT(std::string(flag.help).size(), 10u) << flag.name;
  }
}

/// A word for everything that must stand without a flag.
void add_places(const VerbSpec& verb, std::vector<std::string>& args) {
  std::istringstream names(verb.positional);
  for (std::string name; names >> name;) args.push_back(name);
}

TEST(FlagTable, DefaultsAreValidValues) {
  for (const FlagSpec& flag : flag_table()) {
    if (flag.type == FlagType::kBool || *flag.fallback == '\0') continue;
    for (const VerbSpec& verb : verb_table()) {
      if (!(flag.verbs & verb.bit)) continue;
      std::vector<std::string> args{std::string("--") + flag.name, flag.fallback};
      add_places(verb, args);
      EXPECT_NO_THROW(Flags::parse(verb, args, {})) << verb.name << " " << flag.name;
    }
  }
}

TEST(FlagsPage, IsTheOneInDocs) {
  const CliRun made = run({"internal", "flags-markdown"});
  EXPECT_EQ(made.code, 0);
  EXPECT_EQ(made.out, read_all(DUET_MODELS "/../docs/flags.md")) << "run: make docs";
}

TEST(FlagsPage, HelpOfEveryVerbShowsItsFlagsAndAnExample) {
  for (const VerbSpec& verb : verb_table()) {
    const CliRun help = run({verb.name, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, AllOf(HasSubstr("Example:\n"), HasSubstr(std::string("duet ") + verb.name)));
    for (const FlagSpec& flag : flag_table()) {
      if (flag.verbs & verb.bit) {
        EXPECT_THAT(help.out, HasSubstr(std::string("--") + flag.name));
      }
    }
    for (const std::string& line : lines_of(help.out)) EXPECT_LE(line.size(), 125u) << line;
  }
}

TEST(Flags, ReadsValuesInEverySpelling) {
  const Flags flags =
      parse({"m", "--max_tokens", "7", "--temperature=0.5", "-tp", "4", "--top-k", "-1", "--chat"});
  EXPECT_EQ(flags.positional(), "m");
  EXPECT_EQ(flags.integer("max-tokens"), 7);
  EXPECT_EQ(flags.number("temperature"), 0.5);
  EXPECT_EQ(flags.integer("tensor-parallel-size"), 4);
  EXPECT_EQ(flags.integer("top-k"), -1);
  EXPECT_TRUE(flags.boolean("chat"));
  EXPECT_FALSE(flags.boolean("ignore-eos"));
  EXPECT_EQ(flags.integer("block-size"), 16);  // default
  EXPECT_EQ(parse({"m", "--max-tokens", "7", "--max-tokens=9"}).integer("max-tokens"), 9);
}

TEST(Flags, UnderscoresInValuesStay) {
  EXPECT_EQ(parse({"m", "--output=a_b.jsonl"}).text("output"), "a_b.jsonl");
}

TEST(Flags, PromptsTakeAllWordsUpToTheNextFlag) {
  const Flags first = parse({"m", "--prompt", "a", "b c", "[d]", "{}", "", "--max-tokens", "3"});
  EXPECT_THAT(first.list("prompt"), ElementsAre("a", "b c", "[d]", "{}", ""));
  const Flags last = parse({"--prompt", "a", "b", "m"});
  EXPECT_THAT(last.list("prompt"), ElementsAre("a", "b"));
  EXPECT_EQ(last.positional(), "m");
  const Flags twice = parse({"m", "--prompt", "a", "--prompt", "b"});
  EXPECT_THAT(twice.list("prompt"), ElementsAre("a", "b"));
  EXPECT_THAT(parse({"m", "--prompt=a=b"}).list("prompt"), ElementsAre("a=b"));
}

TEST(Flags, EnvironmentGivesWayToTheCommandLine) {
  const Environment env{{"DUET_MAX_TOKENS", "5"}, {"DUET_DTYPE", "half"}, {"DUET_PROMPT", "a\nb"}};
  EXPECT_EQ(parse({"m"}, env).integer("max-tokens"), 5);
  EXPECT_EQ(parse({"m"}, env).text("dtype"), "half");
  EXPECT_THAT(parse({"m"}, env).list("prompt"), ElementsAre("a", "b"));
  EXPECT_EQ(parse({"m", "--max-tokens", "6"}, env).integer("max-tokens"), 6);
  EXPECT_EQ(parse({"m"}, {{"DUET_MAX_TOKENS", ""}}).integer("max-tokens"), 16);
  EXPECT_THAT(usage_error({"m"}, {{"DUET_MAX_TOKENS", "many"}}), HasSubstr("DUET_MAX_TOKENS is \"many\""));
  // A variable of a flag that the verb does not take is none of its business.
  EXPECT_NO_THROW(parse({"m"}, {{"DUET_MAX_TOKENS", "many"}}, "logits"));
}

TEST(Flags, VariablesThatAreNearlyOursAreNamed) {
  const CliRun slip =
      run({"version"}, {{"DUET_MAX_TOKEN", "3"}, {"DUET_MAX_TOKENS", "3"}, {"DUET_HOUSEKEEPING", "x"}});
  EXPECT_EQ(slip.code, 0);
  EXPECT_THAT(slip.err,
              HasSubstr("DUET_MAX_TOKEN is unknown and has no effect. Did you mean DUET_MAX_TOKENS?"));
  EXPECT_EQ(newlines(slip.err), 1u);
}

TEST(Flags, EveryFlagIsAVariable) {
  for (const FlagSpec& flag : flag_table()) {
    const VerbSpec* verb = nullptr;
    for (const VerbSpec& candidate : verb_table()) {
      if (flag.verbs & candidate.bit) verb = &candidate;
    }
    const char* value = "1";
    switch (flag.type) {
      case FlagType::kChoice: break;
      case FlagType::kBytes: value = "1GiB"; break;
      case FlagType::kBandwidth: value = "1gbit"; break;
      case FlagType::kDuration: value = "1us"; break;
      default: break;
    }
    const std::string choice = flag.type == FlagType::kChoice ? flag_choices(flag).back() : value;
    std::vector<std::string> args;
    add_places(*verb, args);
    const Flags flags = Flags::parse(*verb, args, {{flag_variable(flag), choice}});
    EXPECT_EQ(flags.source(flag.name), Flags::Source::kEnvironment) << flag.name;
    if (flag.type == FlagType::kBool) {
      EXPECT_TRUE(flags.boolean(flag.name));
    } else {
      EXPECT_EQ(flags.text(flag.name), choice) << flag.name;
    }
  }
}

TEST(Overlap, EveryNameSwitchesItOnAndOff) {
  const auto wanted = [](const std::vector<std::string>& extra, const Environment& env = {}) {
    std::vector<std::string> args{"m"};
    args.insert(args.end(), extra.begin(), extra.end());
    return llm_options(parse(args, env)).dbo;
  };
  EXPECT_EQ(wanted({}), "auto");
  EXPECT_EQ(wanted({"--dbo", "auto", "--enable-dbo"}), "auto");
  EXPECT_EQ(wanted({"--dbo", "on"}), "on");
  EXPECT_EQ(wanted({"--enable-dbo"}), "on");
  EXPECT_EQ(wanted({"--enable_dbo"}), "on");
  EXPECT_EQ(wanted({"--enable-dbo=false"}), "off");
  EXPECT_EQ(wanted({"--no-enable-dbo"}), "off");
  EXPECT_EQ(wanted({"--dbo", "on", "--enable-dbo"}), "on");
  for (const char* variable : {"DUET_ENABLE_DBO", "VLLM_ASCEND_ENABLE_DBO"}) {
    for (const char* on : {"1", "true", "ON"})
      EXPECT_EQ(wanted({}, {{variable, on}}), "on") << variable << on;
    for (const char* off : {"0", "false", "off", ""}) EXPECT_EQ(wanted({}, {{variable, off}}), "off");
    EXPECT_EQ(wanted({"--dbo", "off"}, {{variable, "1"}}), "off");
    EXPECT_EQ(wanted({"--dbo", "on"}, {{variable, "0"}}), "on");
    EXPECT_EQ(wanted({"--enable-dbo"}, {{variable, "0"}}), "on");
    EXPECT_EQ(wanted({}, {{variable, "0"}, {"DUET_DBO", "on"}}), "off");
    EXPECT_EQ(wanted({}, {{variable, "1"}, {"DUET_DBO", "off"}}), "off");
    EXPECT_EQ(wanted({"--enable-dbo"}, {{variable, "0"}, {"DUET_DBO", "off"}}), "on");
  }
  EXPECT_EQ(wanted({}, {{"DUET_ENABLE_DBO", "0"}, {"VLLM_ASCEND_ENABLE_DBO", "1"}}), "off");
  EXPECT_EQ(wanted({}, {{"DUET_ENABLE_DBO", "1"}, {"VLLM_ASCEND_ENABLE_DBO", "0"}}), "off");
  EXPECT_EQ(wanted({}, {{"DUET_DBO", "on"}}), "on");
}

TEST(Overlap, ContradictionsAreErrors) {
  EXPECT_THAT(usage_error({"m", "--dbo", "off", "--enable-dbo"}), HasSubstr("contradict"));
  EXPECT_THAT(usage_error({"m", "--dbo", "on", "--enable-dbo=false"}), HasSubstr("contradict"));
  EXPECT_THAT(usage_error({"m", "--dbo", "auto", "--enable-dbo=false"}), HasSubstr("contradict"));
  EXPECT_THAT(usage_error({"m"}, {{"VLLM_ASCEND_ENABLE_DBO", "maybe"}}), HasSubstr("VLLM_ASCEND_ENABLE_DBO"));
}

TEST(Options, EveryFlagReachesTheEngine) {
  const LlmOptions o = llm_options(parse({"m",
                                          "--tokenizer",
                                          "t",
                                          "--chat-template",
                                          "c",
                                          "--load-format",
                                          "dummy",
                                          "--dtype",
                                          "bfloat16",
                                          "--seed",
                                          "9",
                                          "-tp",
                                          "3",
                                          "--threads",
                                          "2",
                                          "--expert-path",
                                          "all-to-all",
                                          "--enable-expert-parallel",
                                          "--comm-dtype",
                                          "f32",
                                          "--link-bandwidth",
                                          "1gbit",
                                          "--link-latency",
                                          "50us",
                                          "--dbo",
                                          "on",
                                          "--micro-batches",
                                          "3",
                                          "--dbo-prefill-token-threshold",
                                          "11",
                                          "--dbo-decode-token-threshold",
                                          "12",
                                          "--dbo-imbalance",
                                          "0.25",
                                          "--max-num-batched-tokens",
                                          "99",
                                          "--max-num-seqs",
                                          "7",
                                          "--max-model-len",
                                          "64",
                                          "--block-size",
                                          "8",
                                          "--kv-cache-memory",
                                          "1GiB",
                                          "--generation-config",
                                          "vllm",
                                          "--no-control-tokens-in-content",
                                          "--trace",
                                          "t.json"}));
  EXPECT_EQ(o.model, "m");
  EXPECT_EQ(o.tokenizer, "t");
  EXPECT_EQ(o.chat_template, "c");
  EXPECT_EQ(o.load_format, "dummy");
  EXPECT_EQ(o.dtype, "bfloat16");
  EXPECT_EQ(o.seed, 9u);
  EXPECT_EQ(o.dummy_seed, 9u);
  EXPECT_EQ(o.tensor_parallel_size, 3);
  EXPECT_EQ(o.threads, 2);
  EXPECT_EQ(o.expert_path, "all-to-all");
  EXPECT_TRUE(o.enable_expert_parallel);
  EXPECT_EQ(o.comm_dtype, "f32");
  EXPECT_EQ(o.link_bandwidth, "1gbit");
  EXPECT_EQ(o.link_latency, "50us");
  EXPECT_EQ(o.dbo, "on");
  EXPECT_EQ(o.micro_batches, 3);
  EXPECT_EQ(o.dbo_prefill_token_threshold, 11);
  EXPECT_EQ(o.dbo_decode_token_threshold, 12);
  EXPECT_EQ(o.dbo_imbalance, 0.25);
  EXPECT_EQ(o.max_num_batched_tokens, 99);
  EXPECT_EQ(o.max_num_seqs, 7);
  EXPECT_EQ(o.max_model_len, 64);
  EXPECT_EQ(o.block_size, 8);
  EXPECT_EQ(o.kv_cache_memory, "1GiB");
  EXPECT_EQ(o.generation_config, "vllm");
  EXPECT_FALSE(o.control_tokens_in_content);
  EXPECT_TRUE(o.trace);
}

TEST(Options, DefaultsAreThoseOfTheApi) {
  const LlmOptions o = llm_options(parse({"m"}));
  const LlmOptions d;
  EXPECT_EQ(o.dtype, d.dtype);
  EXPECT_EQ(o.expert_path, d.expert_path);
  EXPECT_EQ(o.comm_dtype, d.comm_dtype);
  EXPECT_EQ(o.dbo, d.dbo);
  EXPECT_EQ(o.micro_batches, d.micro_batches);
  EXPECT_EQ(o.dbo_prefill_token_threshold, d.dbo_prefill_token_threshold);
  EXPECT_EQ(o.dbo_decode_token_threshold, d.dbo_decode_token_threshold);
  EXPECT_EQ(o.dbo_imbalance, d.dbo_imbalance);
  EXPECT_EQ(o.max_num_batched_tokens, d.max_num_batched_tokens);
  EXPECT_EQ(o.max_num_seqs, d.max_num_seqs);
  EXPECT_EQ(o.max_model_len, d.max_model_len);
  EXPECT_EQ(o.block_size, d.block_size);
  EXPECT_EQ(o.generation_config, d.generation_config);
  EXPECT_EQ(o.control_tokens_in_content, d.control_tokens_in_content);
  const SamplingParams p = sampling_params(parse({"m"}));
  const SamplingParams e;
  EXPECT_FALSE(p.temperature || p.top_p || p.top_k || p.min_p || p.seed || p.logprobs);
  EXPECT_EQ(p.max_tokens, e.max_tokens);
  EXPECT_EQ(p.n, e.n);
}

TEST(Options, SamplingFlagsReachTheRequest) {
  const SamplingParams p = sampling_params(parse({"m",          "--temperature",
                                                  "0.7",        "--top-p",
                                                  "0.9",        "--top-k",
                                                  "40",         "--min-p",
                                                  "0.05",       "--n",
                                                  "3",          "--max-tokens",
                                                  "20",         "--min-tokens",
                                                  "2",          "--stop",
                                                  "x",          "--stop",
                                                  "y z",        "--stop-token-ids",
                                                  "1,2",        "--stop-token-ids",
                                                  "3",          "--ignore-eos",
                                                  "--logprobs", "4"}));
  EXPECT_EQ(*p.temperature, 0.7);
  EXPECT_EQ(*p.top_p, 0.9);
  EXPECT_EQ(*p.top_k, 40);
  EXPECT_EQ(*p.min_p, 0.05);
  EXPECT_EQ(p.n, 3);
  EXPECT_EQ(p.max_tokens, 20);
  EXPECT_EQ(p.min_tokens, 2);
  EXPECT_THAT(p.stop, ElementsAre("x", "y z"));
  EXPECT_THAT(p.stop_token_ids, ElementsAre(1, 2, 3));
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(*p.logprobs, 4);
}

TEST(Errors, ValuesOutOfPlaceNameFlagAndExpectation) {
  EXPECT_THAT(usage_error({"m", "--max-tokens", "0"}), HasSubstr("--max-tokens is 0; expected 1 or more"));
  EXPECT_THAT(usage_error({"m", "--max-tokens", "2.5"}), HasSubstr("whole number"));
  EXPECT_THAT(usage_error({"m", "--temperature", "hot"}), HasSubstr("--temperature is \"hot\""));
  EXPECT_THAT(usage_error({"m", "--temperature", "nan"}), HasSubstr("expected a number"));
  EXPECT_THAT(usage_error({"m", "--top-p", "1.5"}), HasSubstr("expected 0 to 1"));
  EXPECT_THAT(usage_error({"m", "--dtype", "bfloat"}), HasSubstr("Did you mean bfloat16?"));
  EXPECT_THAT(usage_error({"m", "--kv-cache-memory", "4 apples"}), HasSubstr("--kv-cache-memory"));
  EXPECT_THAT(usage_error({"m", "--link-bandwidth", "fast"}), HasSubstr("--link-bandwidth"));
  EXPECT_THAT(usage_error({"m", "--prompt-token-ids", "1,,2"}), HasSubstr("--prompt-token-ids"));
  EXPECT_THAT(usage_error({"m", "--prompt-token-ids", "1,-2"}), HasSubstr("--prompt-token-ids"));
  EXPECT_THAT(usage_error({"m", "--max-tokens"}), HasSubstr("needs a value (N)"));
  EXPECT_THAT(usage_error({"m", "--output", "--chat"}), HasSubstr("--output needs a value"));
  EXPECT_THAT(usage_error({"m", "--min-tokens", "20"}), HasSubstr("more than"));
  EXPECT_THAT(usage_error({}), HasSubstr("MODEL is missing"));
  EXPECT_THAT(usage_error({"m", "extra"}), HasSubstr("unexpected \"extra\""));
}

TEST(Errors, RefusedByName) {
  EXPECT_THAT(usage_error({"m", "--pipeline-parallel-size", "2"}),
              HasSubstr("--pipeline-parallel-size 2 is refused"));
  EXPECT_THAT(usage_error({"m", "-pp", "2"}), HasSubstr("-pp 2 is refused"));
  EXPECT_THAT(usage_error({"m", "--data_parallel_size=4"}), HasSubstr("refused"));
  EXPECT_EQ(usage_error({"m", "--pipeline-parallel-size", "1"}), "no error");
  for (const char* flag : {"--enable-lora", "--lora-modules", "--limit-mm-per-prompt"}) {
    EXPECT_THAT(usage_error({"m", flag, "x"}), AllOf(HasSubstr(flag), HasSubstr("is refused")));
  }
  EXPECT_THAT(usage_error({"m", "--comm-dtype", "int8"}), HasSubstr("--comm-dtype int8 is refused"));
  EXPECT_THAT(usage_error({"m", "--kv-cache-dtype", "fp8"}),
              AllOf(HasSubstr("--kv-cache-dtype fp8 is refused"), HasSubstr("int8")));
  EXPECT_THAT(usage_error({"m", "-q", "fp8"}), AllOf(HasSubstr("refused"), HasSubstr("runs as it is")));
}

TEST(Errors, UnknownNamesGetTheNearest) {
  EXPECT_THAT(usage_error({"m", "--max-token", "3"}), HasSubstr("Did you mean --max-tokens?"));
  EXPECT_THAT(usage_error({"m", "--tensor-paralel-size=2"}),
              HasSubstr("Did you mean --tensor-parallel-size?"));
  EXPECT_THAT(usage_error({"m", "--xyzzy"}),
              AllOf(HasSubstr("unknown flag --xyzzy"), Not(HasSubstr("Did you mean"))));
  EXPECT_THAT(usage_error({"m", "--max-tokens", "3"}, {}, "logits"),
              HasSubstr("--max-tokens is a flag of generate, not of logits"));
  const CliRun verb = run({"genrate", "m"});
  EXPECT_EQ(verb.code, kExitUsage);
  EXPECT_THAT(verb.err, AllOf(HasSubstr("unknown verb \"genrate\""), HasSubstr("Did you mean generate?")));
  EXPECT_EQ(run({"plan"}).code, kExitUsage);
}

TEST(Errors, AreOneLineOnStderrWithTheVerb) {
  const CliRun bad = run({"generate", "m", "--dtype", "x"});
  EXPECT_EQ(bad.code, kExitUsage);
  EXPECT_EQ(bad.out, "");
  EXPECT_THAT(bad.err, ::testing::StartsWith("duet generate: "));
  EXPECT_EQ(newlines(bad.err), 1u);
  const CliRun missing = run({"generate", "/nowhere/m", "--prompt-token-ids", "1"});
  EXPECT_EQ(missing.code, kExitError);
  EXPECT_THAT(missing.err, HasSubstr("/nowhere/m"));
}

TEST(Errors, WorldSizeOfMpiMustAgree) {
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  EXPECT_THAT(usage_error({"m", "-tp", "3"}),
              AllOf(HasSubstr("--tensor-parallel-size is 3"), HasSubstr("2 processes")));
  EXPECT_THAT(usage_error({"m", "--distributed-executor-backend", "threads"}),
              HasSubstr("started 2 processes"));
  setenv("OMPI_COMM_WORLD_RANK", "1", 1);
  const CliRun worker = run({"generate", "m", "-tp", "3"});
  EXPECT_EQ(worker.code, kExitUsage);
  // Rank 0 speaks for all; a worker that is still there seconds later says whose error it is.
  EXPECT_EQ(worker.out, "");
  EXPECT_THAT(worker.err, HasSubstr("2 processes"));
  EXPECT_THAT(worker.err, ::testing::EndsWith("(MPI rank 1)\n"));
  unsetenv("OMPI_COMM_WORLD_SIZE");
  unsetenv("OMPI_COMM_WORLD_RANK");
  EXPECT_NE(usage_error({"m", "-tp", "3", "--distributed-executor-backend", "mpi"}), "no error");
}

TEST(Suggest, DistanceCountsSwapsOnce) {
  EXPECT_EQ(edit_distance("dbo", "dbo"), 0u);
  EXPECT_EQ(edit_distance("dob", "dbo"), 1u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(nearest_name("q", {"abc"}), "");
}

TEST(Serve, TakesTheCommandLineOfVllmsServer) {
  const Flags flags = parse(
      {"--model=DIR", "-tp=2", "--max_num_seqs", "390", "--block-size=128", "--distributed_executor_backend",
       "mp", "--gpu-memory-utilization", "0.96", "--compilation_config", "0", "--trust-remote-code",
       "--no-enable-prefix-caching", "--served-model-name", "a", "b", "--port", "8006"},
      {}, "serve");
  EXPECT_EQ(flags.positional(), "DIR");
  EXPECT_EQ(flags.integer("tensor-parallel-size"), 2);
  EXPECT_EQ(flags.text("distributed-executor-backend"), "threads");
  EXPECT_FALSE(flags.boolean("enable-prefix-caching"));
  EXPECT_EQ(flags.list("served-model-name"), (std::vector<std::string>{"a", "b"}));
  ASSERT_EQ(flags.notes().size(), 3u);
  EXPECT_THAT(flags.notes()[0], testing::HasSubstr("--gpu-memory-utilization has no effect"));
  EXPECT_THROW(parse({"DIR", "--gpu-memory-utilisation", "1"}, {}, "serve"), UsageError);
  EXPECT_THROW(parse({"DIR", "--gpu-memory-utilization"}, {}, "serve"), UsageError);
}

}  // namespace
}  // namespace duet
